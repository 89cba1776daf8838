//! What settings ask for: the work of a run and how it is to be laid out. Pure.

use dg_config::{Key, Origin, Settings};
use dg_core::{DType, ExitCode};
use dg_plan::{Ask, Balance, Layout, Pipeline, Work};

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
