//! Activations on sixteen lanes, for machines with AVX-512: step by step those of `map`, with the same bits.

use super::Unary;
use super::lanes::{EXP, TANH};
use super::wide::{LANES, lanes, round};
use crate::Precision;
use core::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn unary(op: Unary, p: Precision, v: &mut [f32]) {
    const GELU_NEW: u8 = Unary::GeluNew as u8;
    const GELU_TANH: u8 = Unary::GeluTanh as u8;
    const QUICK_GELU: u8 = Unary::QuickGelu as u8;
    const ROUND: u8 = Unary::Round as u8;
    const SILU: u8 = Unary::Silu as u8;
    match (op, p) {
        (Unary::GeluNew, Precision::F32) => each::<GELU_NEW, false>(v),
        (Unary::GeluNew, Precision::Bf16) => each::<GELU_NEW, true>(v),
        (Unary::GeluTanh, Precision::F32) => each::<GELU_TANH, false>(v),
        (Unary::GeluTanh, Precision::Bf16) => each::<GELU_TANH, true>(v),
        (Unary::QuickGelu, Precision::F32) => each::<QUICK_GELU, false>(v),
        (Unary::QuickGelu, Precision::Bf16) => each::<QUICK_GELU, true>(v),
        (Unary::Round, Precision::F32) => {}
        (Unary::Round, Precision::Bf16) => each::<ROUND, true>(v),
        (Unary::Silu, Precision::F32) => each::<SILU, false>(v),
        (Unary::Silu, Precision::Bf16) => each::<SILU, true>(v),
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn each<const OP: u8, const BF16: bool>(v: &mut [f32]) {
    for c in v.chunks_mut(LANES) {
        let mask = lanes(c.len());
        // SAFETY: exactly the elements of the chunk are read and written
        unsafe {
            let x = _mm512_maskz_loadu_ps(mask, c.as_ptr());
            let y = match OP {
                o if o == Unary::GeluNew as u8 && BF16 => gelu_new_stepwise(x),
                o if o == Unary::QuickGelu as u8 => quick_gelu::<BF16>(x),
                o if o == Unary::Round as u8 => x,
                o if o == Unary::Silu as u8 => silu(x),
                _ => gelu(x),
            };
            _mm512_mask_storeu_ps(c.as_mut_ptr(), mask, round::<BF16>(y));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn silu(x: __m512) -> __m512 {
    let e = exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
    _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0), e))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn gelu(x: __m512) -> __m512 {
    let c = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044_715));
    let u = _mm512_mul_ps(_mm512_fmadd_ps(x, c, x), _mm512_set1_ps(-1.595_769));
    _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0), exp(u)))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn quick_gelu<const BF16: bool>(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let u = round::<BF16>(_mm512_mul_ps(x, _mm512_set1_ps(1.702)));
    let e = exp(_mm512_sub_ps(_mm512_setzero_ps(), u));
    _mm512_mul_ps(x, round::<BF16>(_mm512_div_ps(one, _mm512_add_ps(one, e))))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn gelu_new_stepwise(x: __m512) -> __m512 {
    let cube = round::<true>(_mm512_mul_ps(round::<true>(_mm512_mul_ps(x, x)), x));
    let small = round::<true>(_mm512_mul_ps(cube, _mm512_set1_ps(0.044_715)));
    let inner = round::<true>(_mm512_add_ps(x, small));
    let angle = round::<true>(_mm512_mul_ps(inner, _mm512_set1_ps(0.797_884_6)));
    let gate = round::<true>(_mm512_add_ps(round::<true>(tanh(angle)), _mm512_set1_ps(1.0)));
    _mm512_mul_ps(round::<true>(_mm512_mul_ps(x, _mm512_set1_ps(0.5))), gate)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn exp(x: __m512) -> __m512 {
    let dead = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(-87.336_54));
    let over = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(88.722_83));
    // operands in this order keep a NaN
    let x = _mm512_min_ps(_mm512_set1_ps(88.722_83), x);
    // scale 0: to a whole number, to nearest even
    let n = _mm512_roundscale_ps::<0x08>(_mm512_mul_ps(x, _mm512_set1_ps(core::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(EXP[0]);
    for c in &EXP[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    let y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r), _mm512_set1_ps(1.0));
    let i = _mm512_cvtps_epi32(n);
    let half = _mm512_srai_epi32::<1>(i);
    let y = _mm512_mul_ps(_mm512_mul_ps(y, power(half)), power(_mm512_sub_epi32(i, half)));
    let y = _mm512_mask_mov_ps(y, over, _mm512_set1_ps(f32::INFINITY));
    _mm512_maskz_mov_ps(!dead, y)
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn power(k: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(k, _mm512_set1_epi32(127))))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn tanh(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let z = _mm512_mul_ps(x, x);
    let mut p = _mm512_set1_ps(TANH[0]);
    for c in &TANH[1..] {
        p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(*c));
    }
    let near = _mm512_fmadd_ps(_mm512_mul_ps(p, z), x, x);
    let e = exp(_mm512_add_ps(x, x));
    let far = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0), _mm512_add_ps(e, one)));
    let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(0.625));
    _mm512_mask_mov_ps(far, small, near)
}
