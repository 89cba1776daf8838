//! Bytes that a rank holds.

use crate::parts::{self, Block, Part};
use crate::plan::{Passes, Plan, WeightBytes};
use dg_core::shape::ModelShape;
use serde::Serialize;

/// Need of one rank in bytes. What a runtime takes for itself (a CUDA context, an allocator's reserve) is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RankMemory {
    /// Weights of its part of the transformer.
    pub transformer: u64,
    /// What [`window_bytes`] says of its blocks, and of the encoders if it has them.
    pub window: u64,
    /// Weights of the text encoders, if it has them.
    pub encoders: u64,
    /// Weights of the VAE's decoder, if it has it.
    pub decoder: u64,
    /// K and V of the whole sequence that PipeFusion keeps, for the rank's heads, in each of its blocks and branches.
    pub kv_buffers: u64,
    /// Activations of encoding a prompt, if it does.
    pub encoding: u64,
    /// Activations of denoising or decoding, whichever has more.
    pub activations: u64,
    /// The same when pictures are decoded in bands, as they are where memory is short.
    pub activations_least: u64,
}

impl RankMemory {
    /// The peak when all weights stay.
    pub fn total(&self) -> u64 {
        self.encoders + self.resident() + self.activations.max(self.encoding)
    }

    /// The peak when all weights stay and pictures are decoded in bands.
    pub fn resident_least(&self) -> u64 {
        self.encoders + self.resident() + self.activations_least.max(self.encoding)
    }

    /// The peak when, besides, encoders are there only while prompts are encoded, before all else. A run needs at
    /// least this.
    pub fn least(&self) -> u64 {
        (self.encoders + self.encoding).max(self.resident() + self.activations_least)
    }

    /// The peak when weights lie in mapped files and those of the transformer and of the encoders are dropped behind
    /// their use, where memory is short.
    pub fn streamed_least(&self) -> u64 {
        self.window + self.decoder + self.kv_buffers + self.activations_least.max(self.encoding)
    }

    fn resident(&self) -> u64 {
        self.transformer + self.decoder + self.kv_buffers
    }
}

impl Plan {
    /// What `rank` holds with [`batch_images`](Self::batch_images) pictures in hand.
    pub fn memory(&self, rank: u32) -> RankMemory {
        let shape = &self.work.shape;
        let b = self.work.dtype.bytes();
        let role = self.role(rank);
        let held = self.work.weights.unwrap_or_else(|| {
            let each = b as f64;
            WeightBytes { transformer: each, encoders: each, decoder: each, is_bf16: true }
        });
        let weights = |of: fn(Part) -> bool, each: f64| {
            let parameters: u64 =
                role.iter().filter(|part| of(**part)).map(|part| part.parameters(shape)).sum();
            (parameters as f64 * each) as u64
        };
        // dg-core counts in f32
        let scaled = |bytes: u64| bytes / 4 * b;
        let mut activations = self.denoise_bytes(rank);
        let mut activations_least = activations;
        let mut encoding = 0;
        if rank == self.encoder_rank(rank) {
            encoding = scaled(shape.t5.activation_bytes(self.work.text_tokens));
        }
        if rank == self.decoder_rank(rank) {
            let pixels = self.work.size.pixels();
            activations = activations.max(scaled(shape.vae.decode_bytes(pixels)));
            activations_least = activations_least.max(scaled(shape.vae.banded_decode_bytes(pixels)));
        }
        let stage = self.stages.ranges()[self.layout.coords(rank).pp as usize].clone();
        RankMemory {
            window: window_bytes(shape, stage, &held, rank == self.encoder_rank(rank)),
            transformer: weights(Part::is_transformer, held.transformer),
            encoders: weights(|part| matches!(part, Part::Clip | Part::T5), held.encoders),
            decoder: weights(|part| part == Part::VaeDecoder, held.decoder),
            kv_buffers: self.kv_bytes(rank),
            encoding,
            activations,
            activations_least,
        }
    }

    /// Activations of a block. For one rank it is [`activation_bytes`] of the shape: the stream, its modulated copy,
    /// q, k, v, attention's packed k and v and its output, and the MLP's 4·D. A rank of a Ulysses group has the
    /// exchanged q, k, v and output beside its own; a place in a ring two more blocks of K and V (one arriving, one
    /// leaving) and an f32 accumulator.
    ///
    /// [`activation_bytes`]: dg_core::shape::TransformerShape::activation_bytes
    fn denoise_bytes(&self, rank: u32) -> u64 {
        let t = &self.work.shape.transformer;
        let at = self.layout.coords(rank);
        let (members, owner) = (self.layout.ulysses as usize, at.sequence(&self.layout));
        let own = self.segments.tokens_of(owner) * t.width();
        let block = |ring: usize| -> usize {
            let owners = ring * members..(ring + 1) * members;
            owners.map(|owner| self.segments.tokens_of(owner)).sum::<usize>()
        };
        let channels = self.heads.of(at.ulysses as usize).len() * t.head_dim;
        let attended = block(at.ring as usize) * channels;
        let largest = (0..self.layout.ring as usize).map(block).max().unwrap_or(0) * channels;
        let exchanged = if members > 1 { 4 * attended } else { 0 };
        let ring = if self.layout.ring > 1 { 4 * largest } else { 0 };
        let accumulator = if self.layout.ring > 1 { 4 * attended as u64 } else { 0 };
        let values = TOKEN_LOCAL * own + 2 * attended + exchanged + ring;
        let images = match self.passes {
            Passes::Streams => 1,
            _ => self.batch_images() as u64,
        };
        images * (values as u64 * self.work.dtype.bytes() + accumulator)
    }

    /// K and V of all tokens for the rank's heads, per block of its stage and branch: the image's stay from step to
    /// step, the text's from patch to patch. Every place of a ring keeps all of it.
    fn kv_bytes(&self, rank: u32) -> u64 {
        if self.passes != Passes::Patches {
            return 0;
        }
        let at = self.layout.coords(rank);
        let channels = self.heads.of(at.ulysses as usize).len() * self.work.shape.transformer.head_dim;
        let blocks = self.stages.ranges()[at.pp as usize].len();
        let values = 2 * self.segments.tokens() * channels * blocks * self.branches();
        values as u64 * self.batch_images() as u64 * self.work.dtype.bytes()
    }
}

/// Bytes that have to be there of weights in mapped files if those of the transformer's `blocks`, and of the text
/// encoders if `encodes`, are read ahead and dropped behind: the largest two layers that follow each other.
pub fn window_bytes(
    shape: &ModelShape,
    blocks: std::ops::Range<usize>,
    weights: &WeightBytes,
    encodes: bool,
) -> u64 {
    let block = |i: usize| Block::nth(&shape.transformer, i).parts()[1].parameters(shape);
    let two = |parameters: u64, each: f64| (2.0 * parameters as f64 * each) as u64;
    let denoising = two(blocks.map(block).max().unwrap_or(0), weights.transformer);
    let encoding = if encodes { two(parts::t5_layer(&shape.t5), weights.encoders) } else { 0 };
    denoising.max(encoding)
}

/// Widths per token that stay with its owner: stream, modulated copy, q, k, v, attention output, 4·D of the MLP and
/// the result.
const TOKEN_LOCAL: usize = 11;
