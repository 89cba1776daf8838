//! Sums and affine maps over planes, for group norm.

use super::lanes::{LANES, keep, load, round, store, sum};
use super::map::silu;
use crate::Precision;
use core::arch::x86_64::*;

/// `(Σ(x - mean), Σ(x - mean)²)`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn moments(v: &[f32], mean: f32) -> (f32, f32) {
    let mean = _mm256_set1_ps(mean);
    let (mut s, mut q) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for c in v.chunks(LANES) {
        // SAFETY: exactly the elements of the chunk
        let x = unsafe { load(c.as_ptr(), c.len()) };
        let x = keep(_mm256_sub_ps(x, mean), c.len());
        s = _mm256_add_ps(s, x);
        q = _mm256_fmadd_ps(x, x, q);
    }
    (sum(s), sum(q))
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn affine(p: Precision, v: &mut [f32], map: [f32; 3], with_silu: bool) {
    match (p, with_silu) {
        (Precision::F32, false) => affine_in::<false, false>(v, map),
        (Precision::F32, true) => affine_in::<false, true>(v, map),
        (Precision::Bf16, false) => affine_in::<true, false>(v, map),
        (Precision::Bf16, true) => affine_in::<true, true>(v, map),
    }
}

#[target_feature(enable = "avx2,fma")]
fn affine_in<const BF16: bool, const SILU: bool>(v: &mut [f32], [mean, scale, shift]: [f32; 3]) {
    let (mean, scale, shift) = (_mm256_set1_ps(mean), _mm256_set1_ps(scale), _mm256_set1_ps(shift));
    for c in v.chunks_mut(LANES) {
        // SAFETY: exactly the elements of the chunk
        unsafe {
            let x = _mm256_sub_ps(load(c.as_ptr(), c.len()), mean);
            let y = round::<BF16>(_mm256_fmadd_ps(x, scale, shift));
            let y = if SILU { round::<BF16>(silu(y)) } else { y };
            store(c.as_mut_ptr(), c.len(), y);
        }
    }
}
