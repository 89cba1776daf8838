//! Everything that needs `unsafe`: AVX2+FMA kernels over plain slices, and the matrix product.
//!
//! [`Cpu`] is the proof that the instructions exist; its methods are safe and check the lengths they
//! rely on. On other architectures it has no values, so callers take their portable path.
#![allow(unsafe_code)]

pub(crate) mod gemm;
mod shared;

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod channels;
#[cfg(target_arch = "x86_64")]
mod cpu;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod map;
#[cfg(target_arch = "x86_64")]
mod rows;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::Cpu;
#[cfg(target_arch = "x86_64")]
pub(crate) use cpu::Cpu;

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
        let [sb, ss, sh] = self.strides;
        &self.data[b * sb + s * ss + h * sh..][..self.dims[3]]
    }
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
