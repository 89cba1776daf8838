//! Settings of a command: TOML, environment and flags, before the model is known.

use crate::args::T2iArgs;
use crate::failure::Failure;
use crate::log::EnvFilter;
use crate::{log, machine};
use dg_config::{EnvError, FileError, Key, Layers, Settings};
use dg_core::{DType, TimeDtype};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

impl From<FileError> for Failure {
    fn from(e: FileError) -> Self {
        Self { hint: e.hint.clone(), ..Self::config(e.to_string()) }
    }
}

impl From<EnvError> for Failure {
    fn from(e: EnvError) -> Self {
        Self::config(e.to_string()).hint(e.hint)
    }
}

/// Reads all layers but the model's and starts logging.
pub(crate) fn layers(args: &T2iArgs) -> Result<Layers, Failure> {
    let mut layers = Layers::default();
    let env: Vec<(String, String)> = std::env::vars_os().filter_map(ours).collect();
    let from_env = env.iter().find(|(name, _)| name == "DG_CONFIG").map(|(_, path)| PathBuf::from(path));
    if let Some(path) = args.common.config.clone().or_else(|| from_env.filter(|p| !p.as_os_str().is_empty()))
    {
        layers.add_file(&path, &config_text(&path)?)?;
    }
    let filter = log_filter(&env)?;
    layers.add_env(env)?;
    layers.add_flags(args.flags.0.iter().cloned());
    log::start(&layers.resolve(), args.common.verbose, filter);
    layers.warnings().iter().for_each(log::warn_once);
    Ok(layers)
}

/// A variable that may matter here, as text.
fn ours((name, value): (OsString, OsString)) -> Option<(String, String)> {
    let name = name.into_string().ok()?;
    (name.starts_with("DG_") || name == "RUST_LOG").then(|| (name, value.to_string_lossy().into_owned()))
}

fn config_text(path: &Path) -> Result<String, Failure> {
    let fail = |what: String| {
        Failure::config(format!("config {}: {what}", path.display())).hint("check --config and DG_CONFIG")
    };
    let size = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(fail(format!("{size} bytes, more than {CONFIG_BYTES_MAX}")));
    }
    std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))
}

/// `DG_LOG`, or else `RUST_LOG`, which belongs to others too and is ignored when it makes no sense.
fn log_filter(env: &[(String, String)]) -> Result<Option<EnvFilter>, Failure> {
    let of = |name: &str| env.iter().find(|(n, text)| n == name && !text.is_empty()).map(|(_, text)| text);
    match (of("DG_LOG"), of("RUST_LOG")) {
        (Some(text), _) => text.parse().map(|t| Some(EnvFilter::Own(t))).map_err(|e| {
            Failure::config(format!("environment variable DG_LOG: `{text}`: {e}"))
                .hint("use a level (error, warn, info, debug, trace) or target=level,…")
        }),
        (None, text) => Ok(text.and_then(|t| t.parse().ok()).map(EnvFilter::Shared)),
    }
}

/// Refuses what needs the parallel engine or a GPU.
pub(crate) fn refuse_unplanned(settings: &Settings) -> Result<(), Failure> {
    let degrees =
        [Key::NumGpus, Key::DataParallelDegree, Key::UlyssesDegree, Key::RingDegree, Key::PipefusionDegree];
    let asked = |key: Key| settings.origin(key).map(|o| format!(" ({o})")).unwrap_or_default();
    for key in degrees {
        let degree = settings.integer(key);
        if degree != 1 {
            let message =
                format!("{} = {degree}{} needs the parallel engine", key.setting().name, asked(key));
            return Err(not_here(message).hint("set it to 1: this version computes on one rank"));
        }
    }
    if settings.switch(Key::UseCfgParallel) {
        let message = format!("use_cfg_parallel{} needs the parallel engine", asked(Key::UseCfgParallel));
        return Err(not_here(message).hint("set it to false: this version computes on one rank"));
    }
    refuse_pipeline(settings)?;
    if settings.text(Key::Device) == Some("cuda") {
        let message = format!("device cuda{}: this build has no CUDA", asked(Key::Device));
        return Err(Failure::infeasible(message).hint("use --device cpu or leave it out"));
    }
    Ok(())
}

/// Refuses what would change how a pipeline of ranks works. Values that change nothing are fine, so
/// that the output of `config show` can be read again.
fn refuse_pipeline(settings: &Settings) -> Result<(), Failure> {
    let other = |key: Key, neutral: u64| settings.integer_if_any(key).is_some_and(|n| n != neutral);
    let asked = [
        (Key::NumPipelinePatch, other(Key::NumPipelinePatch, 1)),
        (Key::WarmupSteps, other(Key::WarmupSteps, 1)),
        (Key::Pipeline, settings.text(Key::Pipeline) == Some("stale")),
    ];
    let Some((key, _)) = asked.into_iter().find(|(_, is_asked)| *is_asked) else { return Ok(()) };
    let value = settings.value(key).map(ToString::to_string).unwrap_or_default();
    let origin = settings.origin(key).map(|o| format!(" ({o})")).unwrap_or_default();
    let message = format!("{} = {value}{origin} needs the parallel engine", key.setting().name);
    Err(not_here(message).hint("leave it out: it comes with the parallel engine"))
}

fn not_here(message: String) -> Failure {
    Failure::infeasible(message + ", which is not in this version")
}

/// Format of the arithmetic; auto is float32 on a CPU.
pub(crate) fn dtype(settings: &Settings) -> DType {
    match settings.text(Key::Dtype) {
        Some("bfloat16") => DType::Bfloat16,
        _ => DType::Float32,
    }
}

/// Format of time and guidance.
pub(crate) fn time_dtype(settings: &Settings) -> TimeDtype {
    match settings.text(Key::TimeDtype) {
        Some("float32") => TimeDtype::Float32,
        _ => TimeDtype::Model,
    }
}

/// Threads of the computation.
pub(crate) fn threads(settings: &Settings) -> NonZeroUsize {
    let asked = settings.integer_if_any(Key::Threads).and_then(|n| NonZeroUsize::new(n as usize));
    asked.unwrap_or_else(machine::physical_cores)
}

const CONFIG_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use dg_core::ExitCode;

    fn check(name: &str, value: &str, refused: Option<&str>) {
        let mut layers = Layers::default();
        layers.add_env([(name.to_string(), value.to_string())]).unwrap();
        match (refuse_unplanned(&layers.resolve()), refused) {
            (Ok(()), None) => (),
            (Err(e), Some(part)) => {
                assert!(e.message.contains(part) && e.message.contains(name), "{}", e.message);
                assert!(e.exit == ExitCode::Infeasible && e.hint.is_some());
            }
            (got, expect) => panic!("{name}={value}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn one_rank_on_the_cpu_is_all_there_is() {
        check("DG_XDIT_ULYSSES_DEGREE", "2", Some("ulysses_degree = 2"));
        check("DG_XDIT_ULYSSES_DEGREE", "1", None);
        check("DG_T2I_NUM_GPUS", "2", Some("num_gpus = 2"));
        check("DG_XDIT_USE_CFG_PARALLEL", "yes", Some("use_cfg_parallel"));
        check("DG_T2I_DEVICE", "cuda", Some("no CUDA"));
        check("DG_T2I_DEVICE", "cpu", None);
        check("DG_T2I_BACKEND", "xdit", None);
        check("DG_XDIT_NUM_PIPELINE_PATCH", "4", Some("num_pipeline_patch = 4"));
        check("DG_XDIT_NUM_PIPELINE_PATCH", "1", None);
        check("DG_XDIT_WARMUP_STEPS", "3", Some("warmup_steps = 3"));
        check("DG_XDIT_WARMUP_STEPS", "0", Some("warmup_steps = 0"));
        check("DG_XDIT_PIPELINE", "stale", Some("pipeline = stale"));
        check("DG_XDIT_PIPELINE", "exact", None);
    }

    #[test]
    fn a_bad_log_filter_names_its_variable() {
        let env = |name: &str, text: &str| vec![(name.to_string(), text.to_string())];
        assert!(log_filter(&env("DG_LOG", "debug")).unwrap().is_some());
        assert!(log_filter(&env("DG_LOG", "x=y=z")).unwrap_err().message.contains("DG_LOG"));
        assert!(log_filter(&env("RUST_LOG", "x=y=z")).unwrap().is_none());
    }
}
