//! Machines without AVX2, and other processors: the goldens by plain burn operations, and by the kernels that this
//! machine does not take by itself.

use std::process::Command;

/// What the tests of `filters` say with `DG_KERNELS` of that value. The kernels of a process are chosen once: hence
/// another one.
fn told(kernels: &str, filters: &[&str]) -> String {
    let mut child = Command::new(std::env::current_exe().expect("a test binary"));
    child.env("DG_KERNELS", kernels).args(filters);
    let output = child.args(["portable::path_is_as_asked", "--include-ignored"]).output().expect("starts");
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{failed}");
    told.into_owned()
}

#[test]
fn portable_kernels_meet_the_goldens() {
    if dg_kernels::path() == "portable" {
        return eprintln!("SKIPPED portable_kernels_meet_the_goldens: all of this suite runs on them");
    }
    let told = told(
        "portable",
        &["cases::", "trace::", "text::", "vae::decoder", "vae::encoders", "demo::the_five"],
    );
    for test in [
        "path_is_as_asked",
        "dev_in_float32",
        "schnell_in_bfloat16",
        "every_block_of_the_traced_pass",
        "embeddings_of_every_float32_case",
        "decoder_of_schnell",
        "encoders",
        "the_five_pictures_of_the_demo_model",
    ] {
        assert!(told.contains(&format!("{test} ... ok")), "{test}: {told}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn other_kernels_meet_a_golden_in_bfloat16() {
    let wide = is_x86_feature_detected!("avx512f");
    let dots = wide && is_x86_feature_detected!("avx512bf16");
    for (kernels, able) in
        [("avx2", is_x86_feature_detected!("avx2")), ("avx512", wide), ("avx512bf16", dots)]
    {
        if !able {
            eprintln!("SKIPPED: {kernels}, which this machine has not");
        } else if kernels != dg_kernels::path() {
            let told = told(kernels, &["cases::dev_in_bfloat16"]);
            for test in ["path_is_as_asked", "dev_in_bfloat16"] {
                assert!(told.contains(&format!("{test} ... ok")), "{kernels}, {test}: {told}");
            }
        }
    }
}

#[test]
#[ignore = "run by the others"]
fn path_is_as_asked() {
    assert_eq!(Some(dg_kernels::path()), std::env::var("DG_KERNELS").ok().as_deref());
}
