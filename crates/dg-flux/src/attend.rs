//! The one call through which blocks attend.

use burn::tensor::Tensor;
use dg_kernels::Precision;

/// Brings queries, keys and values together. A block hands over those of its own tokens, text
/// first, and gets the attention output for the same tokens: where the others' keys come from is
/// this trait's business, so that block code knows nothing of ranks.
pub trait Attend {
    /// `q`, `k`, `v` and the result `[images, tokens, heads, head_dim]`.
    fn attend(&mut self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f32, p: Precision) -> Tensor<4>;
}

/// All tokens are here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Attend for Serial {
    fn attend(&mut self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f32, p: Precision) -> Tensor<4> {
        dg_kernels::attention(q, k, v, scale, p).0
    }
}
