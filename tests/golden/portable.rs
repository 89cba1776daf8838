//! Machines without AVX2, and other processors: the goldens by plain burn operations.

use std::process::Command;

/// The kernels of a process are chosen once: hence another one.
#[test]
fn portable_kernels_meet_the_goldens() {
    if dg_kernels::path() == "portable" {
        return eprintln!("SKIPPED portable_kernels_meet_the_goldens: all of this suite runs on them");
    }
    let mut child = Command::new(std::env::current_exe().expect("a test binary"));
    child.env("DG_KERNELS", "portable");
    child.args([
        "cases::",
        "trace::",
        "text::",
        "vae::decoder",
        "portable::path_is_portable",
        "--include-ignored",
    ]);
    let output = child.output().expect("starts");
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{failed}");
    let ran = ["path_is_portable", "dev_in_float32", "schnell_in_bfloat16", "every_block_of_the_traced_pass"];
    for test in ran.into_iter().chain(["embeddings_of_every_float32_case", "decoder_of_schnell"]) {
        assert!(told.contains(&format!("{test} ... ok")), "{test}: {told}");
    }
}

#[test]
#[ignore = "run by portable_kernels_meet_the_goldens"]
fn path_is_portable() {
    assert_eq!(dg_kernels::path(), "portable");
}
