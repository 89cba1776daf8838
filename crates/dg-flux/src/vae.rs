//! The autoencoder between pictures and latents.
//!
//! R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), as
//! diffusers' `autoencoder_kl.py` runs it; no quantisation convolutions.

mod banded;

use crate::ModelError;
use crate::watch::Cancelled;
use crate::weights::{Linear, Loader};
use burn::tensor::Tensor;
use dg_core::shape::VaeShape;
use dg_kernels::{self as k, Precision};

/// Epsilon of every GroupNorm.
const EPS: f64 = 1e-6;

/// Sees a stage's result, and may stop the run there.
pub type Tap<'a> = dyn FnMut(&str, &Tensor<4>) -> Result<(), Cancelled> + 'a;

/// Latents → picture.
pub struct Decoder {
    conv_in: Conv,
    mid: Mid,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// Picture → distribution of latents.
pub struct Encoder {
    conv_in: Conv,
    down: Vec<Level>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv,
    latent_channels: usize,
}

/// Resnets of one resolution and what leads to the next one.
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv>,
}

impl Decoder {
    /// Takes the weights under `decoder.`.
    pub fn load(w: &Loader<'_>, s: &VaeShape) -> Result<Self, ModelError> {
        let (first, last) = (s.channels[0], s.channels[s.channels.len() - 1]);
        let mut width = last;
        let mut level = |(i, out): (usize, usize)| -> Result<Level, ModelError> {
            let at = format!("decoder.up_blocks.{i}");
            let resnets = Resnet::load_all(w, &at, (width, out), s.layers_per_block + 1, s.groups)?;
            width = out;
            let more = i + 1 < s.channels.len();
            let resample = more.then(|| Conv::load(w, &format!("{at}.upsamplers.0.conv"), out, out, 3));
            Ok(Level { resnets, resample: resample.transpose()? })
        };
        Ok(Self {
            conv_in: Conv::load(w, "decoder.conv_in", s.latent_channels, last, 3)?,
            mid: Mid::load(w, "decoder.mid_block", last, s.groups)?,
            up: s.channels.iter().rev().copied().enumerate().map(&mut level).collect::<Result<_, _>>()?,
            norm_out: GroupNorm::load(w, "decoder.conv_norm_out", first, s.groups)?,
            conv_out: Conv::load(w, "decoder.conv_out", first, 3, 3)?,
        })
    }

    /// Latents `[b, latent_channels, h, w]` in the VAE's own scale → `[b, 3, 8h, 8w]`, about −1 … 1.
    /// `tap` sees every stage and may stop there.
    pub fn forward(&self, z: Tensor<4>, tap: &mut Tap<'_>) -> Result<Tensor<4>, Cancelled> {
        let mut x = self.conv_in.forward(z);
        tap("conv_in", &x)?;
        x = self.mid.forward(x, tap)?;
        for (i, level) in self.up.iter().enumerate() {
            for resnet in &level.resnets {
                x = resnet.forward(x);
            }
            if let Some(conv) = &level.resample {
                x = k::conv3x3_upsampled(x, &conv.weight, &conv.bias, conv.precision);
            }
            tap(&format!("up_{i}"), &x)?;
        }
        let x = self.conv_out.forward(self.norm_out.forward(x, true));
        tap("decoded", &x)?;
        Ok(x)
    }
}

impl Encoder {
    /// Takes the weights under `encoder.`.
    pub fn load(w: &Loader<'_>, s: &VaeShape) -> Result<Self, ModelError> {
        let (first, last) = (s.channels[0], s.channels[s.channels.len() - 1]);
        let mut width = first;
        let mut level = |(i, out): (usize, usize)| -> Result<Level, ModelError> {
            let at = format!("encoder.down_blocks.{i}");
            let resnets = Resnet::load_all(w, &at, (width, out), s.layers_per_block, s.groups)?;
            width = out;
            let more = i + 1 < s.channels.len();
            let resample = more.then(|| Conv::load(w, &format!("{at}.downsamplers.0.conv"), out, out, 3));
            Ok(Level { resnets, resample: resample.transpose()? })
        };
        Ok(Self {
            conv_in: Conv::load(w, "encoder.conv_in", 3, first, 3)?,
            down: s.channels.iter().copied().enumerate().map(&mut level).collect::<Result<_, _>>()?,
            mid: Mid::load(w, "encoder.mid_block", last, s.groups)?,
            norm_out: GroupNorm::load(w, "encoder.conv_norm_out", last, s.groups)?,
            conv_out: Conv::load(w, "encoder.conv_out", last, 2 * s.latent_channels, 3)?,
            latent_channels: s.latent_channels,
        })
    }

    /// A picture `[b, 3, h, w]` in −1 … 1 → mean and log-variance of its latents, each
    /// `[b, latent_channels, h/8, w/8]`.
    /// `tap` sees the middle stages and may stop there.
    pub fn forward(
        &self,
        picture: Tensor<4>,
        tap: &mut Tap<'_>,
    ) -> Result<(Tensor<4>, Tensor<4>), Cancelled> {
        let mut x = self.conv_in.forward(picture);
        for level in &self.down {
            for resnet in &level.resnets {
                x = resnet.forward(x);
            }
            if let Some(conv) = &level.resample {
                x = k::conv3x3_stride2(x, &conv.weight, &conv.bias, conv.precision);
            }
        }
        let x = self.mid.forward(x, tap)?;
        let x = self.conv_out.forward(self.norm_out.forward(x, true));
        let part = |i: usize| x.clone().narrow(1, i * self.latent_channels, self.latent_channels);
        Ok((part(0), part(1).clamp(-30.0, 20.0)))
    }
}

/// Resnet, attention over all positions, resnet.
struct Mid {
    first: Resnet,
    attention: Attention,
    second: Resnet,
}

impl Mid {
    fn load(w: &Loader<'_>, at: &str, c: usize, groups: usize) -> Result<Self, ModelError> {
        Ok(Self {
            first: Resnet::load(w, &format!("{at}.resnets.0"), c, c, groups)?,
            attention: Attention::load(w, &format!("{at}.attentions.0"), c, groups)?,
            second: Resnet::load(w, &format!("{at}.resnets.1"), c, c, groups)?,
        })
    }

    fn forward(&self, x: Tensor<4>, tap: &mut Tap<'_>) -> Result<Tensor<4>, Cancelled> {
        let x = self.first.forward(x);
        tap("mid_resnet_0", &x)?;
        let x = self.attention.forward(x);
        tap("mid_attention", &x)?;
        let x = self.second.forward(x);
        tap("mid_resnet_1", &x)?;
        Ok(x)
    }
}

/// Two convolutions, each behind GroupNorm and SiLU, beside the identity or a 1×1 shortcut.
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl Resnet {
    fn load(w: &Loader<'_>, at: &str, inp: usize, out: usize, groups: usize) -> Result<Self, ModelError> {
        let name = |part: &str| format!("{at}.{part}");
        let shortcut = (inp != out).then(|| Conv::load(w, &name("conv_shortcut"), inp, out, 1));
        Ok(Self {
            norm1: GroupNorm::load(w, &name("norm1"), inp, groups)?,
            conv1: Conv::load(w, &name("conv1"), inp, out, 3)?,
            norm2: GroupNorm::load(w, &name("norm2"), out, groups)?,
            conv2: Conv::load(w, &name("conv2"), out, out, 3)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `count` resnets, the first of which changes the channels from `widths.0` to `widths.1`.
    fn load_all(
        w: &Loader<'_>,
        at: &str,
        widths: (usize, usize),
        count: usize,
        groups: usize,
    ) -> Result<Vec<Self>, ModelError> {
        let (inp, out) = widths;
        let one = |j: usize| {
            let inp = if j == 0 { inp } else { out };
            Self::load(w, &format!("{at}.resnets.{j}"), inp, out, groups)
        };
        (0..count).map(one).collect()
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        // first, so that the norm then owns its input, the widest of all, and works in its memory
        let beside = match &self.shortcut {
            Some(conv) => k::conv1x1(x.clone(), &conv.weight, &conv.bias, conv.precision),
            None => x.clone(),
        };
        let y = self.conv1.forward(self.norm1.forward(x, true));
        let y = self.norm2.forward(y, true);
        let conv = &self.conv2;
        k::conv3x3_add(y, &conv.weight, &conv.bias, beside, conv.precision)
    }
}

/// Self-attention over all positions with one head of all channels.
struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    precision: Precision,
}

impl Attention {
    fn load(w: &Loader<'_>, at: &str, c: usize, groups: usize) -> Result<Self, ModelError> {
        let linear = |name: &str| w.linear(&format!("{at}.{name}"), c, c);
        Ok(Self {
            norm: GroupNorm::load(w, &format!("{at}.group_norm"), c, groups)?,
            q: linear("to_q")?,
            k: linear("to_k")?,
            v: linear("to_v")?,
            out: linear("to_out.0")?,
            precision: w.precision(),
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (p, [b, c, h, w]) = (self.precision, x.dims());
        let rows: Tensor<3> = self.norm.forward(x.clone(), false).reshape([b, c, h * w]).swap_dims(1, 2);
        let one_head = |t: Tensor<3>| t.reshape([b, h * w, 1, c]);
        let (q, key, v) = (self.q.forward(rows.clone()), self.k.forward(rows.clone()), self.v.forward(rows));
        let (o, _) = k::attention(one_head(q), one_head(key), one_head(v), (c as f32).powf(-0.5), p);
        let o = self.out.forward(o.reshape([b, h * w, c]));
        k::add(o.swap_dims(1, 2).reshape([b, c, h, w]), x, p)
    }
}

struct GroupNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    precision: Precision,
}

impl GroupNorm {
    fn load(w: &Loader<'_>, at: &str, c: usize, groups: usize) -> Result<Self, ModelError> {
        Ok(Self {
            weight: w.vector(&format!("{at}.weight"), c)?,
            bias: w.vector(&format!("{at}.bias"), c)?,
            groups,
            precision: w.precision(),
        })
    }

    fn forward(&self, x: Tensor<4>, with_silu: bool) -> Tensor<4> {
        k::group_norm(x, &self.weight, &self.bias, self.groups, EPS, with_silu, self.precision)
    }
}

struct Conv {
    weight: Tensor<4>,
    bias: Tensor<1>,
    precision: Precision,
}

impl Conv {
    fn load(w: &Loader<'_>, at: &str, inp: usize, out: usize, side: usize) -> Result<Self, ModelError> {
        Ok(Self {
            weight: w.weight(&format!("{at}.weight"), [out, inp, side, side])?,
            bias: w.vector(&format!("{at}.bias"), out)?,
            precision: w.precision(),
        })
    }

    /// 3×3, stride 1, padding 1.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        k::conv3x3(x, &self.weight, &self.bias, self.precision)
    }
}
