//! Kernels on sixteen lanes, for machines with AVX-512: the same bits as on eight.

use super::lanes::{EXP2, max, sum};
use core::arch::x86_64::*;

/// See `attention::probabilities`.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn probabilities<const SCALED: bool>(row: &mut [f32], old: f32, factor: f32) -> (f32, f32) {
    let lanes = |n: usize| if n >= LANES { 0xffff } else { (1u16 << n) - 1 };
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut top = _mm512_set1_ps(old);
    for x in row.chunks_mut(LANES) {
        let mask = lanes(x.len());
        // SAFETY: exactly the elements of the chunk
        unsafe {
            let mut v = _mm512_mask_loadu_ps(lowest, mask, x.as_ptr());
            if SCALED {
                v = _mm512_mask_mul_ps(lowest, mask, v, _mm512_set1_ps(factor));
                _mm512_mask_storeu_ps(x.as_mut_ptr(), mask, v);
            }
            top = _mm512_max_ps(top, v);
        }
    }
    let [low, high] = halves(top);
    let new = max(_mm256_max_ps(low, high));
    if new == f32::NEG_INFINITY {
        row.fill(0.0);
        return (new, 0.0);
    }
    let top = _mm512_set1_ps(new);
    let mut total = _mm256_setzero_ps();
    for x in row.chunks_mut(LANES) {
        let mask = lanes(x.len());
        // SAFETY: exactly the elements of the chunk
        unsafe {
            let e = exp2_below_zero(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x.as_ptr()), top));
            _mm512_mask_storeu_ps(x.as_mut_ptr(), mask, e);
            // eight lanes at a time, in the order of the narrow kernel
            let [low, high] = halves(_mm512_maskz_mov_ps(mask, e));
            total = _mm256_add_ps(_mm256_add_ps(total, low), high);
        }
    }
    (new, sum(total))
}

/// See `peak::fma`.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn fma(steps: usize) -> f32 {
    let (mut chains, factor) = ([_mm512_set1_ps(1.0); 12], _mm512_set1_ps(core::hint::black_box(0.999)));
    for _ in 0..steps {
        for chain in &mut chains {
            *chain = _mm512_fmadd_ps(*chain, factor, factor);
        }
    }
    let mut all = chains[0];
    for chain in &chains[1..] {
        all = _mm512_add_ps(all, *chain);
    }
    let [low, high] = halves(all);
    sum(_mm256_add_ps(low, high))
}

/// The same with sums of two products.
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
pub(super) fn dots(steps: usize) -> f32 {
    // 0.999 is no bf16
    let factor = pairs(_mm512_set1_epi32(core::hint::black_box(0x3f7f_3f7f)));
    let mut chains = [_mm512_set1_ps(1.0); 12];
    for _ in 0..steps {
        for chain in &mut chains {
            *chain = _mm512_dpbf16_ps(*chain, factor, factor);
        }
    }
    let mut all = chains[0];
    for chain in &chains[1..] {
        all = _mm512_add_ps(all, *chain);
    }
    let [low, high] = halves(all);
    sum(_mm256_add_ps(low, high))
}

/// The lower and the upper eight lanes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn halves(v: __m512) -> [__m256; 2] {
    let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v));
    [_mm512_castps512_ps256(v), _mm256_castpd_ps(high)]
}

/// See `lanes::exp2_below_zero`: the same steps.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn exp2_below_zero(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(-124.0), x);
    // scale 0: to a whole number, to nearest even
    let n = _mm512_roundscale_ps::<0x08>(x);
    let f = _mm512_sub_ps(x, n);
    let mut y = _mm512_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(*c));
    }
    let exponent = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(n));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), exponent))
}

/// The same bits as pairs of bf16.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
pub(super) fn pairs(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which every pattern is a value
    unsafe { core::mem::transmute(v) }
}

/// Floats per register.
const LANES: usize = 16;
