//! Element by element.

use super::lanes::{LANES, exp, load, round, store, tanh};
use super::product::tile::Tile;
use super::{Binary, Unary, activations};
use crate::Precision;
use burn::tensor::{bf16, f16};
use core::arch::x86_64::*;

/// # Safety
/// The machine has the instructions of `tile`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn unary(tile: Tile, op: Unary, p: Precision, v: &mut [f32]) {
    match tile {
        Tile::Narrow => narrow(op, p, v),
        // SAFETY: the caller's promise
        Tile::Dots(_) | Tile::Wide(_) => unsafe { activations::unary(op, p, v) },
    }
}

#[target_feature(enable = "avx2,fma")]
fn narrow(op: Unary, p: Precision, v: &mut [f32]) {
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

#[target_feature(enable = "avx2,fma")]
fn each<const OP: u8, const BF16: bool>(v: &mut [f32]) {
    for c in v.chunks_mut(LANES) {
        // SAFETY: exactly the elements of the chunk are read and written
        unsafe {
            let x = load(c.as_ptr(), c.len());
            let y = match OP {
                o if o == Unary::GeluNew as u8 && BF16 => gelu_new_stepwise(x),
                o if o == Unary::QuickGelu as u8 => quick_gelu::<BF16>(x),
                o if o == Unary::Round as u8 => x,
                o if o == Unary::Silu as u8 => silu(x),
                _ => gelu(x),
            };
            store(c.as_mut_ptr(), c.len(), round::<BF16>(y));
        }
    }
}

/// `x / (1 + exp(-x))`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn silu(x: __m256) -> __m256 {
    let e = exp(_mm256_sub_ps(_mm256_setzero_ps(), x));
    _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0), e))
}

/// `x / (1 + exp(-2u))`, `u = √(2/π)·(x + 0.044715·x³)`: the tanh form without a tanh.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn gelu(x: __m256) -> __m256 {
    let c = _mm256_mul_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044_715));
    let u = _mm256_mul_ps(_mm256_fmadd_ps(x, c, x), _mm256_set1_ps(-1.595_769));
    _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0), exp(u)))
}

/// `x·σ(1.702x)`, the first two steps rounded.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn quick_gelu<const BF16: bool>(x: __m256) -> __m256 {
    let one = _mm256_set1_ps(1.0);
    let u = round::<BF16>(_mm256_mul_ps(x, _mm256_set1_ps(1.702)));
    let e = exp(_mm256_sub_ps(_mm256_setzero_ps(), u));
    _mm256_mul_ps(x, round::<BF16>(_mm256_div_ps(one, _mm256_add_ps(one, e))))
}

/// The tanh form as transformers writes it, every step but the last rounded.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn gelu_new_stepwise(x: __m256) -> __m256 {
    let cube = round::<true>(_mm256_mul_ps(round::<true>(_mm256_mul_ps(x, x)), x));
    let small = round::<true>(_mm256_mul_ps(cube, _mm256_set1_ps(0.044_715)));
    let inner = round::<true>(_mm256_add_ps(x, small));
    let angle = round::<true>(_mm256_mul_ps(inner, _mm256_set1_ps(0.797_884_6)));
    let gate = round::<true>(_mm256_add_ps(round::<true>(tanh(angle)), _mm256_set1_ps(1.0)));
    _mm256_mul_ps(round::<true>(_mm256_mul_ps(x, _mm256_set1_ps(0.5))), gate)
}

/// # Safety
/// `x` and `y` have the same length.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn binary(op: Binary, p: Precision, x: &mut [f32], y: &[f32]) {
    // SAFETY: passed on
    unsafe {
        match (op, p) {
            (Binary::Add, Precision::F32) => pairs::<true, false>(x, y),
            (Binary::Add, Precision::Bf16) => pairs::<true, true>(x, y),
            (Binary::Mul, Precision::F32) => pairs::<false, false>(x, y),
            (Binary::Mul, Precision::Bf16) => pairs::<false, true>(x, y),
        }
    }
}

/// # Safety
/// `x` and `y` have the same length.
#[target_feature(enable = "avx2,fma")]
unsafe fn pairs<const ADD: bool, const BF16: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.chunks_mut(LANES).zip(y.chunks(LANES)) {
        // SAFETY: both chunks have `x.len()` elements
        unsafe {
            let (a, b) = (load(x.as_ptr(), x.len()), load(y.as_ptr(), x.len()));
            let c = if ADD { _mm256_add_ps(a, b) } else { _mm256_mul_ps(a, b) };
            store(x.as_mut_ptr(), x.len(), round::<BF16>(c));
        }
    }
}

/// # Safety
/// The slices have the same length.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn gated(p: Precision, x: &mut [f32], gate: &[f32], y: &[f32]) {
    // SAFETY: passed on
    unsafe {
        match p {
            Precision::F32 => gated_in::<false>(x, gate, y),
            Precision::Bf16 => gated_in::<true>(x, gate, y),
        }
    }
}

/// # Safety
/// The slices have the same length.
#[target_feature(enable = "avx2,fma")]
unsafe fn gated_in<const BF16: bool>(x: &mut [f32], gate: &[f32], y: &[f32]) {
    let n = x.len();
    for k in (0..n).step_by(LANES) {
        // SAFETY: `k + min(8, n - k) <= n` in all three
        unsafe {
            let product = _mm256_mul_ps(load(gate.as_ptr().add(k), n - k), load(y.as_ptr().add(k), n - k));
            let sum = _mm256_add_ps(load(x.as_ptr().add(k), n - k), round::<BF16>(product));
            store(x.as_mut_ptr().add(k), n - k, round::<BF16>(sum));
        }
    }
}

/// # Safety
/// The slices have the same length.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn blend(x: &mut [f32], wx: f32, y: &[f32], wy: f32) {
    let (wx, wy) = (_mm256_set1_ps(wx), _mm256_set1_ps(wy));
    for (x, y) in x.chunks_mut(LANES).zip(y.chunks(LANES)) {
        // SAFETY: both chunks have `x.len()` elements
        unsafe {
            let a = _mm256_mul_ps(load(x.as_ptr(), x.len()), wx);
            store(x.as_mut_ptr(), x.len(), _mm256_fmadd_ps(load(y.as_ptr(), x.len()), wy, a));
        }
    }
}

/// # Safety
/// The slices have the same length.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn widen_bf16(to: &mut [f32], from: &[bf16]) {
    let whole = to.len() / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        // SAFETY: `k + 8 <= len` of both; a bf16 is a transparent u16
        unsafe {
            let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(k).cast()));
            _mm256_storeu_si256(to.as_mut_ptr().add(k).cast(), _mm256_slli_epi32::<16>(x));
        }
    }
    to[whole..].iter_mut().zip(&from[whole..]).for_each(|(o, i)| *o = i.to_f32());
}

/// Fills `to`, exactly.
pub(super) fn widen_f16(to: &mut [f32], from: &[f16]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
}

/// `x += by`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn shift(p: Precision, v: &mut [f32], by: f32) {
    match p {
        Precision::F32 => shift_in::<false>(v, by),
        Precision::Bf16 => shift_in::<true>(v, by),
    }
}

#[target_feature(enable = "avx2,fma")]
fn shift_in<const BF16: bool>(v: &mut [f32], by: f32) {
    let by = _mm256_set1_ps(by);
    for c in v.chunks_mut(LANES) {
        // SAFETY: exactly the elements of the chunk
        unsafe {
            let x = _mm256_add_ps(load(c.as_ptr(), c.len()), by);
            store(c.as_mut_ptr(), c.len(), round::<BF16>(x));
        }
    }
}

/// `to[2i] = even[i] + by`, `to[2i + 1] = odd[i] + by`.
///
/// # Safety
/// `even` and `odd` hold `n` floats, `to` holds `2n`, initialised or not.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn interleave(p: Precision, to: *mut f32, [even, odd]: [*const f32; 2], n: usize, by: f32) {
    let by = _mm256_set1_ps(by);
    for k in (0..n).step_by(LANES) {
        // SAFETY: `k + min(8, n - k) <= n`, and twice that in `to`
        unsafe {
            let value = |from: *const f32| {
                let x = _mm256_add_ps(load(from.add(k), n - k), by);
                if p == Precision::Bf16 { round::<true>(x) } else { x }
            };
            let (a, b) = (value(even), value(odd));
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let first = _mm256_permute2f128_ps::<0x20>(low, high);
            let second = _mm256_permute2f128_ps::<0x31>(low, high);
            let left = 2 * (n - k);
            store(to.add(2 * k), left, first);
            if left > LANES {
                store(to.add(2 * k + LANES), left - LANES, second);
            }
        }
    }
}
