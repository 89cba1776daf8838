//! Everything that needs `unsafe`: AVX2+FMA kernels over plain slices.
//!
//! Products, softmax and activations have variants for AVX-512 with the same bits, products of bf16 one for its BF16
//! instructions. [`Cpu`] is the proof that the instructions exist; its methods are safe and check the lengths they
//! rely on. On other architectures it has no values, so callers take their portable path.
#![allow(unsafe_code)]

mod shared;

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod activations;
#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod channels;
#[cfg(target_arch = "x86_64")]
mod convolution;
#[cfg(target_arch = "x86_64")]
mod cpu;
#[cfg(all(test, target_arch = "x86_64"))]
mod guarded;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod map;
#[cfg(target_arch = "x86_64")]
mod peak;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(target_arch = "x86_64")]
mod rows;
#[cfg(target_arch = "x86_64")]
mod softmax;
#[cfg(target_arch = "x86_64")]
mod wide;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::Cpu;
#[cfg(target_arch = "x86_64")]
pub(crate) use cpu::Cpu;

use burn::tensor::{bf16, f16};

/// How far [`Cpu::detect`] may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Most {
    Avx2,
    Avx512,
    /// And BF16 instructions.
    Avx512Bf16,
    /// The fastest: BF16 instructions only where they do more than FMAs in f32.
    Best,
}

/// Numbers as they lie in a file.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl Values<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }
}

/// A matrix whose rows are dense.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: Values<'a>,
    /// Elements from row to row.
    pub(crate) stride: usize,
    /// Elements of a row.
    pub(crate) width: usize,
}

impl Rows<'_> {
    /// Whether the slice has `n` rows.
    fn holds(&self, n: usize) -> bool {
        n == 0 || (n - 1) * self.stride + self.width <= self.values.len()
    }
}

/// `left · right`: `[m, k]` times `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Matrices of `m` rows side by side.
    pub(crate) left: &'a [Rows<'a>],
    pub(crate) right: Right<'a>,
}

/// A product with new memory for its result, `then(sum + bias)`, rounded before and after `then`.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) n: usize,
    pub(crate) right: Right<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) then: Option<Unary>,
}

/// The right side of a product.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// `k` rows of `n` values, with the elements from row to row.
    Columns(&'a [f32], usize),
    /// `n` rows of `k` values: the transpose, as weights `[out, in]` lie.
    Rows(Rows<'a>),
}

impl Right<'_> {
    fn holds(&self, k: usize, n: usize) -> bool {
        match self {
            Self::Columns(v, stride) => k == 0 || (k - 1) * stride + n <= v.len(),
            Self::Rows(rows) => rows.width == k && rows.holds(n),
        }
    }
}

/// What becomes of a product's sums.
pub(crate) enum Finish<'a> {
    /// `to = then(sum + bias)`, rounded before and after `then`.
    Map { to: &'a mut [f32], bias: Option<&'a [f32]>, then: Option<Unary> },
    /// `residual += sum + bias`, or `gate·(sum + bias)`, every step rounded.
    Into {
        residual: &'a mut [f32],
        bias: Option<&'a [f32]>,
        /// One value for each column, shared by the rows of an image, of which there are so many.
        gate: Option<(&'a [f32], usize)>,
        /// Of the size of the result.
        scratch: &'a mut [f32],
    },
}

/// A 3×3 convolution.
#[derive(Clone, Copy)]
pub(crate) struct Convolution<'a> {
    pub(crate) input: &'a [f32],
    /// `[b, c, h, w]` of the input.
    pub(crate) dims: [usize; 4],
    /// `[o, c, 3, 3]`.
    pub(crate) weight: Values<'a>,
    /// `[o]`.
    pub(crate) bias: &'a [f32],
    pub(crate) sampling: Sampling,
    /// Added to the rounded result, and rounded again.
    pub(crate) residual: Option<&'a [f32]>,
}

/// How positions of the result map to positions of the input.
#[derive(Clone, Copy)]
pub(crate) enum Sampling {
    /// Padding 1.
    Plain,
    /// As `Plain` after nearest-neighbour doubling.
    Doubled,
    /// Stride 2, one zero row below and one zero column on the right.
    Halved,
}

impl Sampling {
    /// Rows and columns of the result.
    pub(crate) fn result(self, h: usize, w: usize) -> [usize; 2] {
        match self {
            Self::Plain => [h, w],
            Self::Doubled => [2 * h, 2 * w],
            Self::Halved => [h / 2, w / 2],
        }
    }
}

/// A `[b, s, h, d]` view whose last dimension is dense.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a [f32],
    /// Steps, in elements, of images, tokens and heads.
    pub(crate) strides: [usize; 3],
    pub(crate) dims: [usize; 4],
}

impl<'a> View<'a> {
    /// The `d` values of one token and head.
    pub(crate) fn row(&self, b: usize, s: usize, h: usize) -> &'a [f32] {
        &self.from(b, s, h)[..self.dims[3]]
    }

    /// All that follows the first value of a token and head.
    pub(crate) fn from(&self, b: usize, s: usize, h: usize) -> &'a [f32] {
        let [sb, ss, sh] = self.strides;
        &self.data[b * sb + s * ss + h * sh..]
    }
}

/// Queries, keys and values in segments along the tokens.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) queries: &'a [View<'a>],
    pub(crate) keys: &'a [View<'a>],
    /// As long as the keys, segment by segment.
    pub(crate) values: &'a [View<'a>],
}

/// What [`Cpu::unary`] computes.
#[derive(Clone, Copy)]
pub(crate) enum Unary {
    GeluNew,
    GeluTanh,
    QuickGelu,
    Round,
    Silu,
}

/// What [`Cpu::binary`] computes.
#[derive(Clone, Copy)]
pub(crate) enum Binary {
    Add,
    Mul,
}

/// What [`Cpu::norm_row`] computes, with its vectors: one value per column each.
#[derive(Clone, Copy)]
pub(crate) enum Norm<'a> {
    /// Layer norm, `· weight + bias`, rounded once.
    Layer { weight: &'a [f32], bias: &'a [f32] },
    /// Layer norm, `· (1 + scale) + shift`, rounded at every step.
    Modulate { shift: &'a [f32], scale: &'a [f32] },
    /// Root mean square norm, `· weight`, rounded once.
    Rms { weight: &'a [f32] },
    /// The same, rounded before the weight too.
    T5 { weight: &'a [f32] },
}
