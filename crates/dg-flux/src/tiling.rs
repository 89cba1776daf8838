//! Decoding in overlapping tiles, as diffusers' `AutoencoderKL.tiled_decode` blends them.
//!
//! Bounds the memory of the decoder by the tile; changes the picture a little, because GroupNorm
//! and the attention see one tile at a time.

use burn::tensor::Tensor;
use dg_core::ImageSize;
use dg_core::shape::VaeShape;
use dg_kernels::{self as k, Precision};

/// Overlap of neighbouring tiles, as a fraction of a tile.
const OVERLAP: f64 = 0.25;

/// Pixels above which a picture is decoded in tiles unless told otherwise: 2048².
pub const PIXELS_MAX: u64 = 2048 * 2048;

/// The tiles of one decode. Where `sample_size` is no multiple of 32 diffusers' tiles do not meet;
/// these always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in latents.
    side: usize,
    /// Distance between tiles in latents.
    step: usize,
    /// Pixels over which neighbours are blended.
    blend: usize,
    /// Pixels of a tile that are kept.
    keep: usize,
}

impl Tiling {
    /// The tiles for a VAE; side and overlap follow from its `sample_size`.
    pub fn new(shape: &VaeShape) -> Self {
        let sample = shape.sample_size;
        let side = (sample / shape.factor()).max(1);
        let blend = (sample as f64 * OVERLAP) as usize;
        let step = ((side as f64 * (1.0 - OVERLAP)) as usize).max(1);
        Self { side, step, blend, keep: step * shape.factor() }
    }

    /// Whether a picture of `size` will be decoded in tiles: `wanted`, or above [`PIXELS_MAX`]
    /// when nothing is said, and only if it is larger than one tile.
    pub fn applies(shape: &VaeShape, size: ImageSize, wanted: Option<bool>) -> bool {
        let side = Self::new(shape).side;
        let cuts = size.latent_height() > side || size.latent_width() > side;
        cuts && wanted.unwrap_or_else(|| size.pixels() > PIXELS_MAX)
    }

    /// Decodes `z` `[1, c, h, w]` tile by tile.
    pub fn decode<E>(
        &self,
        z: Tensor<4>,
        p: Precision,
        mut decode: impl FnMut(Tensor<4>) -> Result<Tensor<4>, E>,
    ) -> Result<Tensor<4>, E> {
        let [_, _, h, w] = z.dims();
        let device = z.device();
        let mut out = Plane::black(8 * h, 8 * w);
        let mut above: Vec<Plane> = Vec::new();
        for (row, y) in (0..h).step_by(self.step).enumerate() {
            let mut current: Vec<Plane> = Vec::new();
            for (column, x) in (0..w).step_by(self.step).enumerate() {
                let part = z.clone().narrow(2, y, self.side.min(h - y)).narrow(3, x, self.side.min(w - x));
                let mut tile = Plane::of(decode(part)?);
                if let Some(a) = above.get(column) {
                    tile.blend_rows(a, self.blend, p);
                }
                if let Some(left) = current.last() {
                    tile.blend_columns(left, self.blend, p);
                }
                out.place(&tile, row * self.keep, column * self.keep, self.keep);
                current.push(tile);
            }
            above = current;
        }
        Ok(k::from_vec(out.data, [1, 3, 8 * h, 8 * w], &device))
    }
}

/// A picture of three channels in memory, `[3, h, w]`.
struct Plane {
    h: usize,
    w: usize,
    data: Vec<f32>,
}

impl Plane {
    fn black(h: usize, w: usize) -> Self {
        Self { h, w, data: vec![0.0; 3 * h * w] }
    }

    fn of(t: Tensor<4>) -> Self {
        let [_, _, h, w] = t.dims();
        Self { h, w, data: k::to_vec(t) }
    }

    fn row(&self, c: usize, y: usize) -> &[f32] {
        &self.data[(c * self.h + y) * self.w..][..self.w]
    }

    fn row_mut(&mut self, c: usize, y: usize) -> &mut [f32] {
        &mut self.data[(c * self.h + y) * self.w..][..self.w]
    }

    /// Fades from the last rows of `above` into the first rows of this tile.
    fn blend_rows(&mut self, above: &Self, extent: usize, p: Precision) {
        let n = extent.min(above.h).min(self.h);
        for c in 0..3 {
            for y in 0..n {
                let t = y as f64 / n as f64;
                let a = above.row(c, above.h - n + y);
                self.row_mut(c, y).iter_mut().zip(a).for_each(|(b, a)| *b = fade(*a, *b, t, p));
            }
        }
    }

    /// Fades from the last columns of `left` into the first columns of this tile.
    fn blend_columns(&mut self, left: &Self, extent: usize, p: Precision) {
        let n = extent.min(left.w).min(self.w);
        for c in 0..3 {
            for y in 0..self.h.min(left.h) {
                let a = &left.row(c, y)[left.w - n..];
                let b = &mut self.row_mut(c, y)[..n];
                for (x, (b, a)) in b.iter_mut().zip(a).enumerate() {
                    *b = fade(*a, *b, x as f64 / n as f64, p);
                }
            }
        }
    }

    /// Copies the first `keep` rows and columns of `tile` to (`y`, `x`).
    fn place(&mut self, tile: &Self, y: usize, x: usize, keep: usize) {
        let (h, w) =
            (tile.h.min(keep).min(self.h.saturating_sub(y)), tile.w.min(keep).min(self.w.saturating_sub(x)));
        for c in 0..3 {
            for row in 0..h {
                self.row_mut(c, y + row)[x..x + w].copy_from_slice(&tile.row(c, row)[..w]);
            }
        }
    }
}

/// a·(1 − t) + b·t.
fn fade(a: f32, b: f32, t: f64, p: Precision) -> f32 {
    let round = |x: f32| match p {
        Precision::F32 => x,
        Precision::Bf16 => burn::tensor::bf16::from_f32(x).to_f32(),
    };
    round(round(a * (1.0 - t) as f32) + round(b * t as f32))
}
