//! One row at a time: norms, rotation, softmax.

use super::Norm;
use super::lanes::{LANES, exp, keep, load, max, round, store, sum};
use crate::Precision;
use core::arch::x86_64::*;

/// # Safety
/// `to`, `from` and the vectors of `norm` have the same length.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn norm(norm: Norm<'_>, eps: f32, p: Precision, to: &mut [f32], from: &[f32]) {
    // SAFETY: passed on
    unsafe {
        match p {
            Precision::F32 => norm_in::<false>(norm, eps, to, from),
            Precision::Bf16 => norm_in::<true>(norm, eps, to, from),
        }
    }
}

/// # Safety
/// As [`norm`].
#[target_feature(enable = "avx2,fma")]
unsafe fn norm_in<const BF16: bool>(norm: Norm<'_>, eps: f32, to: &mut [f32], from: &[f32]) {
    let n = from.len();
    let mean = match norm {
        Norm::Layer { .. } | Norm::Modulate { .. } => mean(from),
        Norm::Rms { .. } | Norm::T5 { .. } => 0.0,
    };
    let factor = _mm256_set1_ps(1.0 / (mean_square(from, mean) + eps).sqrt());
    let (mean, one) = (_mm256_set1_ps(mean), _mm256_set1_ps(1.0));
    for k in (0..n).step_by(LANES) {
        // SAFETY: `k + min(8, n - k) <= n` in every slice
        unsafe {
            let at = |v: &[f32]| load(v.as_ptr().add(k), n - k);
            let x = _mm256_mul_ps(_mm256_sub_ps(at(from), mean), factor);
            let y = match norm {
                Norm::Layer { weight, bias } => _mm256_fmadd_ps(x, at(weight), at(bias)),
                Norm::Modulate { shift, scale } => {
                    let gain = round::<BF16>(_mm256_add_ps(at(scale), one));
                    if BF16 {
                        let product = round::<BF16>(_mm256_mul_ps(round::<BF16>(x), gain));
                        _mm256_add_ps(product, at(shift))
                    } else {
                        _mm256_fmadd_ps(x, gain, at(shift))
                    }
                }
                Norm::Rms { weight } => _mm256_mul_ps(x, at(weight)),
                Norm::T5 { weight } => _mm256_mul_ps(round::<BF16>(x), at(weight)),
            };
            store(to.as_mut_ptr().add(k), n - k, round::<BF16>(y));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn mean(v: &[f32]) -> f32 {
    let mut totals = [_mm256_setzero_ps(); 4];
    for four in v.chunks(4 * LANES) {
        for (c, total) in four.chunks(LANES).zip(&mut totals) {
            // SAFETY: exactly the elements of the chunk
            *total = _mm256_add_ps(*total, unsafe { load(c.as_ptr(), c.len()) });
        }
    }
    all(totals) / v.len() as f32
}

/// The mean of `(x - mean)²`.
#[target_feature(enable = "avx2,fma")]
fn mean_square(v: &[f32], mean: f32) -> f32 {
    let mean = _mm256_set1_ps(mean);
    let mut totals = [_mm256_setzero_ps(); 4];
    for four in v.chunks(4 * LANES) {
        for (c, total) in four.chunks(LANES).zip(&mut totals) {
            // SAFETY: exactly the elements of the chunk
            let x = unsafe { load(c.as_ptr(), c.len()) };
            let x = keep(_mm256_sub_ps(x, mean), c.len());
            *total = _mm256_fmadd_ps(x, x, *total);
        }
    }
    all(totals) / v.len() as f32
}

/// The sum of sums: several, because each waits for the one before it.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn all([a, b, c, d]: [__m256; 4]) -> f32 {
    sum(_mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d)))
}

/// `(a, b) -> (a·cos - b·sin, a·sin + b·cos)`, four pairs at a time.
///
/// # Safety
/// `cos` and `sin` are half as long as `row`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rotate(p: Precision, row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    let chunks = row.chunks_mut(LANES).zip(cos.chunks(LANES / 2).zip(sin.chunks(LANES / 2)));
    for (x, (cos, sin)) in chunks {
        // SAFETY: exactly the elements of the chunks are read and written
        unsafe {
            let v = load(x.as_ptr(), x.len());
            let c = _mm256_permutevar8x32_ps(load(cos.as_ptr(), cos.len()), twice);
            let s = _mm256_permutevar8x32_ps(load(sin.as_ptr(), sin.len()), twice);
            let swapped = _mm256_permute_ps::<0b10_11_00_01>(v);
            let y = _mm256_fmaddsub_ps(v, c, _mm256_mul_ps(swapped, s));
            let y = if p == Precision::Bf16 { round::<true>(y) } else { y };
            store(x.as_mut_ptr(), x.len(), y);
        }
    }
}

/// # Safety
/// `row` and `bias` have the same length.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn biased_softmax(p: Precision, row: &mut [f32], scale: f32, bias: &[f32]) {
    // SAFETY: passed on
    unsafe {
        match p {
            Precision::F32 => softmax_in::<false>(row, scale, bias),
            Precision::Bf16 => softmax_in::<true>(row, scale, bias),
        }
    }
}

/// # Safety
/// `row` and `bias` have the same length.
#[target_feature(enable = "avx2,fma")]
unsafe fn softmax_in<const BF16: bool>(row: &mut [f32], scale: f32, bias: &[f32]) {
    let (factor, lowest) = (_mm256_set1_ps(scale), _mm256_set1_ps(f32::NEG_INFINITY));
    let mut top = lowest;
    for (x, b) in row.chunks_mut(LANES).zip(bias.chunks(LANES)) {
        // SAFETY: both chunks have `x.len()` elements
        unsafe {
            let s = round::<BF16>(load(x.as_ptr(), x.len()));
            let s = round::<BF16>(_mm256_mul_ps(s, factor));
            let s = round::<BF16>(_mm256_add_ps(s, load(b.as_ptr(), x.len())));
            store(x.as_mut_ptr(), x.len(), s);
            let inside = _mm256_castsi256_ps(super::lanes::mask(x.len()));
            top = _mm256_max_ps(top, _mm256_blendv_ps(lowest, s, inside));
        }
    }
    let top = _mm256_set1_ps(max(top));
    let mut total = _mm256_setzero_ps();
    for x in row.chunks_mut(LANES) {
        // SAFETY: exactly the elements of the chunk
        unsafe {
            let e = keep(exp(_mm256_sub_ps(load(x.as_ptr(), x.len()), top)), x.len());
            total = _mm256_add_ps(total, e);
            store(x.as_mut_ptr(), x.len(), e);
        }
    }
    let factor = _mm256_set1_ps(1.0 / sum(total));
    for x in row.chunks_mut(LANES) {
        // SAFETY: exactly the elements of the chunk
        unsafe {
            let y = _mm256_mul_ps(load(x.as_ptr(), x.len()), factor);
            store(x.as_mut_ptr(), x.len(), round::<BF16>(y));
        }
    }
}
