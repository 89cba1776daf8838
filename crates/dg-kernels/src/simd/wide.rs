//! Kernels on sixteen lanes, for machines with AVX-512: the same bits as on eight.

use super::lanes::{EXP2, max, sum};
use core::arch::x86_64::*;

/// See `softmax::probabilities`. Then as `Steps::settle` of the order that `STEPS` says.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn probabilities<const STEPS: u8>(row: &mut [f32], old: f32, factor: f32) -> (f32, f32) {
    let factor = _mm512_set1_ps(factor);
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut tops = [_mm512_set1_ps(old); 2];
    let whole = row.len() / LANES * LANES;
    for (i, k) in (0..row.len()).step_by(LANES).enumerate() {
        let mask = lanes(row.len() - k);
        // SAFETY: `k + min(16, len - k) <= len`
        let v = unsafe {
            let x = row.as_ptr().add(k);
            if k < whole { _mm512_loadu_ps(x) } else { _mm512_mask_loadu_ps(lowest, mask, x) }
        };
        let v = if STEPS == PLAIN { v } else { _mm512_mask_mul_ps(lowest, mask, v, factor) };
        tops[i % 2] = _mm512_max_ps(tops[i % 2], v);
    }
    let [low, high] = halves(_mm512_max_ps(tops[0], tops[1]));
    let new = max(_mm256_max_ps(low, high));
    if new == f32::NEG_INFINITY {
        row.fill(0.0);
        return (new, 0.0);
    }
    let (top, mut totals) = (_mm512_set1_ps(new), [_mm512_setzero_ps(); 2]);
    let power = |v: __m512| {
        let v = if STEPS == PLAIN { _mm512_sub_ps(v, top) } else { _mm512_fmsub_ps(v, factor, top) };
        exp2_below_zero(v)
    };
    for (i, k) in (0..row.len()).step_by(LANES).enumerate() {
        let left = row.len() - k;
        // SAFETY: `k + min(16, left) <= len`; pairs take the place of floats that were read
        unsafe {
            let x = row.as_mut_ptr().add(k);
            let e = if k < whole {
                power(_mm512_loadu_ps(x))
            } else {
                _mm512_maskz_mov_ps(lanes(left), power(_mm512_maskz_loadu_ps(lanes(left), x)))
            };
            totals[i % 2] = _mm512_add_ps(totals[i % 2], e);
            put::<STEPS>(row, k, e);
        }
    }
    let [low, high] = halves(_mm512_add_ps(totals[0], totals[1]));
    (new, sum(_mm256_add_ps(low, high)))
}

/// Writes the sixteen probabilities from `k` on, or as many as there are, in the order that `STEPS` says.
///
/// # Safety
/// Floats up to `k + min(16, left)` have been read.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn put<const STEPS: u8>(row: &mut [f32], k: usize, e: __m512) {
    let left = row.len() - k;
    // SAFETY: `k + min(16, left) <= len`, and half of that
    unsafe {
        let x = row.as_mut_ptr().add(k);
        match STEPS {
            PLAIN if left >= LANES => _mm512_storeu_ps(x, e),
            PLAIN => _mm512_mask_storeu_ps(x, lanes(left), e),
            SWAPPED => {
                // one without a partner stays
                let paired = lanes(left.min(LANES) & !1);
                let e = round::<true>(e);
                _mm512_mask_storeu_ps(x, lanes(left), _mm512_mask_permute_ps::<0b10_11_00_01>(e, paired, e));
            }
            _ => {
                let halves = _mm512_srli_epi32::<16>(_mm512_castps_si512(round::<true>(e)));
                let words = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(halves));
                let to = row.as_mut_ptr().add(k / 2).cast();
                _mm512_mask_storeu_epi32(to, lanes(left.min(LANES).div_ceil(2)), words);
            }
        }
    }
}

/// Scores that stay as they are, and those of the two orders of bf16.
pub(super) const PLAIN: u8 = 0;
pub(super) const SWAPPED: u8 = 1;
pub(super) const PAIRS: u8 = 2;

/// The first `n` lanes.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn lanes(n: usize) -> u16 {
    if n >= LANES { 0xffff } else { (1u16 << n) - 1 }
}

/// See `lanes::round`.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn round<const BF16: bool>(v: __m512) -> __m512 {
    if !BF16 {
        return v;
    }
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    let whole = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_castsi512_ps(_mm512_and_si512(whole, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
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

/// See `lanes::exp2_below_zero`: the same bits.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn exp2_below_zero(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(-124.0), x);
    // beside this number there is no room for a fraction: the sum is rounded to a whole one, to nearest even, and
    // ends in its bits
    let beside = _mm512_set1_ps(12_582_912.0);
    let whole = _mm512_add_ps(x, beside);
    let f = _mm512_sub_ps(x, _mm512_sub_ps(whole, beside));
    let mut y = _mm512_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(*c));
    }
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(whole));
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
pub(super) const LANES: usize = 16;
