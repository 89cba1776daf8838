//! What a running job tells whoever started it.

use serde::{Deserialize, Serialize};

/// Progress of one batch of images. `images` are positions in the submitted list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepEvent {
    /// A prompt was longer than its text encoder reads.
    PromptTruncated {
        /// `CLIP` or `T5`.
        encoder: String,
        /// Tokens that were read.
        tokens_max: usize,
        /// The text that was cut off.
        cut: String,
    },
    /// The prompts are encoded.
    TextEncoded {
        /// Images of the batch.
        images: Vec<usize>,
        /// Time it took.
        seconds: f64,
    },
    /// One denoising step is done.
    Step {
        /// Images of the batch.
        images: Vec<usize>,
        /// Steps done so far, from 1.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Time this step took.
        seconds: f64,
    },
    /// One image is decoded.
    Decoded {
        /// The image.
        image: usize,
        /// Time it took.
        seconds: f64,
    },
}
