//! What settings ask for: the work of a run and how it is to be laid out. Pure.

use crate::{EngineOptions, Parallel};
use dg_config::{Key, Origin, Settings};
use dg_core::{DType, ExitCode, TimeDtype};
use dg_flux::DeviceKind;
use dg_plan::{Ask, Balance, Layout, Pipeline, Work};
use std::num::NonZeroUsize;

/// A `stage_balance` that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stage_balance `{text}`{}: expected time, memory, or the blocks of each stage",
    origin.as_ref().map(|o| format!(" ({o})")).unwrap_or_default()
)]
pub struct BadBalance {
    /// As given.
    pub text: String,
    /// Where it comes from.
    pub origin: Option<Origin>,
}

impl BadBalance {
    /// How a program that was asked for it ends.
    pub fn exit(&self) -> ExitCode {
        if self.origin == Some(Origin::Flag) { ExitCode::Usage } else { ExitCode::Config }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        "write the numbers of blocks with commas, as in 14,14,14,15".into()
    }
}

/// The degrees that settings name.
pub fn degrees(settings: &Settings) -> Layout {
    let degree = |key: Key| settings.integer(key) as u32;
    Layout {
        dp: degree(Key::DataParallelDegree),
        cfg: 1 + u32::from(settings.switch(Key::UseCfgParallel)),
        pp: degree(Key::PipefusionDegree),
        ring: degree(Key::RingDegree),
        ulysses: degree(Key::UlyssesDegree),
    }
}

/// What settings ask for. Memory is not bounded.
///
/// # Errors
/// If `stage_balance` is neither a word nor a list.
pub fn ask(settings: &Settings) -> Result<Ask, BadBalance> {
    Ok(Ask {
        num_gpus: settings.integer_if_any(Key::NumGpus),
        patches: settings.integer_if_any(Key::NumPipelinePatch).map(|n| n as usize),
        warmup: settings.integer(Key::WarmupSteps) as usize,
        pipeline: match settings.text(Key::Pipeline) {
            Some("exact") => Pipeline::Exact,
            Some("stale") => Pipeline::Stale,
            _ => Pipeline::Auto,
        },
        balance: balance(settings)?,
        ..Ask::layout(degrees(settings))
    })
}

/// How blocks are shared out: equal times, equal memory, or a list of their numbers.
fn balance(settings: &Settings) -> Result<Balance, BadBalance> {
    let text = settings.text(Key::StageBalance).unwrap_or("time").trim();
    let list = || text.split(',').map(|n| n.trim().parse().ok()).collect::<Option<Vec<usize>>>();
    match text {
        "time" => Ok(Balance::Time),
        "memory" => Ok(Balance::Memory),
        _ => list().map(Balance::Given).ok_or_else(|| BadBalance {
            text: text.into(),
            origin: settings.origin(Key::StageBalance).cloned(),
        }),
    }
}

/// Whether a degree was given by somebody.
pub fn has_degrees(settings: &Settings) -> bool {
    let keys = [Key::DataParallelDegree, Key::UlyssesDegree, Key::RingDegree, Key::PipefusionDegree];
    keys.iter().chain([&Key::UseCfgParallel]).any(|key| settings.is_asked(*key))
}

/// The work that settings describe, of `images` pictures or else those of one prompt; `one` has the shape and the size.
pub fn work(settings: &Settings, one: Work, images: Option<usize>, is_cpu: bool) -> Work {
    let request_images = settings.integer(Key::NumImagesPerPrompt) as usize;
    let dtype = match settings.text(Key::Dtype) {
        Some("float32") => DType::Float32,
        Some("bfloat16") => DType::Bfloat16,
        _ if is_cpu => DType::Float32,
        _ => DType::Bfloat16,
    };
    Work {
        text_tokens: settings.integer(Key::MaxSequenceLength) as usize,
        steps: settings.integer(Key::NumInferenceSteps) as usize,
        images: images.unwrap_or(request_images),
        request_images,
        batch: settings.integer(Key::BatchSize) as usize,
        true_cfg: settings.number(Key::TrueCfgScale) > 1.0 && settings.text(Key::NegativePrompt).is_some(),
        dtype,
        ..one
    }
}

/// The number of ranks for which a layout is to be found: more than one, and no degree was given.
pub fn ranks_to_fill(settings: &Settings) -> Option<u64> {
    settings.integer_if_any(Key::NumGpus).filter(|n| *n > 1 && !has_degrees(settings))
}

/// Format of the arithmetic on ranks of that kind: `auto` is float32 on the CPU, bfloat16 on a GPU.
pub fn dtype(settings: &Settings, device: DeviceKind) -> DType {
    match (settings.text(Key::Dtype), device) {
        (Some("bfloat16"), _) => DType::Bfloat16,
        (Some("float32"), _) | (_, DeviceKind::Cpu) => DType::Float32,
        (_, DeviceKind::Cuda) => DType::Bfloat16,
    }
}

/// Whether float32 matrices are multiplied as TF32, as far as that has an effect: on GPUs, and not in a bfloat16 run.
pub fn tf32(settings: &Settings, device: DeviceKind) -> bool {
    let has_effect = device == DeviceKind::Cuda && dtype(settings, device) == DType::Float32;
    settings.switch(Key::EnableTf32) && has_effect
}

/// What ranks of this process compute on: the CPU, unless a GPU is asked for.
pub fn device(settings: &Settings) -> DeviceKind {
    asked_device(settings).unwrap_or_default()
}

/// What is asked for by name.
pub fn asked_device(settings: &Settings) -> Option<DeviceKind> {
    match settings.text(Key::Device) {
        Some("cuda") => Some(DeviceKind::Cuda),
        Some("cpu") => Some(DeviceKind::Cpu),
        _ => None,
    }
}

/// Format of time and guidance.
pub fn time_dtype(settings: &Settings) -> TimeDtype {
    match settings.text(Key::TimeDtype) {
        Some("float32") => TimeDtype::Float32,
        _ => TimeDtype::Model,
    }
}

/// What a cluster is started with, on ranks as `ask` has them. Threads are those of the settings, or the processors
/// shared out among the ranks.
pub fn options(settings: &Settings, ask: Ask, trace: bool) -> EngineOptions {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let share = processors / usize::try_from(ask.layout.ranks()).unwrap_or(usize::MAX).max(1);
    let threads = settings.integer_if_any(Key::Threads).map_or(share, |n| n as usize);
    EngineOptions {
        dtype: dtype(settings, device(settings)),
        time_dtype: time_dtype(settings),
        tf32: tf32(settings, device(settings)),
        threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        vae_tiling: settings.switch_if_any(Key::EnableVaeTiling),
        release_encoders: false,
        parallel: Parallel {
            ask,
            request_images: settings.integer(Key::NumImagesPerPrompt) as usize,
            trace,
            ..Parallel::default()
        },
        device: device(settings),
        ranks_on: asked_device(settings),
        priority: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::Layers;
    use std::path::Path;

    fn settings(toml: &str) -> Settings {
        let mut layers = Layers::default();
        layers.add_file(Path::new("a.toml"), toml).unwrap();
        layers.resolve()
    }

    #[test]
    fn a_file_says_how_a_cluster_is_started() {
        let text = "[model]\ndtype = \"bfloat16\"\n[parallel]\nulysses_degree = 2\npipefusion_degree = 3\n\
                    stage_balance = \"1, 2,3\"\nthreads = 5\n[generate]\nnum_images_per_prompt = 4\n";
        let s = settings(text);
        let options = options(&s, ask(&s).unwrap(), true);
        assert_eq!((options.dtype, options.threads.get()), (DType::Bfloat16, 5));
        assert_eq!((options.parallel.request_images, options.parallel.trace), (4, true));
        let ask = options.parallel.ask;
        assert_eq!(ask.layout, Layout { ulysses: 2, pp: 3, ..Layout::SERIAL });
        assert_eq!(ask.balance, Balance::Given(vec![1, 2, 3]));
        let bad = ask_of("[parallel]\nstage_balance = \"evenly\"\n").unwrap_err();
        assert!(bad.to_string().contains("`evenly`"), "{bad}");
        assert_eq!(ranks_to_fill(&settings("[parallel]\nnum_gpus = 4\n")), Some(4));
        assert_eq!(ranks_to_fill(&settings("[parallel]\nnum_gpus = 4\nring_degree = 4\n")), None);
    }

    fn ask_of(toml: &str) -> Result<Ask, BadBalance> {
        ask(&settings(toml))
    }
}
