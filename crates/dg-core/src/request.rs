//! One image to make, and everything that determines its pixels.

use crate::{DType, ImageSize, NoiseIndex, Scale, Seed, SequenceLength, Steps, TimeDtype};
use serde::{Deserialize, Serialize};

/// One image to make. Equal requests give equal pixels, whatever they are batched with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// What to draw; read by CLIP, and by T5 unless `prompt_2` is given.
    pub prompt: String,
    /// Another prompt for T5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// What to move away from; counts only when `true_cfg_scale` is above 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Size of the picture.
    pub size: ImageSize,
    /// Denoising steps. Ignored when `sigmas` are given.
    pub num_inference_steps: Steps,
    /// Noise levels in place of the even spacing 1 … 1/n; shifted by the scheduler all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<Vec<f64>>,
    /// Distilled guidance, an input of models with a guidance embedding (FLUX.1-dev).
    pub guidance_scale: Scale,
    /// Classifier-free guidance with a second forward pass; above 1 and with a negative prompt only.
    pub true_cfg_scale: Scale,
    /// T5 tokens.
    pub max_sequence_length: SequenceLength,
    /// Seed of the starting noise.
    pub seed: Seed,
    /// Which image of the seed's noise stream this is: image k of a batch that diffusers draws from
    /// one generator has k here. 0 for an image with a seed of its own.
    #[serde(default, skip_serializing_if = "NoiseIndex::is_zero")]
    pub noise_index: NoiseIndex,
}

impl GenerateRequest {
    /// A request with the defaults of FLUX.1-dev: 28 steps, guidance 3.5, 512 text tokens.
    pub fn new(prompt: impl Into<String>, size: ImageSize, seed: Seed) -> Self {
        Self {
            prompt: prompt.into(),
            prompt_2: None,
            negative_prompt: None,
            size,
            num_inference_steps: Steps::try_from(28).expect("within limits"),
            sigmas: None,
            guidance_scale: Scale::try_from(3.5).expect("within limits"),
            true_cfg_scale: Scale::try_from(1.0).expect("within limits"),
            max_sequence_length: SequenceLength::try_from(512).expect("within limits"),
            seed,
            noise_index: NoiseIndex::default(),
        }
    }

    /// The prompt that T5 reads.
    pub fn t5_prompt(&self) -> &str {
        self.prompt_2.as_deref().unwrap_or(&self.prompt)
    }

    /// The negative prompt, if it takes part: true CFG needs a scale above 1 and a negative prompt
    /// (an empty one counts).
    pub fn active_negative(&self) -> Option<&str> {
        self.negative_prompt.as_deref().filter(|_| self.true_cfg_scale.value() > 1.0)
    }

    /// Steps that will run.
    pub fn steps(&self) -> usize {
        self.sigmas.as_ref().map_or_else(|| self.num_inference_steps.count(), Vec::len)
    }

    /// True when the two can share one batch: same token counts, same schedule, same number of
    /// passes. Prompts, seeds and scales may differ.
    pub fn batches_with(&self, other: &Self) -> bool {
        self.size == other.size
            && self.num_inference_steps == other.num_inference_steps
            && self.sigmas == other.sigmas
            && self.max_sequence_length == other.max_sequence_length
            && self.active_negative().is_some() == other.active_negative().is_some()
    }
}

/// Which model made a picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// Name as it was asked for: `demo`, a hub id, or the folder's name.
    pub id: String,
    /// blake3 over configs, safetensors headers and file sizes, hexadecimal.
    pub hash: String,
}

/// All that determines the pixels of a picture. No layout, host, time or thread count, so that
/// equal pictures are equal files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What was asked for.
    pub request: GenerateRequest,
    /// The model.
    pub model: ModelId,
    /// Format of the arithmetic.
    pub dtype: DType,
    /// Format of time and guidance in a bfloat16 run.
    pub time_dtype: TimeDtype,
    /// Whether GPUs multiplied float32 matrices as TF32.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
    /// Whether the VAE decoded in blended tiles, which changes the picture a little.
    pub vae_tiling: bool,
    /// The stale pipeline that made it, if one did; other layouts of ranks leave no trace in the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipefusion: Option<PipeFusion>,
}

/// What the picture of a stale pipeline depends on. The number of stages is not among it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeFusion {
    /// Patches that travel through the stages.
    pub patches: u32,
    /// Synchronous steps before the pipeline goes stale.
    pub warmup: u32,
}

/// A model's own defaults (`generation_config.json`); absent fields fall back to FLUX's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// Height in pixels.
    pub height: Option<u32>,
    /// Width in pixels.
    pub width: Option<u32>,
    /// Denoising steps.
    pub num_inference_steps: Option<u32>,
    /// Distilled guidance.
    pub guidance_scale: Option<f64>,
    /// True CFG scale.
    pub true_cfg_scale: Option<f64>,
    /// Negative prompt.
    pub negative_prompt: Option<String>,
    /// T5 tokens.
    pub max_sequence_length: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_json() {
        let (size, _) = ImageSize::fit(64, 64).unwrap();
        let mut r = GenerateRequest::new("a \"cat\"\n猫", size, Seed(u64::MAX));
        r.negative_prompt = Some(String::new());
        r.guidance_scale = Scale::try_from(3.1).unwrap();
        let text = serde_json::to_string(&r).unwrap();
        assert_eq!(serde_json::from_str::<GenerateRequest>(&text).unwrap(), r);
        assert!(!text.contains("noise_index") && !text.contains("sigmas"));
    }

    /// Jobs travel to a cluster as JSON: their sigmas must be the same bits there.
    #[test]
    fn sigmas_keep_their_bits_in_json() {
        let (size, _) = ImageSize::fit(64, 64).unwrap();
        let mut r = GenerateRequest::new("x", size, Seed(0));
        let bits = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12;
        r.sigmas = Some((1..5000).map(|i| f64::from_bits(0x3ff << 52 | bits(i)) - 1.0).collect());
        let text = serde_json::to_string(&r).unwrap();
        assert_eq!(serde_json::from_str::<GenerateRequest>(&text).unwrap().sigmas, r.sigmas);
    }

    #[test]
    fn true_cfg_needs_scale_and_negative_prompt() {
        let (size, _) = ImageSize::fit(64, 64).unwrap();
        let mut r = GenerateRequest::new("x", size, Seed(0));
        r.negative_prompt = Some(String::new());
        assert_eq!(r.active_negative(), None);
        r.true_cfg_scale = Scale::try_from(1.5).unwrap();
        assert_eq!(r.active_negative(), Some(""));
        r.negative_prompt = None;
        assert_eq!(r.active_negative(), None);
    }
}
