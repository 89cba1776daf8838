//! Feature `kernel-cache`: a second start compiles nothing. Counted on the emulated device, which has a file for each
//! kernel that it was asked to compile.

use burn::tensor::DType;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

use crate::{device, get, numbers, put};

#[test]
#[ignore = "run by kernels_stay_from_start_to_start"]
fn a_start() {
    let device = device().expect("the parent saw one");
    let values = numbers(64 * 64, 3);
    let x = put(&values, [64, 64], DType::F32, &device);
    let sums = get((x.clone().matmul(x) * 2.0).sum_dim(1));
    assert!(sums.iter().all(|sum| sum.is_finite()));
}

/// How many kernels a new process had compiled, into which folder. What is kept names files there.
fn compiled(kept: &Path) -> (usize, TempDir) {
    let own = tempfile::tempdir().unwrap();
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kept::a_start", "--ignored"])
        .env("XDG_CACHE_HOME", kept)
        .env("DG_EMULATED_CACHE", own.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    (std::fs::read_dir(own.path()).unwrap().count(), own)
}

#[test]
fn kernels_stay_from_start_to_start() {
    if std::env::var_os("DG_EMULATED_CACHE").is_none() {
        eprintln!("SKIPPED: not the emulated device, which tests/gpu/emulator/with.sh makes");
        return;
    }
    let kept = tempfile::tempdir().unwrap();
    let (first, _libraries) = compiled(kept.path());
    assert!(first > 2, "{first}");
    assert_eq!(compiled(kept.path()).0, 0);
}
