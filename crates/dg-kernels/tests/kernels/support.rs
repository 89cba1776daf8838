//! Random tensors and comparisons.

use burn::tensor::{DType, Device, Tensor};
use dg_kernels::{Precision, from_vec, to_vec};

pub(crate) const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Uniform in [-2, 2).
pub(crate) fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let data = (0..shape.iter().product::<usize>()).map(|_| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 4.0
    });
    from_vec(data.collect(), shape, &Device::flex())
}

/// As [`random`], with bf16 values for [`Precision::Bf16`].
pub(crate) fn input<const D: usize>(seed: u64, shape: [usize; D], p: Precision) -> Tensor<D> {
    let x = random(seed, shape);
    if p == Precision::Bf16 { x.cast(DType::BF16).cast(DType::F32) } else { x }
}

pub(crate) fn bits<const D: usize>(t: Tensor<D>) -> Vec<u32> {
    to_vec(t).into_iter().map(f32::to_bits).collect()
}

pub(crate) fn largest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }).fold(0.0, f32::max)
}

/// F32: within `tolerance`. Bf16: bf16 values, at most one in fifty (or one) not the expected
/// one, and those by a rounding that fell the other way.
pub(crate) fn check<const D: usize>(a: Tensor<D>, b: Tensor<D>, tolerance: f32, p: Precision, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (to_vec(a), to_vec(b));
    if p == Precision::F32 {
        let worst = largest(&a, &b);
        assert!(worst <= tolerance, "{what}: largest difference {worst}");
        return;
    }
    assert!(a.iter().all(|x| x.to_bits() & 0xffff == 0), "{what}: not bf16");
    let mut flips = 0;
    for (a, b) in a.iter().zip(&b).filter(|(a, b)| a != b) {
        flips += 1;
        // one step of bf16 is at most 2⁻⁷ of the value
        let step = a.abs().max(b.abs()) / 128.0;
        assert!((a - b).abs() <= step.max(tolerance), "{what}: {a} for {b}");
    }
    assert!(flips <= 1 + a.len() / 50, "{what}: {flips} of {} differ", a.len());
}
