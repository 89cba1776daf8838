//! The same operations in plain burn: the path of other devices and number formats, and what the
//! tests compare the fast kernels with.
//!
//! Inputs of other float types are computed in f32, and the result takes the type of the first input.

mod attention;
mod spatial;

pub use attention::{attention, attention_segments, attention_with_bias, fused_attention, merge_partials};
pub use spatial::{
    Moments, conv1x1, conv3x3, conv3x3_add, conv3x3_stride2, conv3x3_upsampled, group_moments, group_norm,
    group_norm_by, join_moments,
};

use crate::{Activation, Precision, SharedLayer, device};
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Int, Tensor, activation};

/// See [`crate::round`].
pub fn round<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    let kind = x.dtype();
    match p {
        Precision::Bf16 if kind != DType::BF16 => x.cast(DType::BF16).cast(kind),
        _ => x,
    }
}

/// See [`crate::linear()`].
pub fn linear<const D: usize>(
    x: Tensor<D>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<D> {
    let mut dims = x.dims();
    let [n, k] = w.dims();
    let (kind, m) = (x.dtype(), dims[..D - 1].iter().product::<usize>());
    let x = x.reshape([m, k]);
    let mut y = if is_flex(&x) { product(x, cast(w, kind)) } else { product_on_device(x, w, p) };
    if let Some(bias) = bias {
        y = y + cast(bias, kind).unsqueeze::<2>();
    }
    dims[D - 1] = n;
    round(y, p).reshape(dims)
}

/// `x · wᵀ` by burn-flex, with as many rows as it takes.
fn product(mut x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let ([m, k], n) = (x.dims(), w.dims()[0]);
    let rows = padded_rows(m, n, k);
    if rows > m {
        let padding = Tensor::zeros([rows - m, k], (&x.device(), x.dtype()));
        x = Tensor::cat(vec![x, padding], 0);
    }
    x.matmul(w.transpose()).narrow(0, 0, m)
}

/// `x · wᵀ` in the format of `x`. In a bfloat16 run both sides are bfloat16, which tensor cores multiply into f32 sums;
/// the result is rounded to bfloat16 before a bias is added, and again after.
fn product_on_device(x: Tensor<2>, w: &Tensor<2>, p: Precision) -> Tensor<2> {
    let kind = x.dtype();
    match p {
        Precision::Bf16 => {
            let y = cast(&x, DType::BF16).matmul(cast(w, DType::BF16).transpose());
            cast(&y, kind)
        }
        Precision::F32 => matmul(x, cast(w, kind).transpose()),
    }
}

/// `left · right`, in f32 if they are.
pub(crate) fn matmul<const D: usize>(left: Tensor<D>, right: Tensor<D>) -> Tensor<D> {
    device::matmul_f32(&left, &right).unwrap_or_else(|| left.matmul(right))
}

pub(crate) fn is_flex<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// The rows to compute so that a row's bits do not depend on their number.
///
/// The crate `gemm`, burn-flex's matrix product, sums differently for one row and for at most 256 results
/// (dot products), and splits a long sum differently for at most 64 rows and 64 columns.
fn padded_rows(m: usize, n: usize, k: usize) -> usize {
    let tiny = if m == 1 || m * n <= 256 { (256 / n.max(1) + 1).next_multiple_of(8).max(8) } else { m };
    if k > 512 && n <= 64 && tiny <= 64 { 72 } else { tiny.max(m) }
}

/// See [`crate::linear_then`].
pub fn linear_then<const D: usize>(
    x: Tensor<D>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    then: Activation,
    p: Precision,
) -> Tensor<D> {
    let y = linear(x, w, bias, p);
    match then {
        Activation::GeluNew => gelu_new(y, p),
        Activation::GeluTanh => gelu_tanh(y, p),
        Activation::QuickGelu => quick_gelu(y, p),
        Activation::Silu => silu(y, p),
    }
}

/// One layer of [`crate::linear_shared`].
pub fn linear_shared<const D: usize>(x: Tensor<D>, layer: &SharedLayer<'_>, p: Precision) -> Tensor<D> {
    match layer.then {
        Some(then) => linear_then(x, layer.weight, layer.bias, then, p),
        None => linear(x, layer.weight, layer.bias, p),
    }
}

/// See [`crate::linear_gated`] and, without a gate, [`crate::linear_add`].
pub fn linear_gated(
    residual: Tensor<3>,
    gate: Option<Tensor<2>>,
    parts: Vec<Tensor<3>>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<3> {
    let kind = residual.dtype();
    let parts = parts.iter().map(|part| cast(part, kind)).collect();
    let y = linear(Tensor::cat(parts, 2), w, bias, p);
    match gate {
        Some(gate) => gated_residual(residual, gate, y, p),
        None => add(residual, y, p),
    }
}

/// See [`crate::gelu_tanh`].
pub fn gelu_tanh<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    in_f32(x, |x| {
        let u = (x.clone() + x.clone() * x.clone() * x.clone() * 0.044_715) * SQRT_2_OVER_PI;
        // = 0.5·x·(1 + tanh u), without the cancellation for negative u
        round(x / ((u * -2.0).exp() + 1.0), p)
    })
}

/// See [`crate::gelu_new`].
pub fn gelu_new<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    in_f32(x, |x| {
        let square = round(x.clone() * x.clone(), p);
        let cube = round(square * x.clone(), p);
        let inner = round(x.clone() + round(cube * 0.044_715, p), p);
        let gate = round(round(round(inner * SQRT_2_OVER_PI, p).tanh(), p) + 1.0, p);
        round(round(x * 0.5, p) * gate, p)
    })
}

/// See [`crate::quick_gelu`].
pub fn quick_gelu<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    in_f32(x, |x| {
        let gate = round(activation::sigmoid(round(x.clone() * 1.702, p)), p);
        round(x * gate, p)
    })
}

/// See [`crate::silu`].
pub fn silu<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    in_f32(x, |x| round(x.clone() / ((-x).exp() + 1.0), p))
}

/// See [`crate::add`].
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>, p: Precision) -> Tensor<D> {
    round(x + y, p)
}

/// See [`crate::mul`].
pub fn mul<const D: usize>(x: Tensor<D>, y: Tensor<D>, p: Precision) -> Tensor<D> {
    round(x * y, p)
}

/// See [`crate::gated_residual`].
pub fn gated_residual(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>, p: Precision) -> Tensor<3> {
    // in f32: a product and a sum of bfloat16 may become one operation, rounded once
    let (gate, y) = (cast(&gate, DType::F32), cast(&y, DType::F32));
    in_f32(x, |x| round(x + round(gate.unsqueeze_dim::<3>(1) * y, p), p))
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64, p: Precision) -> Tensor<3> {
    let (weight, bias) = (cast(weight, DType::F32).unsqueeze(), cast(bias, DType::F32).unsqueeze());
    in_f32(x, |x| round(standardised(x, eps) * weight + bias, p))
}

/// See [`crate::layer_norm_modulate`].
pub fn layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<2>,
    scale: Tensor<2>,
    eps: f64,
    p: Precision,
) -> Tensor<3> {
    if let Some(y) = device::layer_norm_modulate(&x, &shift, &scale, eps, p) {
        return y;
    }
    let (shift, scale) = (cast(&shift, DType::F32), cast(&scale, DType::F32));
    in_f32(x, |x| {
        let gain = round(scale + 1.0, p).unsqueeze_dim::<3>(1);
        let y = round(round(standardised(x, eps), p) * gain, p);
        round(y + shift.unsqueeze_dim::<3>(1), p)
    })
}

/// See [`crate::rms_norm`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f64, p: Precision) -> Tensor<D> {
    let weight = cast(weight, DType::F32).unsqueeze();
    in_f32(x, |x| round(unit_rms(x, eps) * weight, p))
}

/// See [`crate::t5_norm`].
pub fn t5_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f64, p: Precision) -> Tensor<D> {
    let weight = cast(weight, DType::F32).unsqueeze();
    in_f32(x, |x| round(round(unit_rms(x, eps), p) * weight, p))
}

/// See [`crate::rms_norm_rope`].
pub fn rms_norm_rope(
    x: Tensor<4>,
    weight: &Tensor<1>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    eps: f64,
    p: Precision,
) -> Tensor<4> {
    if let Some(y) = device::rms_norm_rope(&x, weight, cos, sin, eps, p) {
        return y;
    }
    let [b, s, h, d] = x.dims();
    let table = |t: &Tensor<2>| cast(t, DType::F32).reshape([1, s, 1, d / 2, 1]);
    let (cos, sin) = (table(cos), table(sin));
    let weight = cast(weight, DType::F32).unsqueeze();
    in_f32(x, |x| {
        let pairs = round(unit_rms(x, eps) * weight, p).reshape([b, s, h, d / 2, 2]);
        let first: Tensor<5> = pairs.clone().narrow(4, 0, 1);
        let second: Tensor<5> = pairs.narrow(4, 1, 1);
        let re = first.clone() * cos.clone() - second.clone() * sin.clone();
        let im = first * sin + second * cos;
        round(Tensor::cat(vec![re, im], 4).reshape([b, s, h, d]), p)
    })
}

/// See [`crate::embedding`].
pub fn embedding(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids: Vec<i32> = ids.iter().map(|id| i32::try_from(*id).expect("an id below 2³¹")).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &table.device());
    table.clone().select(0, ids).cast(DType::F32)
}

/// See [`crate::cat_tokens`].
pub fn cat_tokens(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    // nothing has no format of its own
    if a.dims()[1] == 0 || b.dims()[1] == 0 {
        return if a.dims()[1] == 0 { b } else { a };
    }
    Tensor::cat(vec![a, b], 1)
}

/// See [`crate::cat_channels`].
pub fn cat_channels(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    Tensor::cat(vec![a, b], 2)
}

fn standardised(x: Tensor<3>, eps: f64) -> Tensor<3> {
    let (var, mean) = x.clone().var_mean_bias(2);
    (x - mean) * var.add_scalar(eps).sqrt().recip()
}

fn unit_rms<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let square = (x.clone() * x.clone()).mean_dim(D - 1);
    x * square.add_scalar(eps).sqrt().recip()
}

/// `t` as `kind`; no copy when it is that already.
pub(crate) fn cast<const D: usize>(t: &Tensor<D>, kind: DType) -> Tensor<D> {
    if t.dtype() == kind { t.clone() } else { t.clone().cast(kind) }
}

/// Runs `f` in f32 and gives the result the type of `x`.
fn in_f32<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    let kind = x.dtype();
    if kind == DType::F32 { f(x) } else { f(x.cast(DType::F32)).cast(kind) }
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
