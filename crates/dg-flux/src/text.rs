//! Prompts → what the transformer reads of them.

use crate::clip::Clip;
use crate::t5::T5;
use crate::tokenizer::{CLIP_TOKENS, PromptTokenizer};
use crate::watch::Watch;
use crate::weights::Pages;
use crate::{ModelError, ModelRepo, RunError};
use burn::tensor::{Device, Tensor};
use dg_core::StepEvent;
use dg_kernels::Precision;
use std::collections::VecDeque;

/// Encoded prompts that are kept for the next batch: negative prompts recur.
const KEPT_MAX: usize = 8;

/// Both tokenizers and both encoders.
pub struct TextEncoder {
    clip_tokenizer: PromptTokenizer,
    t5_tokenizer: PromptTokenizer,
    clip: Clip,
    t5: T5,
    clip_tokens: usize,
    kept: VecDeque<(Prompt, Embedding)>,
    pages: Vec<Pages>,
}

/// One prompt as the encoders read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// For CLIP.
    pub clip: String,
    /// For T5.
    pub t5: String,
    /// T5 tokens.
    pub tokens: usize,
}

/// One or more encoded prompts.
#[derive(Clone)]
pub struct Embedding {
    /// T5: `[prompts, tokens, width]`.
    pub text: Tensor<3>,
    /// CLIP: `[prompts, width]`.
    pub pooled: Tensor<2>,
}

impl Embedding {
    /// Several prompts of equal length in one.
    pub fn stack(all: Vec<Self>) -> Self {
        let (text, pooled) = all.into_iter().map(|e| (e.text, e.pooled)).unzip();
        Self { text: Tensor::cat(text, 0), pooled: Tensor::cat(pooled, 0) }
    }
}

impl TextEncoder {
    /// Loads tokenizers and encoders; also says how many bytes of weights they use, and which tensors they do not.
    pub fn load(
        repo: &ModelRepo,
        device: &Device,
        p: Precision,
    ) -> Result<(Self, u64, Vec<String>), ModelError> {
        let shape = repo.shape();
        // most of the time that loading a model takes
        let (t5_tokenizer, clip_tokenizer) =
            rayon::join(|| PromptTokenizer::t5(repo.source()), || PromptTokenizer::clip(repo.source()));
        let (clip_tokenizer, t5_tokenizer) = (clip_tokenizer?, t5_tokenizer?);
        for (tokenizer, vocab) in [(&clip_tokenizer, shape.clip.vocab), (&t5_tokenizer, shape.t5.vocab)] {
            let largest = tokenizer.largest_id();
            if largest as usize >= vocab {
                let reason = format!("it has a token {largest}, the encoder has {vocab} tokens");
                let hint = "tokenizer and encoder belong to different models".into();
                return Err(ModelError::Tokenizer { file: tokenizer.file().into(), reason, hint });
            }
        }
        let (clip_weights, t5_weights) = (repo.clip.loader(device, p), repo.t5.loader(device, p));
        let encoder = Self {
            clip_tokenizer,
            t5_tokenizer,
            clip: Clip::load(&clip_weights, &shape.clip)?,
            t5: T5::load(&t5_weights, &shape.t5)?,
            clip_tokens: shape.clip.positions.min(CLIP_TOKENS),
            kept: VecDeque::new(),
            pages: clip_weights.used_pages().into_iter().chain(t5_weights.used_pages()).collect(),
        };
        let mut unused = clip_weights.unused(&["text_model.embeddings.position_ids", "text_projection"]);
        unused.extend(t5_weights.unused(&["encoder.embed_tokens.weight", "shared.weight"]));
        Ok((encoder, clip_weights.used_bytes() + t5_weights.used_bytes(), unused))
    }

    /// How mapped weights of T5 are read, see [`Turns::keep`](crate::turns::Turns::keep).
    pub(crate) fn keep(&self, bytes: Option<u64>) {
        self.t5.turns().keep(bytes);
    }

    /// Bytes of T5's mapped weights.
    pub(crate) fn bytes(&self) -> u64 {
        self.t5.turns().bytes()
    }

    /// Gives back the memory of the mapped weights. They are mapped still, and read again for the next prompt.
    pub fn release(&self) {
        self.pages.iter().for_each(Pages::release);
    }

    /// Encodes one prompt, or takes it from those that were kept.
    pub fn encode(&mut self, prompt: &Prompt, watch: &mut dyn Watch) -> Result<Embedding, RunError> {
        if let Some((_, known)) = self.kept.iter().find(|(p, _)| p == prompt) {
            return Ok(known.clone());
        }
        let ids = self.clip_tokenizer.encode(&prompt.clip, self.clip_tokens)?;
        told(watch, "CLIP", self.clip_tokens, ids.cut);
        let pooled = self.clip.pooled(&[ids.ids], watch)?;
        let ids = self.t5_tokenizer.encode(&prompt.t5, prompt.tokens)?;
        told(watch, "T5", prompt.tokens, ids.cut);
        let text = self.t5.encode(&[ids.ids], watch)?;
        let embedding = Embedding { text, pooled };
        self.kept.push_front((prompt.clone(), embedding.clone()));
        self.kept.truncate(KEPT_MAX);
        Ok(embedding)
    }
}

fn told(watch: &mut dyn Watch, encoder: &str, tokens_max: usize, cut: Option<String>) {
    if let Some(cut) = cut {
        watch.event(StepEvent::PromptTruncated { encoder: encoder.into(), tokens_max, cut });
    }
}
