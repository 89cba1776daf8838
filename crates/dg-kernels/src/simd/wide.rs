//! Kernels on sixteen lanes, for machines with AVX-512: the same bits as on eight.

use super::lanes::{EXP2, max, sum};
use core::arch::x86_64::*;

/// See `softmax::probabilities`. Then as `Steps::settle` of the order that `STEPS` says.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn probabilities<const STEPS: u8>(row: &mut [f32], old: f32, factor: f32) -> (f32, f32) {
    let factor = _mm512_set1_ps(factor);
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut tops = [_mm512_set1_ps(old); 2];
    for (i, x) in row.chunks(LANES).enumerate() {
        let mask = lanes(x.len());
        // SAFETY: exactly the elements of the chunk
        let v = unsafe { _mm512_mask_loadu_ps(lowest, mask, x.as_ptr()) };
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
    for (i, k) in (0..row.len()).step_by(LANES).enumerate() {
        let left = row.len() - k;
        let mask = lanes(left);
        // SAFETY: `k + min(16, left) <= len`; pairs take the place of floats that were read
        unsafe {
            let x = row.as_mut_ptr().add(k);
            let v = _mm512_maskz_loadu_ps(mask, x);
            let v = if STEPS == PLAIN { _mm512_sub_ps(v, top) } else { _mm512_fmsub_ps(v, factor, top) };
            let e = _mm512_maskz_mov_ps(mask, exp2_below_zero(v));
            totals[i % 2] = _mm512_add_ps(totals[i % 2], e);
            match STEPS {
                PLAIN => _mm512_mask_storeu_ps(x, mask, e),
                SWAPPED => {
                    // one without a partner stays
                    let paired = lanes(left.min(LANES) & !1);
                    let e = round::<true>(e);
                    _mm512_mask_storeu_ps(x, mask, _mm512_mask_permute_ps::<0b10_11_00_01>(e, paired, e));
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
    let [low, high] = halves(_mm512_add_ps(totals[0], totals[1]));
    (new, sum(_mm256_add_ps(low, high)))
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
pub(super) const LANES: usize = 16;
