//! The T5 v1.1 encoder: prompt → one vector per token.
//!
//! C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
//! Transformer" (2020), with the gated GELU of v1.1; as `modeling_t5.py` of transformers runs it
//! without an attention mask: padding takes part everywhere.

use crate::turns::Turns;
use crate::watch::Watch;
use crate::weights::{Linear, Loader, together};
use crate::{ModelError, PassError};
use burn::tensor::Tensor;
use dg_core::shape::T5Shape;
use dg_kernels::{self as k, Activation, Precision};

/// The text encoder whose token embeddings enter the transformer.
pub struct T5 {
    shape: T5Shape,
    tokens: Tensor<2>,
    position_bias: Tensor<2>,
    blocks: Vec<Block>,
    turns: Turns,
    norm: Tensor<1>,
    precision: Precision,
}

struct Block {
    norm1: Tensor<1>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: Tensor<1>,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl T5 {
    /// Takes `shared.weight` and the weights under `encoder.`.
    pub fn load(w: &Loader<'_>, shape: &T5Shape) -> Result<Self, ModelError> {
        let (d, inner) = (shape.width, shape.heads * shape.head_dim);
        let block = |i: usize| -> Result<Block, ModelError> {
            let attention = |name: &str| format!("encoder.block.{i}.layer.0.{name}");
            let mlp = |name: &str| format!("encoder.block.{i}.layer.1.{name}");
            let project =
                |name: &str| w.linear_without_bias(&attention(&format!("SelfAttention.{name}")), d, inner);
            Ok(Block {
                norm1: w.vector(&attention("layer_norm.weight"), d)?,
                q: project("q")?,
                k: project("k")?,
                v: project("v")?,
                o: w.linear_without_bias(&attention("SelfAttention.o"), inner, d)?,
                norm2: w.vector(&mlp("layer_norm.weight"), d)?,
                wi_0: w.linear_without_bias(&mlp("DenseReluDense.wi_0"), d, shape.mlp)?,
                wi_1: w.linear_without_bias(&mlp("DenseReluDense.wi_1"), d, shape.mlp)?,
                wo: w.linear_without_bias(&mlp("DenseReluDense.wo"), shape.mlp, d)?,
            })
        };
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        // some files hold the shared table under the encoder's name only
        let table = if w.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
        let blocks = (0..shape.layers).map(|i| w.with_pages(|_| block(i)));
        let (blocks, pages): (_, Vec<_>) = blocks.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        Ok(Self {
            tokens: w.weight(table, [shape.vocab, d])?,
            position_bias: w.weight(bias, [shape.buckets, shape.heads])?,
            turns: Turns::new(pages, false),
            blocks,
            norm: w.vector("encoder.final_layer_norm.weight", d)?,
            precision: w.precision(),
            shape: shape.clone(),
        })
    }

    /// How layers whose weights are mapped are read, see [`Turns::keep`].
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// `ids`: one list of equal length per prompt. Returns `[prompts, tokens, width]`. `watch` sees
    /// every block's result as `t5.…`.
    ///
    /// # Errors
    /// If `watch` stops it, or weights cannot be read.
    pub fn encode(&self, ids: &[Vec<u32>], watch: &mut dyn Watch) -> Result<Tensor<3>, PassError> {
        let (b, n) = (ids.len(), ids[0].len());
        let mut x = k::embedding(&self.tokens, &ids.concat()).reshape([b, n, self.shape.width]);
        let bias = self.bias(n);
        watch.see("t5.position_bias", &bias);
        for (i, block) in self.blocks.iter().enumerate() {
            self.turns.begin(i, &*watch)?;
            x = self.block(block, x, &bias);
            self.turns.end(i);
            watch.see(&format!("t5.block_{i}"), &x);
            watch.check()?;
        }
        let x = k::t5_norm(x, &self.norm, self.shape.eps, self.precision);
        watch.see("t5.last_hidden", &x);
        Ok(x)
    }

    fn block(&self, l: &Block, x: Tensor<3>, bias: &Tensor<3>) -> Tensor<3> {
        let (p, s) = (self.precision, &self.shape);
        let [b, n, _] = x.dims();
        let y = k::t5_norm(x.clone(), &l.norm1, s.eps, p);
        let split = |t: Tensor<3>| t.reshape([b, n, s.heads, s.head_dim]);
        let [q, key, v] = together(y, [l.q.shared(None), l.k.shared(None), l.v.shared(None)], p);
        // T5 does not divide by √d
        let o = k::attention_with_bias(split(q), split(key), split(v), bias, 1.0, p);
        let x = l.o.added(x, o.reshape([b, n, s.heads * s.head_dim]));
        let y = k::t5_norm(x.clone(), &l.norm2, s.eps, p);
        let [gate, up] = together(y, [l.wi_0.shared(Some(Activation::GeluNew)), l.wi_1.shared(None)], p);
        l.wo.added(x, k::mul(gate, up, p))
    }

    /// The position bias of `n` tokens, `[heads, n, n]`: one table, of block 0, serves all blocks.
    fn bias(&self, n: usize) -> Tensor<3> {
        let bucket = |i: usize| {
            let distance = (i % n) as i64 - (i / n) as i64;
            relative_bucket(distance, self.shape.buckets, self.shape.max_distance)
        };
        let ids: Vec<u32> = (0..n * n).map(bucket).collect();
        let rows = k::to_vec(k::embedding(&self.position_bias, &ids));
        let heads = self.shape.heads;
        let mut by_head = Vec::with_capacity(rows.len());
        for h in 0..heads {
            by_head.extend(rows.iter().skip(h).step_by(heads));
        }
        k::from_vec(by_head, [heads, n, n], &self.tokens.device())
    }
}

/// Bucket of a key `distance` positions after its query: half of the buckets for each direction,
/// half of those exact, the rest logarithmic up to `max_distance`.
fn relative_bucket(distance: i64, buckets: usize, max_distance: usize) -> u32 {
    let half = buckets / 2;
    let exact = half / 2;
    let side = if distance > 0 { half } else { 0 };
    let d = distance.unsigned_abs() as usize;
    let bucket = if d < exact {
        d
    } else {
        let ratio = (d as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
        (exact + (ratio * (half - exact) as f32) as usize).min(half - 1)
    };
    (side + bucket) as u32
}

#[cfg(test)]
mod tests {
    use super::relative_bucket;

    #[test]
    fn buckets_are_those_of_t5() {
        let at = |d| relative_bucket(d, 32, 128);
        assert_eq!([at(0), at(-1), at(1), at(-7), at(7)], [0, 1, 17, 7, 23]);
        assert_eq!([at(-8), at(8), at(-128), at(128), at(511), at(-511)], [8, 24, 15, 31, 31, 15]);
        assert_eq!([at(-15), at(-16), at(-31), at(-32)], [9, 10, 11, 12]);
    }
}
