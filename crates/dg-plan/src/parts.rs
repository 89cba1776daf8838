//! The parts of a model, which rank holds which, and how many weights they have.

use dg_core::shape::{ClipShape, ModelShape, T5Shape, TransformerShape, VaeShape};
use serde::{Deserialize, Serialize};

/// A piece of the model that a rank holds whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// Embeddings of time, guidance and pooled text. Every rank needs them for its modulations.
    TimeTextEmbed,
    /// Packed latents → width. First stage.
    XEmbedder,
    /// T5 embedding → width. First stage.
    ContextEmbedder,
    /// The modulations of a double block, image and text: they depend on step and prompt only.
    DoubleModulation(usize),
    /// A double block without its modulations.
    Double(usize),
    /// The modulation of a single block.
    SingleModulation(usize),
    /// A single block without its modulation.
    Single(usize),
    /// The last, modulated norm. Last stage.
    NormOut,
    /// Width → packed latents. Last stage.
    ProjOut,
    /// CLIP's text encoder. The first rank of a replica.
    Clip,
    /// T5's encoder. The first rank of a replica.
    T5,
    /// The decoder of the VAE. The first rank of a replica's last stage, in its first branch.
    VaeDecoder,
}

/// A block of the transformer, in the order of computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Block {
    /// A double-stream block.
    Double(usize),
    /// A single-stream block.
    Single(usize),
}

impl Block {
    /// Block number `index` of all: double blocks first.
    pub fn nth(shape: &TransformerShape, index: usize) -> Self {
        match index.checked_sub(shape.double_blocks) {
            None => Self::Double(index),
            Some(single) => Self::Single(single),
        }
    }

    /// The block and its modulation.
    pub fn parts(self) -> [Part; 2] {
        match self {
            Self::Double(i) => [Part::DoubleModulation(i), Part::Double(i)],
            Self::Single(i) => [Part::SingleModulation(i), Part::Single(i)],
        }
    }
}

impl Part {
    /// Number of weights. Together, the parts of the transformer have
    /// [`TransformerShape::parameters`].
    pub fn parameters(self, shape: &ModelShape) -> u64 {
        let t = &shape.transformer;
        let d = t.width() as u64;
        let (latent, text) = (t.in_channels as u64, t.text_width as u64);
        let norms = 2 * t.head_dim as u64;
        match self {
            Self::TimeTextEmbed => {
                let embedder = |inp: u64| linear(inp, d) + linear(d, d);
                let times = 1 + u64::from(t.guidance_embeds);
                times * embedder(SINUSOID) + embedder(t.pooled_width as u64)
            }
            Self::XEmbedder => linear(latent, d),
            Self::ContextEmbedder => linear(text, d),
            Self::DoubleModulation(_) => 2 * linear(d, 6 * d),
            Self::Double(_) => 2 * (4 * linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + norms),
            Self::SingleModulation(_) => linear(d, 3 * d),
            Self::Single(_) => 3 * linear(d, d) + linear(d, 4 * d) + linear(5 * d, d) + norms,
            Self::NormOut => linear(d, 2 * d),
            Self::ProjOut => linear(d, latent),
            Self::Clip => clip(&shape.clip),
            Self::T5 => t5(&shape.t5),
            Self::VaeDecoder => decoder(&shape.vae),
        }
    }

    /// Whether it belongs to the transformer.
    pub fn is_transformer(self) -> bool {
        !matches!(self, Self::Clip | Self::T5 | Self::VaeDecoder)
    }
}

/// Weights of the blocks `range`, modulations included.
pub(crate) fn block_parameters(shape: &ModelShape, index: usize) -> u64 {
    Block::nth(&shape.transformer, index).parts().iter().map(|part| part.parameters(shape)).sum()
}

fn linear(inp: u64, out: u64) -> u64 {
    inp * out + out
}

fn clip(s: &ClipShape) -> u64 {
    let (d, norm) = (s.width as u64, 2 * s.width as u64);
    let layer = 4 * linear(d, d) + linear(d, s.mlp as u64) + linear(s.mlp as u64, d) + 2 * norm;
    (s.vocab + s.positions) as u64 * d + s.layers as u64 * layer + norm
}

fn t5(s: &T5Shape) -> u64 {
    let d = s.width as u64;
    s.vocab as u64 * d + (s.buckets * s.heads) as u64 + s.layers as u64 * t5_layer(s) + d
}

/// Weights of a layer of T5.
pub(crate) fn t5_layer(s: &T5Shape) -> u64 {
    let (d, inner, mlp) = (s.width as u64, (s.heads * s.head_dim) as u64, s.mlp as u64);
    4 * d * inner + 3 * d * mlp + 2 * d
}

fn decoder(s: &VaeShape) -> u64 {
    let conv = |inp: u64, out: u64| 9 * inp * out + out;
    let norm = |c: u64| 2 * c;
    let resnet = |inp: u64, out: u64| {
        let shortcut = if inp == out { 0 } else { linear(inp, out) };
        norm(inp) + conv(inp, out) + norm(out) + conv(out, out) + shortcut
    };
    let first = s.channels.first().copied().unwrap_or(0) as u64;
    let last = s.channels.last().copied().unwrap_or(0) as u64;
    let mid = 2 * resnet(last, last) + norm(last) + 4 * linear(last, last);
    let mut width = last;
    let level = |(i, channels): (usize, &usize)| {
        let out = *channels as u64;
        let inner = s.layers_per_block as u64 * resnet(out, out);
        let resample = if i + 1 < s.channels.len() { conv(out, out) } else { 0 };
        let sum = resnet(width, out) + inner + resample;
        width = out;
        sum
    };
    let levels: u64 = s.channels.iter().rev().enumerate().map(level).sum();
    conv(s.latent_channels as u64, last) + mid + levels + norm(first) + conv(first, 3)
}

/// Width of the sinusoidal embedding of time and guidance.
const SINUSOID: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known;

    #[test]
    fn the_parts_add_up_to_the_transformer() {
        for shape in [known::flux_dev(), known::flux_schnell()] {
            let t = &shape.transformer;
            let blocks = (0..t.double_blocks + t.single_blocks).flat_map(|i| Block::nth(t, i).parts());
            let ends =
                [Part::TimeTextEmbed, Part::XEmbedder, Part::ContextEmbedder, Part::NormOut, Part::ProjOut];
            let sum: u64 = blocks.chain(ends).map(|part| part.parameters(&shape)).sum();
            assert_eq!(sum, t.parameters());
        }
    }

    #[test]
    fn encoders_and_decoder_have_their_published_sizes() {
        let shape = known::flux_dev();
        // the published checkpoints' indices: 9.52 GB of bf16, CLIP-L's text model, the VAE's decoder
        assert_eq!(Part::T5.parameters(&shape), 4_762_310_656);
        assert_eq!(Part::Clip.parameters(&shape), 123_060_480);
        assert_eq!(Part::VaeDecoder.parameters(&shape), 49_545_475);
    }
}
