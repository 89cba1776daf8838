//! `DG_KERNELS=portable` selects the plain burn operations; it is read once, hence the processes.

use crate::support::{bits, random};
use dg_kernels::{self as k, Precision, reference};
use std::process::Command;

#[test]
fn the_environment_selects_the_path() {
    let me = std::env::current_exe().expect("a test binary");
    for value in ["portable", "auto"] {
        let mut child = Command::new(&me);
        child.args(["path::the_path_is_as_selected", "--exact", "--ignored"]).env("DG_KERNELS", value);
        let output = child.output().expect("starts");
        assert!(output.status.success(), "{value}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
#[ignore = "run by the_environment_selects_the_path"]
fn the_path_is_as_selected() {
    let portable = std::env::var("DG_KERNELS").is_ok_and(|v| v == "portable");
    #[cfg(target_arch = "x86_64")]
    let able = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let able = false;
    assert_eq!(k::path(), if able && !portable { "avx2" } else { "portable" });
    if portable {
        let x = random(1, [1, 999, 3]);
        let (a, b) = (k::silu(x.clone(), Precision::F32), reference::silu(x, Precision::F32));
        assert!(bits(a) == bits(b));
    }
}
