//! Settings of a command: TOML, environment and flags, before the model is known.

use crate::args::{Common, SettingFlags};
use crate::failure::Failure;
use crate::log::EnvFilter;
use crate::{log, machine};
use dg_config::{ClusterFile, EnvError, FileError, Key, Layers, Settings};
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
pub(crate) fn layers(
    (flags, common): (&SettingFlags, &Common),
    cluster: Option<&ClusterFile>,
) -> Result<Layers, Failure> {
    let mut layers = Layers::default();
    let env: Vec<(String, String)> = std::env::vars_os().filter_map(ours).collect();
    let from_env = env.iter().find(|(name, _)| name == "DG_CONFIG").map(|(_, path)| PathBuf::from(path));
    if let Some(file) = cluster {
        layers.add_cluster_file(file);
    }
    if let Some(path) = common.config.clone().or_else(|| from_env.filter(|p| !p.as_os_str().is_empty())) {
        layers.add_file(&path, &config_text(&path, "--config and DG_CONFIG")?)?;
    }
    let filter = log_filter(&env)?;
    layers.add_env(env)?;
    layers.add_flags(flags.0.iter().cloned());
    log::start(&layers.resolve(), common.verbose, filter);
    layers.warnings().iter().for_each(log::warn_once);
    Ok(layers)
}

/// A variable that may matter here, as text.
fn ours((name, value): (OsString, OsString)) -> Option<(String, String)> {
    let name = name.into_string().ok()?;
    (name.starts_with("DG_") || name == "RUST_LOG").then(|| (name, value.to_string_lossy().into_owned()))
}

pub(crate) fn config_text(path: &Path, flag: &str) -> Result<String, Failure> {
    let fail = |what: String| {
        Failure::config(format!("config {}: {what}", path.display())).hint(format!("check {flag}"))
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

/// Refuses kernels and a device that are not there, and ranks that the serial backend does not have.
pub(crate) fn check_machine(settings: &Settings) -> Result<(), Failure> {
    if let Err(text) = dg_flux::check_kernels() {
        let (what, hint) = text.split_once("; hint: ").unwrap_or((&text, "leave it out"));
        return Err(Failure::config(what).hint(hint));
    }
    let asked = |key: Key| settings.origin(key).map(|o| format!(" ({o})")).unwrap_or_default();
    if settings.text(Key::Device) == Some("cuda")
        && let Some(obstacle) = no_gpu()
    {
        let (what, hint) = obstacle.split_once("; hint: ").unwrap_or((&obstacle, "docs/gpu.md has more"));
        let message = format!("device cuda{}: {what}", asked(Key::Device));
        return Err(Failure::infeasible(message).hint(format!("{hint}, or use --device cpu")));
    }
    if settings.text(Key::Backend) != Some("serial") {
        return Ok(());
    }
    let many = |key: &Key| settings.integer_if_any(*key).is_some_and(|n| n > 1);
    let key = DEGREES.into_iter().find(many).or_else(|| {
        let is_cfg = settings.switch(Key::UseCfgParallel);
        is_cfg.then_some(Key::UseCfgParallel)
    });
    let Some(key) = key else { return Ok(()) };
    let value = settings.value(key).map(ToString::to_string).unwrap_or_default();
    let message = format!(
        "backend serial{} computes on one rank, and {} = {value}{}",
        asked(Key::Backend),
        key.setting().name,
        asked(key)
    );
    Err(Failure::infeasible(message).hint("use --backend xdit or leave it out, or set every degree to 1"))
}

/// Why there is no GPU for this program.
#[cfg(feature = "cuda")]
fn no_gpu() -> Option<String> {
    dg_nccl::facts::look().obstacle()
}

#[cfg(not(feature = "cuda"))]
fn no_gpu() -> Option<String> {
    Some("this build has no CUDA; hint: build it with `--features cuda` (docs/gpu.md)".into())
}

/// Refuses what this version does not do on GPUs: ranks of one program would share one device.
pub(crate) fn check_gpus(settings: &Settings, ranks: usize) -> Result<(), Failure> {
    if settings.text(Key::Device) != Some("cuda") || ranks == 1 {
        return Ok(());
    }
    let message = format!("{ranks} ranks on GPUs: this version computes on one GPU");
    Err(Failure::infeasible(message).hint("leave the degrees and --num_gpus out, or use --device cpu"))
}

/// Threads of one of `ranks` ranks: as asked, or its share of the cores.
pub(crate) fn threads(settings: &Settings, ranks: u64) -> NonZeroUsize {
    let asked = settings.integer_if_any(Key::Threads).and_then(|n| NonZeroUsize::new(n as usize));
    let share = || {
        let ranks = usize::try_from(ranks).unwrap_or(usize::MAX).max(1);
        NonZeroUsize::new(machine::physical_cores().get() / ranks).unwrap_or(NonZeroUsize::MIN)
    };
    asked.unwrap_or_else(share)
}

/// Settings that count ranks.
const DEGREES: [Key; 5] =
    [Key::NumGpus, Key::UlyssesDegree, Key::RingDegree, Key::PipefusionDegree, Key::DataParallelDegree];
const CONFIG_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use dg_core::ExitCode;

    fn check(env: &[(&str, &str)], refused: Option<&str>) {
        let mut layers = Layers::default();
        layers.add_env(env.iter().map(|(name, value)| (name.to_string(), value.to_string()))).unwrap();
        match (check_machine(&layers.resolve()), refused) {
            (Ok(()), None) => (),
            (Err(e), Some(part)) => {
                assert!(e.message.contains(part) && e.message.contains(env[0].0), "{}", e.message);
                assert!(e.exit == ExitCode::Infeasible && e.hint.is_some());
            }
            (got, expect) => panic!("{env:?}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn a_cpu_has_no_cuda_and_serial_no_ranks() {
        check(&[("DG_T2I_DEVICE", "cuda")], Some("no CUDA"));
        check(&[("DG_T2I_DEVICE", "cpu")], None);
        let serial = ("DG_T2I_BACKEND", "serial");
        check(&[serial], None);
        check(&[serial, ("DG_XDIT_ULYSSES_DEGREE", "1")], None);
        check(
            &[serial, ("DG_XDIT_ULYSSES_DEGREE", "2")],
            Some("ulysses_degree = 2 (DG_XDIT_ULYSSES_DEGREE)"),
        );
        check(&[serial, ("DG_T2I_NUM_GPUS", "2")], Some("num_gpus = 2"));
        check(&[serial, ("DG_XDIT_USE_CFG_PARALLEL", "on")], Some("use_cfg_parallel = true"));
        check(&[("DG_T2I_BACKEND", "xdit"), ("DG_XDIT_RING_DEGREE", "2")], None);
    }

    #[test]
    fn cores_are_shared_out() {
        let settings = Layers::default().resolve();
        assert_eq!(threads(&settings, 1), machine::physical_cores());
        assert_eq!(threads(&settings, 1 << 20), NonZeroUsize::MIN);
        let mut layers = Layers::default();
        layers.add_flags([(Key::Threads, dg_config::Value::Integer(3))]);
        assert_eq!(threads(&layers.resolve(), 8).get(), 3);
    }

    #[test]
    fn a_bad_log_filter_names_its_variable() {
        let env = |name: &str, text: &str| vec![(name.to_string(), text.to_string())];
        assert!(log_filter(&env("DG_LOG", "debug")).unwrap().is_some());
        assert!(log_filter(&env("DG_LOG", "x=y=z")).unwrap_err().message.contains("DG_LOG"));
        assert!(log_filter(&env("RUST_LOG", "x=y=z")).unwrap().is_none());
    }
}
