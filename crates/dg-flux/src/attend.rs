//! The one call through which blocks attend.

use crate::PassError;
use burn::tensor::Tensor;
use dg_kernels::Precision;

/// What a run of tokens brings to attention, each `[images, tokens, heads, head_dim]`.
pub struct Projected {
    /// Queries, normalised and rotated.
    pub q: Tensor<4>,
    /// Keys, normalised and rotated.
    pub k: Tensor<4>,
    /// Values.
    pub v: Tensor<4>,
}

/// Which forward pass of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Denoising step, from 0.
    pub step: usize,
    /// Branch of true CFG in the order of computing: 0, and 1 for the second pass of a step.
    pub branch: usize,
    /// First picture of the pass in its batch.
    pub image: usize,
    /// The patch that goes through the blocks alone; absent, the whole sequence does.
    pub patch: Option<usize>,
}

/// Brings queries, keys and values together. A block hands over those of its own tokens, text
/// first, and gets the attention output for the same tokens: where the others' keys come from is
/// this trait's business, so that block code knows nothing of ranks.
pub trait Attend {
    /// A forward pass begins: the next call of [`attend`](Self::attend) is that of its first block.
    fn begin(&mut self, pass: Pass) {
        let _ = pass;
    }

    /// Every token of every part sees the tokens of all parts, and those that other ranks hold. The results
    /// `[images, tokens, heads, head_dim]` stand in the order of `parts`. There is at least one part; parts may
    /// have no tokens.
    ///
    /// # Errors
    /// [`PassError`] if another rank cannot be reached or the run is over.
    fn attend(
        &mut self,
        parts: Vec<Projected>,
        scale: f32,
        p: Precision,
    ) -> Result<Vec<Tensor<4>>, PassError>;
}

/// All tokens are here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Attend for Serial {
    fn attend(
        &mut self,
        parts: Vec<Projected>,
        scale: f32,
        p: Precision,
    ) -> Result<Vec<Tensor<4>>, PassError> {
        let (q, (k, v)) = parts.into_iter().map(|part| (part.q, (part.k, part.v))).unzip();
        Ok(dg_kernels::attention_outputs(q, k, v, scale, p))
    }
}
