//! Flags of the Python original that have no meaning here, answered by name.

use crate::failure::Failure;
use crate::normalise;
use std::ffi::OsString;

/// Flag of the original, and what to use in its place.
pub(crate) const FLAGS: &[(&str, &str)] = &[
    ("node_rank", "all ranks run on one machine; leave it out, and say how many with --num_gpus"),
    ("num_nodes", "all ranks run on one machine; leave it out, and say how many with --num_gpus"),
    ("master_addr", "all ranks run on one machine; leave it out, and say how many with --num_gpus"),
    ("master_port", "all ranks run on one machine; leave it out, and say how many with --num_gpus"),
    ("optimize", "the kernels are compiled ahead of time and always on; leave it out"),
    ("optimization_config", "the kernels are compiled ahead of time and always on; leave it out"),
    ("torch_compile", "the kernels are compiled ahead of time; leave it out"),
    ("use_torch_compile", "the kernels are compiled ahead of time; leave it out"),
    ("compile", "the kernels are compiled ahead of time; leave it out"),
    ("use_onediff", "the kernels are compiled ahead of time; leave it out"),
    ("enable_xformers", "attention never holds the whole score matrix; leave it out"),
    ("attention_backend", "there is one attention kernel; leave it out"),
    ("enable_attention_slicing", "attention never holds the whole score matrix; leave it out"),
    (
        "enable_model_cpu_offload",
        "weights are mapped from disk, and those that do not fit are read again in each step; leave it out",
    ),
    (
        "enable_sequential_cpu_offload",
        "weights are mapped from disk, and those that do not fit are read again in each step; leave it out",
    ),
    ("max_retries", "a failed picture is made again by running the same command again"),
    ("log_dir", "messages go to standard error: redirect them with `2> FILE`, or use --report FILE"),
    ("output_path", "use --output_dir"),
    ("model", "use --model_name"),
    ("model_type", "the kind of model is read from its model_index.json; leave it out"),
    ("torch_dtype", "use --dtype"),
    ("guidance", "use --guidance_scale"),
    ("steps", "use --num_inference_steps"),
    ("tensor_parallel_degree", "there is no tensor parallelism; use --ulysses_degree"),
];

/// Refuses `t2i` command lines that use one of [`FLAGS`].
pub(crate) fn refuse(argv: &[OsString]) -> Result<(), Failure> {
    if argv.get(1).is_none_or(|command| command != "t2i") {
        return Ok(());
    }
    let pairs = argv.iter().skip(1).zip(argv.iter().skip(2));
    let flags = pairs.filter(|(before, _)| !normalise::takes_prompt(before)).map(|(_, token)| token);
    for token in flags.map_while(|t| (t != "--").then(|| t.to_str().unwrap_or(""))) {
        let Some(name) = token.strip_prefix("--").and_then(|t| t.split('=').next()) else { continue };
        if let Some((flag, instead)) = FLAGS.iter().find(|(flag, _)| *flag == name) {
            return Err(Failure::usage(format!("`--{flag}` has no meaning here")).hint(*instead));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dg_core::ExitCode;

    fn check(argv: &[&str], refused: bool) {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let result = refuse(&argv);
        assert_eq!(result.is_err(), refused, "{argv:?}");
        if let Err(e) = result {
            assert!(e.exit == ExitCode::Usage && e.hint.is_some());
        }
    }

    #[test]
    fn they_are_answered_by_name() {
        check(&["x", "t2i", "--torch_compile"], true);
        check(&["x", "t2i", "--prompt", "a", "--max_retries=3"], true);
        check(&["x", "t2i", "--prompt", "a"], false);
        check(&["x", "t2i", "--prompt", "--steps"], false);
        check(&["x", "t2i", "--", "--torch_compile"], false);
        check(&["x", "doctor", "--torch_compile"], false);
        check(&["x"], false);
    }

    #[test]
    fn none_of_them_is_a_flag_here() {
        for (flag, _) in FLAGS {
            assert!(!dg_config::SETTINGS.iter().any(|s| s.flag && s.name == *flag), "{flag}");
        }
    }
}
