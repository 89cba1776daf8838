//! Building blocks over eight lanes.

use core::arch::x86_64::*;

/// Floats per register.
pub(super) const LANES: usize = 8;

/// Eight floats from `p`, or the first `left` of them followed by zeros.
///
/// # Safety
/// `min(left, 8)` floats can be read at `p`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn load(p: *const f32, left: usize) -> __m256 {
    // SAFETY: the caller's promise; masked lanes are not read
    unsafe { if left >= LANES { _mm256_loadu_ps(p) } else { _mm256_maskload_ps(p, mask(left)) } }
}

/// Writes the first `min(left, 8)` lanes of `v` to `p`.
///
/// # Safety
/// That many floats can be written at `p`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn store(p: *mut f32, left: usize, v: __m256) {
    // SAFETY: the caller's promise; masked lanes are not written
    unsafe { if left >= LANES { _mm256_storeu_ps(p, v) } else { _mm256_maskstore_ps(p, mask(left), v) } }
}

/// `v` with the lanes from `left` on set to zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn keep(v: __m256, left: usize) -> __m256 {
    if left >= LANES { v } else { _mm256_and_ps(v, _mm256_castsi256_ps(mask(left))) }
}

/// All ones in the first `n < 8` lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn mask(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// `v` as it is, or rounded to the nearest bf16 value, ties to even.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn round<const BF16: bool>(v: __m256) -> __m256 {
    if !BF16 {
        return v;
    }
    let bits = _mm256_castps_si256(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    // a NaN stays one: the addition could carry out of its payload
    let nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
    let whole = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(nan), is_nan);
    _mm256_and_ps(whole, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

/// `exp(x)`: relative error below 2e-7, 0 below -87.3, +inf above 88.7, NaN for NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn exp(x: __m256) -> __m256 {
    let dead = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(-87.336_54));
    let over = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_set1_ps(88.722_83));
    // operands in this order keep a NaN
    let x = _mm256_min_ps(_mm256_set1_ps(88.722_83), x);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(core::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let y = polynomial(_mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r));
    // 2ⁿ in two halves, so that n = 128 does not overflow early
    let i = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(i);
    let y = _mm256_mul_ps(_mm256_mul_ps(y, power(half)), power(_mm256_sub_epi32(i, half)));
    let y = _mm256_blendv_ps(y, _mm256_set1_ps(f32::INFINITY), over);
    _mm256_andnot_ps(dead, y)
}

/// `2ˣ` for `x <= 0`: relative error below 2e-7 down to -124, below which it is at most 5e-38; NaN for NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn exp2_below_zero(x: __m256) -> __m256 {
    // operands in this order keep a NaN; from here on 2ⁿ is a normal number
    let x = _mm256_max_ps(_mm256_set1_ps(-124.0), x);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let f = _mm256_sub_ps(x, n);
    let mut y = _mm256_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(*c));
    }
    let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent))
}

/// `2ᶠ` for `|f| <= 1/2`, highest power first: the least largest relative error, 9.2e-8, of a polynomial of
/// degree five that is 1 at 0, found by iterated least squares.
// the fit's own coefficient, not ln 2
#[allow(clippy::approx_constant)]
pub(super) const EXP2: [f32; 6] =
    [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];

/// Coefficients of [`polynomial`], highest power first, down to the square's.
pub(super) const EXP: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// The same of [`tanh`] near zero, in squares.
pub(super) const TANH: [f32; 5] =
    [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1];

/// `exp(r)` for `|r| <= ln(2)/2` (Cephes).
#[inline]
#[target_feature(enable = "avx2,fma")]
fn polynomial(r: __m256) -> __m256 {
    let mut p = _mm256_set1_ps(EXP[0]);
    for c in &EXP[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), _mm256_set1_ps(1.0))
}

/// 2ᵏ.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn power(k: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(k, _mm256_set1_epi32(127))))
}

/// `tanh(x)`: a polynomial near zero (Cephes), by `exp` elsewhere; relative error below 3e-7.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn tanh(x: __m256) -> __m256 {
    let one = _mm256_set1_ps(1.0);
    let z = _mm256_mul_ps(x, x);
    let mut p = _mm256_set1_ps(TANH[0]);
    for c in &TANH[1..] {
        p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(*c));
    }
    let near = _mm256_fmadd_ps(_mm256_mul_ps(p, z), x, x);
    let e = exp(_mm256_add_ps(x, x));
    let far = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0), _mm256_add_ps(e, one)));
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
    _mm256_blendv_ps(far, near, _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, _mm256_set1_ps(0.625)))
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn sum(v: __m256) -> f32 {
    let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
}

/// The greatest lane.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn max(v: __m256) -> f32 {
    let q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp2(x: f32) -> f32 {
        // SAFETY: the tests that call this look for AVX2 and FMA first
        unsafe { _mm256_cvtss_f32(exp2_below_zero(_mm256_set1_ps(x))) }
    }

    #[test]
    fn powers_of_two_are_as_close_as_promised() {
        if super::super::Cpu::detect(super::super::Most::Avx2).is_none() {
            return;
        }
        let worst = (0..124_000u32)
            .map(|i| -(i as f32) * 1e-3)
            .map(|x| (f64::from(exp2(x)) / f64::from(x).exp2() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst:e}");
        assert!(exp2(0.0) == 1.0 && exp2(-1.0) == 0.5 && exp2(f32::NAN).is_nan());
        assert!(exp2(-1e9) <= 5e-38 && exp2(f32::NEG_INFINITY) <= 5e-38);
    }
}
