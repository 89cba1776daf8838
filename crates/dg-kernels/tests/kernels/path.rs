//! `DG_KERNELS` selects the plain burn operations or the narrow kernels; it is read once, hence the processes.

use crate::support::{bits, random};
use dg_kernels::{self as k, Precision, reference};
use std::process::Command;

#[test]
fn the_environment_selects_the_path() {
    let me = std::env::current_exe().expect("a test binary");
    for value in ["portable", "avx2", "auto"] {
        let mut child = Command::new(&me);
        child.args(["path::the_path_is_as_selected", "--exact", "--ignored"]).env("DG_KERNELS", value);
        let output = child.output().expect("starts");
        assert!(output.status.success(), "{value}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
#[ignore = "run by the_environment_selects_the_path"]
fn the_path_is_as_selected() {
    let asked = std::env::var("DG_KERNELS").unwrap_or_default();
    let portable = asked == "portable";
    #[cfg(target_arch = "x86_64")]
    let (able, wide) = (
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        is_x86_feature_detected!("avx512f"),
    );
    #[cfg(not(target_arch = "x86_64"))]
    let (able, wide) = (false, false);
    let expected = match asked.as_str() {
        "portable" => "portable",
        _ if !able => "portable",
        "avx2" => "avx2",
        _ => ["avx2", "avx512"][usize::from(wide)],
    };
    assert_eq!(k::path(), expected);
    if portable {
        let x = random(1, [1, 999, 3]);
        let (a, b) = (k::silu(x.clone(), Precision::F32), reference::silu(x, Precision::F32));
        assert!(bits(a) == bits(b));
    }
}
