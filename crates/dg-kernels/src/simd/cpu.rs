//! The safe face of the kernels.

use super::product::Kind;
use super::product::steps::Steps;
use super::product::tile::Tile;
use super::{
    Attention, Binary, Convolution, Finish, Layer, Most, Norm, Product, Rows, Unary, View, attention,
    channels, convolution, map, peak, product, rows, wide,
};
use crate::Precision;
use burn::tensor::bf16;

/// Proof that the machine has AVX2 and FMA, AVX-512 if the tile is wide, and its BF16 instructions if `dots`.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    pub(super) tile: Tile,
    dots: bool,
}

impl Cpu {
    /// What the machine has of what `most` allows.
    pub(crate) fn detect(most: Most) -> Option<Self> {
        let base = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let wide = most >= Most::Avx512 && is_x86_feature_detected!("avx512f");
        let able = wide && is_x86_feature_detected!("avx512bf16");
        let dots = able && (most == Most::Avx512Bf16 || most == Most::Best && !halves_dots());
        let tile = if wide { Tile::Wide(rows_in_cache()) } else { Tile::Narrow };
        base.then_some(Self { tile, dots })
    }

    /// `"avx512bf16"`, `"avx512"` or `"avx2"`.
    pub(crate) fn name(self) -> &'static str {
        match self.tile {
            Tile::Narrow => "avx2",
            Tile::Dots(_) | Tile::Wide(_) if self.dots => "avx512bf16",
            Tile::Dots(_) | Tile::Wide(_) => "avx512",
        }
    }

    /// What computes a product of bf16 or of f32.
    pub(super) fn kind(self, bf16: bool) -> Kind {
        match self.tile {
            tile if !bf16 => (tile, Steps::Plain),
            Tile::Dots(most) | Tile::Wide(most) if self.dots => (Tile::Dots(most), Steps::Pairs),
            tile => (tile, Steps::Swapped),
        }
    }

    /// Applies `op` to every element.
    pub(crate) fn unary(self, op: Unary, p: Precision, v: &mut [f32]) {
        // SAFETY: `self` proves AVX2 and FMA, and what its tile needs
        unsafe { map::unary(self.tile, op, p, v) }
    }

    /// `x = op(x, y)`, element by element.
    pub(crate) fn binary(self, op: Binary, p: Precision, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: `self` proves AVX2 and FMA; the lengths are equal
        unsafe { map::binary(op, p, x, y) }
    }

    /// `x += gate · y`.
    pub(crate) fn gated(self, p: Precision, x: &mut [f32], gate: &[f32], y: &[f32]) {
        assert!(x.len() == y.len() && x.len() == gate.len());
        // SAFETY: `self` proves AVX2 and FMA; the lengths are equal
        unsafe { map::gated(p, x, gate, y) }
    }

    /// `x = wx·x + wy·y`.
    pub(crate) fn blend(self, x: &mut [f32], wx: f32, y: &[f32], wy: f32) {
        assert_eq!(x.len(), y.len());
        // SAFETY: `self` proves AVX2 and FMA; the lengths are equal
        unsafe { map::blend(x, wx, y, wy) }
    }

    /// Fills `to` with `from`, exactly.
    pub(crate) fn widen_bf16(self, to: &mut [f32], from: &[bf16]) {
        assert_eq!(to.len(), from.len());
        // SAFETY: `self` proves AVX2; the lengths are equal
        unsafe { map::widen_bf16(to, from) }
    }

    /// Normalises one row.
    pub(crate) fn norm_row(self, norm: Norm<'_>, eps: f32, p: Precision, to: &mut [f32], from: &[f32]) {
        let n = to.len();
        let (a, b) = match norm {
            Norm::Layer { weight, bias } => (weight, bias),
            Norm::Modulate { shift, scale } => (shift, scale),
            Norm::Rms { weight } | Norm::T5 { weight } => (weight, weight),
        };
        assert!(from.len() == n && a.len() == n && b.len() == n);
        // SAFETY: `self` proves AVX2 and FMA; the lengths are equal
        unsafe { rows::norm(norm, eps, p, to, from) }
    }

    /// Rotates the neighbouring pairs of `row` in place.
    pub(crate) fn rotate(self, p: Precision, row: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(row.len() == 2 * cos.len() && row.len() == 2 * sin.len());
        // SAFETY: `self` proves AVX2 and FMA; the lengths match
        unsafe { rows::rotate(p, row, cos, sin) }
    }

    /// Turns one row of scores into probabilities: `softmax(score · scale + bias)`.
    pub(crate) fn biased_softmax(self, p: Precision, row: &mut [f32], scale: f32, bias: &[f32]) {
        assert_eq!(row.len(), bias.len());
        // SAFETY: `self` proves AVX2 and FMA; the lengths are equal
        unsafe { rows::biased_softmax(p, row, scale, bias) }
    }

    /// `(Σ(x - mean), Σ(x - mean)²)`.
    pub(crate) fn moments(self, v: &[f32], mean: f32) -> (f32, f32) {
        // SAFETY: `self` proves AVX2 and FMA
        unsafe { channels::moments(v, mean) }
    }

    /// With `map = [mean, scale, shift]`: `x = (x - mean)·scale + shift`, rounded, with SiLU after it if asked for, rounded again.
    pub(crate) fn affine(self, p: Precision, v: &mut [f32], map: [f32; 3], silu: bool) {
        // SAFETY: `self` proves AVX2 and FMA
        unsafe { channels::affine(p, v, map, silu) }
    }

    /// For each segment of queries its output `[b, s, h, d]`, rounded to the second precision, and the logarithms
    /// of its rows' sums of exponentials, `[b, h, s]`. The operands have the first precision. There are keys.
    pub(crate) fn attention(
        self,
        a: &Attention<'_>,
        scale: f32,
        of_and_end: [Precision; 2],
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        let [b, _, h, d] = a.queries[0].dims;
        let alike = |v: &View<'_>| v.dims[0] == b && v.dims[2..] == [h, d];
        assert!(d > 0 && a.queries.iter().chain(a.keys).chain(a.values).all(alike));
        assert!(a.keys.len() == a.values.len());
        assert!(a.keys.iter().zip(a.values).all(|(k, v)| k.dims == v.dims && k.dims[1] > 0));
        attention::run(self, a, scale, of_and_end)
    }

    /// Does `steps` steps of what products of `p` are made of, on registers of the tile's width: how many
    /// operations, and a value that depends on them.
    pub(crate) fn fma(self, p: Precision, steps: usize) -> (usize, f32) {
        // SAFETY: `self` proves AVX2 and FMA, and what its tiles need
        unsafe {
            match self.kind(p == Precision::Bf16).0 {
                Tile::Narrow => (8 * steps * peak::FLOP, peak::fma(steps)),
                Tile::Wide(_) => (16 * steps * peak::FLOP, wide::fma(steps)),
                Tile::Dots(_) => (32 * steps * peak::FLOP, wide::dots(steps)),
            }
        }
    }

    /// `x += by`, rounded.
    pub(crate) fn shift(self, p: Precision, x: &mut [f32], by: f32) {
        // SAFETY: `self` proves AVX2 and FMA
        unsafe { map::shift(p, x, by) }
    }

    /// Computes `product` into `finish`; alone on this thread unless `parallel`.
    pub(crate) fn product(self, product: &Product<'_>, finish: Finish<'_>, p: Precision, parallel: bool) {
        product::into(self, product, finish, p, parallel);
    }

    /// Layers over the same `m` rows, each in new memory.
    pub(crate) fn layers(
        self,
        m: usize,
        left: &[Rows<'_>],
        layers: &[Layer<'_>],
        p: Precision,
    ) -> Vec<Vec<f32>> {
        product::fresh(self, m, left, layers, p)
    }

    /// The result, `[b, o, oh, ow]`.
    pub(crate) fn convolve(self, convolution: &Convolution<'_>, p: Precision) -> Vec<f32> {
        let [b, c, h, w] = convolution.dims;
        assert!(c > 0 && !convolution.bias.is_empty());
        assert!(convolution.input.len() == b * c * h * w);
        assert!(convolution.weight.len() == convolution.bias.len() * c * 9);
        convolution::run(self, convolution, p)
    }
}

/// Whether BF16 instructions do less in a second than FMAs in f32: half the work on the Intel Xeon where both were
/// measured (docs/performance.md). AMD's Zen 4 is said to start as many of either, which is twice the work; that was not
/// measured with these kernels.
fn halves_dots() -> bool {
    let v = core::arch::x86_64::__cpuid(0);
    [v.ebx, v.edx, v.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Rows of a wide tile: as many as there are registers for if they leave room in the first-level cache for what
/// passes, otherwise eight. The bits are the same.
fn rows_in_cache() -> usize {
    if first_level_bytes() >= 48 << 10 { ROWS_MAX } else { ROWS_MIN }
}

/// Size of a core's first-level data cache; 0 if the processor does not say.
fn first_level_bytes() -> usize {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    // Intel's leaf, and AMD's of the same form
    let leaf = [4, 0x8000_001d].into_iter().find(|leaf| {
        let last = __cpuid(leaf & 0x8000_0000).eax;
        last >= *leaf && __cpuid_count(*leaf, 0).eax & 0x1f == 1
    });
    leaf.map_or(0, |leaf| {
        let v = __cpuid_count(leaf, 0);
        let part = |shift: u32, bits: u32| ((v.ebx >> shift & ((1 << bits) - 1)) + 1) as usize;
        part(22, 10) * part(12, 10) * part(0, 12) * (v.ecx as usize + 1)
    })
}

const ROWS_MAX: usize = 14;
const ROWS_MIN: usize = 8;
