//! FLUX's diffusion transformer: noisy latents, text, modulations → velocity.
//!
//! Black Forest Labs, FLUX.1 (2024); MM-DiT after P. Esser et al. (2024), parallel blocks after
//! M. Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters" (2023). Key names and
//! order of operations are those of diffusers' `transformer_flux.py`.
//!
//! Shapes: b images, N image tokens, T text tokens, D = heads · head_dim.
//!
//! ```text
//! x [b,N,64] ──x_embedder──► image [b,N,D] ─┐ double blocks: two streams, joint attention
//! text [b,T,d_text] ─context_embedder─► [b,T,D] ┘
//!                      text ‖ image [b,T+N,D]   single blocks: one stream, MLP beside attention
//!                      image rows ──► ln, modulate, proj_out ──► velocity [b,N,64]
//! ```

use crate::attend::{Attend, Projected};
use crate::modulation::Modulations;
use crate::rope::Rope;
use crate::stage::{self, Stage};
use crate::turns::Turns;
use crate::watch::Watch;
use crate::weights::{Linear, Loader, together};
use crate::{ModelError, PassError};
use burn::tensor::Tensor;
use dg_core::shape::TransformerShape;
use dg_kernels::{self as k, Activation, Precision};
use std::ops::Range;

/// Epsilon of every norm.
const EPS: f64 = 1e-6;

/// The transformer, or the consecutive blocks of it that one pipeline stage has.
pub struct Transformer {
    shape: TransformerShape,
    /// Number of the first double block, and of the first single block, among all of their kind.
    first: [usize; 2],
    enter: Option<Enter>,
    double: Vec<DoubleBlock>,
    single: Vec<SingleBlock>,
    proj_out: Option<Linear>,
    /// The blocks that are here, double blocks first.
    turns: Turns,
    precision: Precision,
}

/// What comes before the first block.
struct Enter {
    x_embedder: Linear,
    context_embedder: Linear,
}

/// Tokens between two blocks, and between two stages.
pub struct Hidden {
    /// Text `[b, T, D]`.
    pub text: Tensor<3>,
    /// Image `[b, N, D]`.
    pub image: Tensor<3>,
}

/// What one forward pass reads. N and T are the tokens that are here: all, or the [`Share`](crate::parallel::Share)
/// of a rank, which may be empty.
pub struct Inputs<'a> {
    /// Packed latents `[b, N, in_channels]`.
    pub x: Tensor<3>,
    /// T5 embeddings `[b, T, text_width]`.
    pub text: Tensor<3>,
    /// What time, guidance and pooled prompt of each image say to the blocks; b rows.
    pub modulations: &'a Modulations,
    /// Positions of the T text and then the N image tokens.
    pub rope: &'a Rope,
}

impl Transformer {
    /// Takes the weights of the transformer, without those of
    /// [`Modulator`](crate::modulation::Modulator).
    pub fn load(w: &Loader<'_>, shape: &TransformerShape) -> Result<Self, ModelError> {
        Self::load_stage(w, shape, stage::all(shape))
    }

    /// Takes the weights of the blocks `blocks` alone, double blocks numbered first; those of the embedders too if
    /// the first block is among them, those of the end if the last is.
    pub fn load_stage(
        w: &Loader<'_>,
        shape: &TransformerShape,
        blocks: Range<usize>,
    ) -> Result<Self, ModelError> {
        let d = shape.width();
        let Stage { double, single, is_first, is_last } = Stage::new(shape, &blocks);
        let enter = || -> Result<Enter, ModelError> {
            Ok(Enter {
                x_embedder: w.linear("x_embedder", shape.in_channels, d)?,
                context_embedder: w.linear("context_embedder", shape.text_width, d)?,
            })
        };
        let first = [double.start, single.start];
        let enter = is_first.then(enter).transpose()?;
        let double = double.map(|i| w.with_pages(|w| DoubleBlock::load(w, shape, i)));
        let (double, mut pages): (_, Vec<_>) = double.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let single = single.map(|i| w.with_pages(|w| SingleBlock::load(w, shape, i)));
        let (single, of_single): (_, Vec<_>) = single.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        pages.extend(of_single);
        Ok(Self {
            first,
            enter,
            double,
            single,
            turns: Turns::new(pages, true),
            proj_out: is_last.then(|| w.linear("proj_out", d, shape.in_channels)).transpose()?,
            precision: w.precision(),
            shape: shape.clone(),
        })
    }

    /// How blocks whose weights are mapped are read, see [`Turns::keep`].
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// The velocity (noise − image) at each image token, `[b, N, in_channels]`.
    ///
    /// # Errors
    /// If `watch` stops the pass, or `attend` cannot reach another rank.
    ///
    /// # Panics
    /// On a stage that is not the whole transformer.
    pub fn forward(
        &self,
        inputs: Inputs<'_>,
        attend: &mut dyn Attend,
        watch: &mut dyn Watch,
    ) -> Result<Tensor<3>, PassError> {
        let Inputs { x, text, modulations, rope } = inputs;
        watch.see("temb", &modulations.conditioning.clone().unsqueeze_dim(0));
        let hidden = self.enter(x, text, watch);
        let hidden = self.through(hidden, modulations, rope, attend, watch)?;
        Ok(self.leave(hidden.image, modulations, watch))
    }

    /// Before the first block: packed latents `[b, N, in_channels]` and text `[b, T, text_width]` in width D.
    ///
    /// # Panics
    /// On a stage without the first block.
    pub fn enter(&self, x: Tensor<3>, text: Tensor<3>, watch: &mut dyn Watch) -> Hidden {
        let (enter, d) = (self.enter.as_ref().expect("the first stage"), self.shape.width());
        let image = rows(x, d, |x| enter.x_embedder.forward(x));
        let text = rows(text, d, |text| enter.context_embedder.forward(text));
        watch.see("x_embedder", &image);
        watch.see("context_embedder", &text);
        Hidden { text: k::held(text, self.precision), image: k::held(image, self.precision) }
    }

    /// The blocks of this stage.
    ///
    /// # Errors
    /// If `watch` stops the pass, or `attend` cannot reach another rank.
    ///
    /// # Panics
    /// If the modulations are those of another stage.
    pub fn through(
        &self,
        Hidden { mut text, mut image }: Hidden,
        m: &Modulations,
        rope: &Rope,
        attend: &mut dyn Attend,
        watch: &mut dyn Watch,
    ) -> Result<Hidden, PassError> {
        assert!(m.double.len() == self.double.len() && m.single.len() == self.single.len(), "other blocks");
        // what another stage has sent is in f32
        (text, image) = (k::held(text, self.precision), k::held(image, self.precision));
        for (i, (block, m)) in self.double.iter().zip(&m.double).enumerate() {
            self.turns.begin(i, &*watch)?;
            (text, image) = block.forward(text, image, m, rope, attend)?;
            self.turns.end(i);
            let i = self.first[0] + i;
            watch.see(&format!("double_{i}.text"), &text);
            watch.see(&format!("double_{i}.image"), &image);
            watch.check()?;
        }
        if self.single.is_empty() {
            return Ok(Hidden { text, image });
        }
        let (text_tokens, image_tokens) = (text.dims()[1], image.dims()[1]);
        let mut z = k::cat_tokens(text, image);
        for (i, (block, m)) in self.single.iter().zip(&m.single).enumerate() {
            let turn = self.double.len() + i;
            self.turns.begin(turn, &*watch)?;
            z = block.forward(z, m, rope, attend)?;
            self.turns.end(turn);
            watch.see(&format!("single_{}", self.first[1] + i), &z);
            watch.check()?;
        }
        Ok(Hidden { text: tokens(&z, 0, text_tokens), image: tokens(&z, text_tokens, image_tokens) })
    }

    /// After the last block: the velocity at the image tokens `[b, N, D]`, `[b, N, in_channels]`.
    ///
    /// # Panics
    /// On a stage without the last block.
    pub fn leave(&self, image: Tensor<3>, m: &Modulations, watch: &mut dyn Watch) -> Tensor<3> {
        let (proj_out, d) = (self.proj_out.as_ref().expect("the last stage"), self.shape.width());
        if image.dims()[1] == 0 {
            return nothing(&image, self.shape.in_channels);
        }
        // the final layer alone has its scale before its shift
        let [scale, shift] = chunks(m.norm_out.as_ref().expect("the last stage"), d);
        let v = k::wide(proj_out.forward(k::layer_norm_modulate(image, shift, scale, EPS, self.precision)));
        watch.see("proj_out", &v);
        v
    }
}

/// The tokens from `start` on, `len` of them.
fn tokens(z: &Tensor<3>, start: usize, len: usize) -> Tensor<3> {
    if len > 0 { z.clone().narrow(1, start, len) } else { nothing(z, z.dims()[2]) }
}

/// `f` of the rows of `x` `[b, n, …]`, which has `width` channels. A rank without a token computes nothing; burn
/// refuses some of the operations on empty tensors.
fn rows(x: Tensor<3>, width: usize, f: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
    if x.dims()[1] > 0 { f(x) } else { nothing(&x, width) }
}

/// `[b, 0, width]` for the images of `x`.
fn nothing(x: &Tensor<3>, width: usize) -> Tensor<3> {
    k::from_vec(Vec::new(), [x.dims()[0], 0, width], &x.device())
}

/// The `N` vectors `[b, D]` in what a modulation layer says, `[b, N·D]`.
fn chunks<const N: usize>(all: &Tensor<2>, d: usize) -> [Tensor<2>; N] {
    std::array::from_fn(|i| all.clone().narrow(1, i * d, d))
}

/// Self-attention's projections for one stream: q, k, v, and the norms of q and k.
struct Qkv {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: Tensor<1>,
    norm_k: Tensor<1>,
    heads: usize,
    precision: Precision,
}

impl Qkv {
    fn load(w: &Loader<'_>, s: &TransformerShape, at: &str, names: [&str; 5]) -> Result<Self, ModelError> {
        let linear = |name: &str| w.linear(&format!("{at}.{name}"), s.width(), s.width());
        let norm = |name: &str| w.vector(&format!("{at}.{name}.weight"), s.head_dim);
        Ok(Self {
            q: linear(names[0])?,
            k: linear(names[1])?,
            v: linear(names[2])?,
            norm_q: norm(names[3])?,
            norm_k: norm(names[4])?,
            heads: s.heads,
            precision: w.precision(),
        })
    }

    /// The three layers over the same input.
    fn layers(&self) -> [k::SharedLayer<'_>; 3] {
        [&self.q, &self.k, &self.v].map(|layer| layer.shared(None))
    }

    /// Of a stream without a token.
    fn nothing(&self, x: &Tensor<3>) -> Projected {
        let [b, _, d] = x.dims();
        let none = || k::from_vec(Vec::new(), [b, 0, self.heads, d / self.heads], &x.device());
        Projected { q: none(), k: none(), v: none() }
    }

    /// What [`layers`](Self::layers) gave, `[b, n, D]` each, with q and k normalised and rotated.
    fn projected(&self, results: [Tensor<3>; 3], rope: &Rope) -> Projected {
        let [q, k, v] = results.map(|t| {
            let [b, n, d] = t.dims();
            t.reshape([b, n, self.heads, d / self.heads])
        });
        let turn = |t: Tensor<4>, norm: &Tensor<1>| {
            k::rms_norm_rope(t, norm, &rope.cos, &rope.sin, EPS, self.precision)
        };
        Projected { q: turn(q, &self.norm_q), k: turn(k, &self.norm_k), v }
    }
}

/// Two linear layers with a GELU (tanh form) between them.
struct FeedForward {
    up: Linear,
    down: Linear,
}

impl FeedForward {
    fn load(w: &Loader<'_>, at: &str, d: usize) -> Result<Self, ModelError> {
        Ok(Self {
            up: w.linear(&format!("{at}.net.0.proj"), d, 4 * d)?,
            down: w.linear(&format!("{at}.net.2"), 4 * d, d)?,
        })
    }

    /// `residual + gate · down(gelu(up(x)))`.
    fn added(&self, residual: Tensor<3>, gate: Tensor<2>, x: Tensor<3>) -> Tensor<3> {
        self.down.gated(residual, gate, vec![self.up.forward_then(x, Activation::GeluTanh)])
    }
}

/// One stream of a double block.
struct Stream {
    qkv: Qkv,
    out: Linear,
    ff: FeedForward,
    precision: Precision,
}

/// What the modulation layer of a stream says.
struct StreamModulation {
    attention: [Tensor<2>; 3],
    mlp: [Tensor<2>; 3],
}

impl StreamModulation {
    fn of(all: &Tensor<2>, d: usize) -> Self {
        let [shift, scale, gate, shift2, scale2, gate2] = chunks(all, d);
        Self { attention: [shift, scale, gate], mlp: [shift2, scale2, gate2] }
    }
}

impl Stream {
    /// `rope` has the positions of the joint sequence, those of `x` from `start` on.
    fn qkv(&self, x: &Tensor<3>, m: &StreamModulation, rope: &Rope, start: usize) -> Projected {
        let tokens = x.dims()[1];
        if tokens == 0 {
            return self.qkv.nothing(x);
        }
        let rope = &rope.slice(start, tokens);
        let [shift, scale, _] = m.attention.clone();
        let x = k::layer_norm_modulate(x.clone(), shift, scale, EPS, self.precision);
        self.qkv.projected(together(x, self.qkv.layers(), self.precision), rope)
    }

    /// Adds the attention output `o` `[b, n, D]` and the MLP to the stream.
    fn finish(&self, x: Tensor<3>, o: Tensor<3>, m: StreamModulation) -> Tensor<3> {
        if x.dims()[1] == 0 {
            return x;
        }
        let p = self.precision;
        let [_, _, gate] = m.attention;
        let x = self.out.gated(x, gate, vec![o]);
        let [shift, scale, gate] = m.mlp;
        let y = k::layer_norm_modulate(x.clone(), shift, scale, EPS, p);
        self.ff.added(x, gate, y)
    }
}

/// Text and image keep their own weights and meet in attention.
struct DoubleBlock {
    image: Stream,
    text: Stream,
    scale: f32,
    precision: Precision,
}

impl DoubleBlock {
    fn load(w: &Loader<'_>, s: &TransformerShape, i: usize) -> Result<Self, ModelError> {
        let d = s.width();
        let at = |name: &str| format!("transformer_blocks.{i}.{name}");
        let stream = |qkv: [&str; 5], out: &str, ff: &str| -> Result<Stream, ModelError> {
            Ok(Stream {
                qkv: Qkv::load(w, s, &at("attn"), qkv)?,
                out: w.linear(&at(out), d, d)?,
                ff: FeedForward::load(w, &at(ff), d)?,
                precision: w.precision(),
            })
        };
        let own = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
        let added = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];
        Ok(Self {
            image: stream(own, "attn.to_out.0", "ff")?,
            text: stream(added, "attn.to_add_out", "ff_context")?,
            scale: (s.head_dim as f32).powf(-0.5),
            precision: w.precision(),
        })
    }

    fn forward(
        &self,
        text: Tensor<3>,
        image: Tensor<3>,
        [m_image, m_text]: &[Tensor<2>; 2],
        rope: &Rope,
        attend: &mut dyn Attend,
    ) -> Result<(Tensor<3>, Tensor<3>), PassError> {
        let ([b, t, d], n) = (text.dims(), image.dims()[1]);
        let (mi, mt) = (StreamModulation::of(m_image, d), StreamModulation::of(m_text, d));
        let from_image = self.image.qkv(&image, &mi, rope, t);
        let from_text = self.text.qkv(&text, &mt, rope, 0);
        let mut outputs = attend.attend(vec![from_text, from_image], self.scale, self.precision)?.into_iter();
        let mut output =
            |tokens: usize| outputs.next().expect("an output for each part").reshape([b, tokens, d]);
        let text = self.text.finish(text, output(t), mt);
        let image = self.image.finish(image, output(n), mi);
        Ok((text, image))
    }
}

/// One stream of text and image; attention and MLP side by side.
struct SingleBlock {
    qkv: Qkv,
    proj_mlp: Linear,
    proj_out: Linear,
    scale: f32,
    precision: Precision,
}

impl SingleBlock {
    fn load(w: &Loader<'_>, s: &TransformerShape, i: usize) -> Result<Self, ModelError> {
        let d = s.width();
        let at = |name: &str| format!("single_transformer_blocks.{i}.{name}");
        Ok(Self {
            qkv: Qkv::load(w, s, &at("attn"), ["to_q", "to_k", "to_v", "norm_q", "norm_k"])?,
            proj_mlp: w.linear(&at("proj_mlp"), d, 4 * d)?,
            proj_out: w.linear(&at("proj_out"), 5 * d, d)?,
            scale: (s.head_dim as f32).powf(-0.5),
            precision: w.precision(),
        })
    }

    fn forward(
        &self,
        z: Tensor<3>,
        m: &Tensor<2>,
        rope: &Rope,
        attend: &mut dyn Attend,
    ) -> Result<Tensor<3>, PassError> {
        let (p, [b, n, d]) = (self.precision, z.dims());
        if n == 0 {
            // the others need this rank all the same
            attend.attend(vec![self.qkv.nothing(&z)], self.scale, p)?;
            return Ok(z);
        }
        let [shift, scale, gate] = chunks(m, d);
        let u = k::layer_norm_modulate(z.clone(), shift, scale, EPS, p);
        let [q, key, v] = self.qkv.layers();
        let layers = [self.proj_mlp.shared(Some(Activation::GeluTanh)), q, key, v];
        let [mlp, q, key, v] = together(u, layers, p);
        let projected = self.qkv.projected([q, key, v], rope);
        let o = attend.attend(vec![projected], self.scale, p)?.pop().expect("an output for one part");
        Ok(self.proj_out.gated(z, gate, vec![o.reshape([b, n, d]), mlp]))
    }
}
