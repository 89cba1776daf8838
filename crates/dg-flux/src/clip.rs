//! CLIP's text model: prompt → one pooled vector.
//!
//! A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
//! (2021); as `modeling_clip.py` of transformers runs it. Causal attention, padding not masked,
//! no text projection.

use crate::ModelError;
use crate::watch::{Cancelled, Watch};
use crate::weights::{Linear, Loader, together};
use burn::tensor::Tensor;
use dg_core::shape::ClipShape;
use dg_kernels::{self as k, Activation, Precision};

/// The text encoder whose pooled output conditions every modulation.
pub struct Clip {
    shape: ClipShape,
    tokens: Tensor<2>,
    positions: Tensor<2>,
    layers: Vec<Layer>,
    norm: Norm,
    precision: Precision,
}

struct Layer {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

struct Norm {
    weight: Tensor<1>,
    bias: Tensor<1>,
}

impl Clip {
    /// Takes the weights under `text_model.`.
    pub fn load(w: &Loader<'_>, shape: &ClipShape) -> Result<Self, ModelError> {
        let d = shape.width;
        let layer = |i: usize| -> Result<Layer, ModelError> {
            let at = |name: &str| format!("text_model.encoder.layers.{i}.{name}");
            let linear = |name: &str| w.linear(&at(name), d, d);
            Ok(Layer {
                norm1: Norm::load(w, &at("layer_norm1"), d)?,
                q: linear("self_attn.q_proj")?,
                k: linear("self_attn.k_proj")?,
                v: linear("self_attn.v_proj")?,
                out: linear("self_attn.out_proj")?,
                norm2: Norm::load(w, &at("layer_norm2"), d)?,
                fc1: w.linear(&at("mlp.fc1"), d, shape.mlp)?,
                fc2: w.linear(&at("mlp.fc2"), shape.mlp, d)?,
            })
        };
        Ok(Self {
            tokens: w.weight("text_model.embeddings.token_embedding.weight", [shape.vocab, d])?,
            positions: w.weight("text_model.embeddings.position_embedding.weight", [shape.positions, d])?,
            layers: (0..shape.layers).map(layer).collect::<Result<_, _>>()?,
            norm: Norm::load(w, "text_model.final_layer_norm", d)?,
            precision: w.precision(),
            shape: shape.clone(),
        })
    }

    /// `ids`: one list of equal length per prompt. Returns `[prompts, width]`. `watch` sees every
    /// intermediate result as `clip.…`.
    pub fn pooled(&self, ids: &[Vec<u32>], watch: &mut dyn Watch) -> Result<Tensor<2>, Cancelled> {
        let (b, n, d) = (ids.len(), ids[0].len(), self.shape.width);
        let p = self.precision;
        let words = k::embedding(&self.tokens, &ids.concat()).reshape([b, n, d]);
        let order: Vec<u32> = (0..b).flat_map(|_| 0..n as u32).collect();
        let places = k::embedding(&self.positions, &order).reshape([b, n, d]);
        let mut x = k::add(words, places, p);
        watch.see("clip.embeddings", &x);
        let mask = causal_mask(n, &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = self.layer(layer, x, &mask);
            watch.see(&format!("clip.layer_{i}"), &x);
            watch.check()?;
        }
        let x = self.norm.forward(x, self.shape.eps, p);
        watch.see("clip.last_hidden", &x);
        let row = |(i, ids): (usize, &Vec<u32>)| x.clone().narrow(0, i, 1).narrow(1, self.pooled_row(ids), 1);
        Ok(Tensor::cat(ids.iter().enumerate().map(row).collect(), 0).reshape([b, d]))
    }

    fn layer(&self, l: &Layer, x: Tensor<3>, mask: &Tensor<3>) -> Tensor<3> {
        let (p, eps, heads) = (self.precision, self.shape.eps, self.shape.heads);
        let [b, n, d] = x.dims();
        let y = l.norm1.forward(x.clone(), eps, p);
        let split = |t: Tensor<3>| t.reshape([b, n, heads, d / heads]);
        let [q, key, v] = together(y, [l.q.shared(None), l.k.shared(None), l.v.shared(None)], p);
        let scale = ((d / heads) as f32).powf(-0.5);
        // torch's fused attention rounds its result only
        let o = k::attention_with_bias(split(q), split(key), split(v), mask, scale, Precision::F32);
        let o = k::round(o.reshape([b, n, d]), p);
        let x = l.out.added(x, o);
        let y = l.norm2.forward(x.clone(), eps, p);
        l.fc2.added(x, l.fc1.forward_then(y, Activation::QuickGelu))
    }

    /// The position whose hidden state stands for the prompt: the first end token. Published FLUX
    /// has an `eos_token_id` of 2, for which transformers takes the first of the largest ids.
    fn pooled_row(&self, ids: &[u32]) -> usize {
        let wanted = match self.shape.eos_token_id {
            2 => ids.iter().max().copied().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|id| *id == wanted).unwrap_or(0)
    }
}

impl Norm {
    fn load(w: &Loader<'_>, name: &str, d: usize) -> Result<Self, ModelError> {
        let part = |part: &str| w.vector(&format!("{name}.{part}"), d);
        Ok(Self { weight: part("weight")?, bias: part("bias")? })
    }

    fn forward(&self, x: Tensor<3>, eps: f64, p: Precision) -> Tensor<3> {
        k::layer_norm(x, &self.weight, &self.bias, eps, p)
    }
}

/// 0 where a position may look, −∞ at later ones: `[1, n, n]`.
fn causal_mask(n: usize, like: &Tensor<3>) -> Tensor<3> {
    let cell = |i: usize| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 };
    k::from_vec((0..n * n).map(cell).collect(), [1, n, n], &like.device())
}
