//! The one call through which blocks attend.

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

/// Brings queries, keys and values together. A block hands over those of its own tokens, text
/// first, and gets the attention output for the same tokens: where the others' keys come from is
/// this trait's business, so that block code knows nothing of ranks.
pub trait Attend {
    /// Every token of every part sees the tokens of all parts. The results `[images, tokens, heads,
    /// head_dim]` stand in the order of `parts`.
    fn attend(&mut self, parts: Vec<Projected>, scale: f32, p: Precision) -> Vec<Tensor<4>>;
}

/// All tokens are here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Attend for Serial {
    fn attend(&mut self, parts: Vec<Projected>, scale: f32, p: Precision) -> Vec<Tensor<4>> {
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            q.push(part.q);
            k.push(part.k);
            v.push(part.v);
        }
        dg_kernels::attention_segments(q, k, v, scale, p).into_iter().map(|(out, _)| out).collect()
    }
}
