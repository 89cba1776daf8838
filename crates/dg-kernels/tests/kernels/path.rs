//! `DG_KERNELS` selects the plain burn operations or how far the kernels go; it is read once, hence the processes.

use crate::support::{bits, random};
use dg_kernels::{self as k, Precision, reference};
use std::process::Command;

#[test]
fn the_environment_selects_the_path() {
    let me = std::env::current_exe().expect("a test binary");
    for value in ["portable", "avx2", "avx512", "avx512bf16", "auto"] {
        let mut child = Command::new(&me);
        child.args(["path::the_path_is_as_selected", "--exact", "--ignored"]).env("DG_KERNELS", value);
        let output = child.output().expect("starts");
        assert!(output.status.success(), "{value}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// What the other tests say of the path that this machine takes by itself, of the others that it has.
#[test]
fn every_path_keeps_what_the_tests_say() {
    let me = std::env::current_exe().expect("a test binary");
    for (value, able) in
        [("avx2", able("avx2")), ("avx512", able("avx512")), ("avx512bf16", able("avx512bf16"))]
    {
        if !able {
            eprintln!("SKIPPED: {value}, which this machine has not");
        } else if value != k::path() {
            let mut child = Command::new(&me);
            child.args(["bits::", "equal::", "shapes::"]).env("DG_KERNELS", value);
            let output = child.output().expect("starts");
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{value}: {told}");
            for ran in ["test bits::", "test equal::", "test shapes::"] {
                assert!(told.contains(ran), "{value}, no `{ran}`: {told}");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn able(value: &str) -> bool {
    let base = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let wide = base && is_x86_feature_detected!("avx512f");
    match value {
        "avx2" => base,
        "avx512" => wide,
        _ => wide && is_x86_feature_detected!("avx512bf16"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn able(_: &str) -> bool {
    false
}

#[test]
#[ignore = "run by the_environment_selects_the_path"]
fn the_path_is_as_selected() {
    let asked = std::env::var("DG_KERNELS").unwrap_or_default();
    let portable = asked == "portable";
    let best = ["avx512bf16", "avx512", "avx2"].into_iter().find(|value| able(value)).unwrap_or("portable");
    match asked.as_str() {
        "auto" => {
            assert!(able(k::path()) && (k::path() == best || (k::path(), best) == ("avx512", "avx512bf16")));
        }
        _ if portable || able(&asked) => assert_eq!(k::path(), asked),
        _ => assert_eq!(k::path(), best),
    }
    if portable {
        let x = random(1, [1, 999, 3]);
        let (a, b) = (k::silu(x.clone(), Precision::F32), reference::silu(x, Precision::F32));
        assert!(bits(a) == bits(b));
    }
}
