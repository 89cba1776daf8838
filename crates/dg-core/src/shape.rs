//! The sizes of a FLUX-shaped model, and the bytes that follow from them.

use serde::{Deserialize, Serialize};

/// Everything about a model that can be known without its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// The diffusion transformer.
    pub transformer: TransformerShape,
    /// CLIP text encoder.
    pub clip: ClipShape,
    /// T5 encoder.
    pub t5: T5Shape,
    /// Autoencoder.
    pub vae: VaeShape,
}

/// Sizes of the transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransformerShape {
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Double-stream blocks.
    pub double_blocks: usize,
    /// Single-stream blocks.
    pub single_blocks: usize,
    /// Channels of a packed latent token.
    pub in_channels: usize,
    /// Width of the T5 embedding.
    pub text_width: usize,
    /// Width of the pooled CLIP embedding.
    pub pooled_width: usize,
    /// Whether the guidance scale is an input.
    pub guidance_embeds: bool,
    /// Channels of a head that each position axis rotates.
    pub axes_dims_rope: Vec<usize>,
}

impl TransformerShape {
    /// Width of the residual stream, D.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        let d = self.width() as u64;
        let linear = |inp: u64, out: u64| inp * out + out;
        let embedder = |inp: u64| linear(inp, d) + linear(d, d);
        let head = self.head_dim as u64;
        let double =
            2 * (linear(d, 6 * d) + 4 * linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + 2 * head);
        let single = linear(d, 3 * d) + 3 * linear(d, d) + linear(d, 4 * d) + linear(5 * d, d) + 2 * head;
        let conditioning =
            embedder(256) * (1 + u64::from(self.guidance_embeds)) + embedder(self.pooled_width as u64);
        let ends = linear(self.in_channels as u64, d)
            + linear(self.text_width as u64, d)
            + linear(d, 2 * d)
            + linear(d, self.in_channels as u64);
        conditioning + ends + self.double_blocks as u64 * double + self.single_blocks as u64 * single
    }

    /// Bytes of activations that a forward pass of `images` images holds at its peak, in f32:
    /// within a single block the stream, its modulated copy, q, k, v, attention's packed k and v and
    /// output, and the MLP's 4·D.
    pub fn activation_bytes(&self, images: usize, tokens: usize) -> u64 {
        let streams = 1 + 1 + 3 + 2 + 5 + 1;
        [images, tokens, streams, self.heads, self.head_dim]
            .iter()
            .fold(4, |n, f| n.saturating_mul(*f as u64))
    }
}

/// Sizes of the CLIP text encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipShape {
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Width of the MLP.
    pub mlp: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Positions, 77.
    pub positions: usize,
    /// LayerNorm epsilon.
    pub eps: f64,
    /// `eos_token_id` of the config: 2 stands for «the largest id», as published FLUX has it.
    pub eos_token_id: u32,
}

/// Sizes of the T5 encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct T5Shape {
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub mlp: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Buckets of the relative position bias.
    pub buckets: usize,
    /// Distance from which all positions share the last bucket.
    pub max_distance: usize,
    /// RMSNorm epsilon.
    pub eps: f64,
}

impl T5Shape {
    /// Bytes of activations that encoding one prompt of `tokens` tokens holds at its peak, in f32: the
    /// position bias of all heads while it is laid out, the streams, and the gated MLP.
    pub fn activation_bytes(&self, tokens: usize) -> u64 {
        let n = tokens as u64;
        let bias = 3 * self.heads as u64 * n * n;
        let streams = n * (3 * self.width + 4 * self.heads * self.head_dim + 3 * self.mlp) as u64;
        4 * (bias + streams)
    }
}

/// Sizes of the autoencoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeShape {
    /// Channels of each level, from the picture inwards.
    pub channels: Vec<usize>,
    /// Resnets of a level in the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm.
    pub groups: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Factor between the VAE's latents and the transformer's.
    pub scaling_factor: f64,
    /// Offset between them.
    pub shift_factor: f64,
    /// Picture side in pixels above which tiling cuts.
    pub sample_size: usize,
}

impl VaeShape {
    /// Pixels per latent and side.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// Bytes of activations that decoding one picture of `pixels` pixels holds at its peak, in f32.
    /// The widest moment is a resnet of the outermost two levels: input, shortcut and two results.
    pub fn decode_bytes(&self, pixels: u64) -> u64 {
        let outer = self.channels[0] as u64;
        let next = *self.channels.get(1).unwrap_or(&self.channels[0]) as u64;
        pixels.saturating_mul(4 * (3 * outer + next))
    }

    /// The same if it is decoded in bands of [`BAND_BYTES`]: never more. Two maps of the outermost level, or the
    /// doubled map of the next one and two of its own, and bands.
    pub fn banded_decode_bytes(&self, pixels: u64) -> u64 {
        let level =
            |i: usize| *self.channels.get(i).unwrap_or(&self.channels[self.channels.len() - 1]) as u64;
        let widest = (2 * level(0) + PICTURE_CHANNELS).max((2 * level(1) + level(2)).div_ceil(4));
        let banded = pixels.saturating_mul(4 * widest).saturating_add(BANDS_HELD * BAND_BYTES);
        banded.min(self.decode_bytes(pixels))
    }
}

/// Bytes of one band of rows, as f32, when a picture is decoded in bands.
pub const BAND_BYTES: u64 = 64 << 20;
/// Bands that are in hand at a time: read, convolved, and without its neighbours' rows; and one that others wait for.
const BANDS_HELD: u64 = 4;
/// Red, green and blue.
const PICTURE_CHANNELS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flux_dev_has_its_published_size() {
        let dev = TransformerShape {
            heads: 24,
            head_dim: 128,
            double_blocks: 19,
            single_blocks: 38,
            in_channels: 64,
            text_width: 4096,
            pooled_width: 768,
            guidance_embeds: true,
            axes_dims_rope: vec![16, 56, 56],
        };
        // 11 901 408 320 in the published checkpoint's index: 23.8 GB of bf16
        assert_eq!(dev.parameters(), 11_901_408_320);
    }
}
