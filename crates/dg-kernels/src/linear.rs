//! Linear layers over weights as they lie in the file.

use crate::plug;
use crate::simd::{Cpu, Finish, Product, Right, Rows, Unary, Values};
use crate::{Precision, reference, scratch};
use burn::tensor::Tensor;

/// What follows a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// [`crate::gelu_new`]
    GeluNew,
    /// [`crate::gelu_tanh`]
    GeluTanh,
    /// [`crate::quick_gelu`]
    QuickGelu,
    /// [`crate::silu`]
    Silu,
}

/// `x · wᵀ + bias`, rounded once: `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]` -> `[.., out]`.
///
/// `w` and `bias` may be f32, bf16 or f16. A row of the result has the same bits however many rows there
/// are, on any number of threads.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<D> {
    match plug::native(&x) {
        Some(cpu) => mapped(cpu, x, w, bias, None, p),
        None => reference::linear(x, w, bias, p),
    }
}

/// [`linear`], then an activation, without a pass over memory in between: the same bits as the two.
pub fn linear_then<const D: usize>(
    x: Tensor<D>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    then: Activation,
    p: Precision,
) -> Tensor<D> {
    match plug::native(&x) {
        Some(cpu) => mapped(cpu, x, w, bias, Some(then.into()), p),
        None => reference::linear_then(x, w, bias, then, p),
    }
}

/// `residual + gate·linear(parts)`, every step rounded: [`crate::gated_residual`] of a [`linear`] layer
/// whose input is `parts` side by side, without their concatenation and without the layer's own result.
///
/// `residual` `[b, s, out]`, `gate` `[b, out]`, `parts` `[b, s, in₁]`, `[b, s, in₂]`, …, `w`
/// `[out, in₁ + in₂ + …]`. Works in the memory of `residual` if nobody else holds it.
pub fn linear_gated(
    residual: Tensor<3>,
    gate: Tensor<2>,
    parts: Vec<Tensor<3>>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<3> {
    match native(&residual, &parts) {
        Some(cpu) => into(cpu, residual, Some(gate), parts, w, bias, p),
        None => reference::linear_gated(residual, Some(gate), parts, w, bias, p),
    }
}

/// `residual + linear(x)`, both steps rounded, as [`linear_gated`].
pub fn linear_add(
    residual: Tensor<3>,
    x: Tensor<3>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<3> {
    let parts = vec![x];
    match native(&residual, &parts) {
        Some(cpu) => into(cpu, residual, None, parts, w, bias, p),
        None => reference::linear_gated(residual, None, parts, w, bias, p),
    }
}

fn native(residual: &Tensor<3>, parts: &[Tensor<3>]) -> Option<Cpu> {
    plug::native(residual).filter(|_| parts.iter().all(|t| plug::native(t).is_some()))
}

fn into(
    cpu: Cpu,
    residual: Tensor<3>,
    gate: Option<Tensor<2>>,
    parts: Vec<Tensor<3>>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<3> {
    let ([b, s, n], [out, k]) = (residual.dims(), w.dims());
    assert!(out == n && gate.as_ref().is_none_or(|g| g.dims() == [b, n]), "a layer or gate of another width");
    assert!(parts.iter().all(|t| t.dims()[..2] == [b, s]), "parts of other lengths");
    assert_eq!(parts.iter().map(|t| t.dims()[2]).sum::<usize>(), k, "inputs of the layer");
    let parts: Vec<_> = parts.into_iter().map(|t| (t.dims()[2], plug::contiguous(t))).collect();
    let left: Vec<_> = parts.iter().map(|(width, t)| dense(plug::slice(t), *width)).collect();
    let (w, bias, gate) = (plug::weight(w), bias.map(plug::small), gate.map(plug::contiguous));
    let right = Right::Rows(Rows { values: plug::values(&w), stride: k, width: k });
    let mut residual = plug::dense(residual);
    let mut sums = scratch::take(b * s * n);
    let finish = Finish::Into {
        // copies first when the memory is shared
        residual: residual.storage_mut::<f32>(),
        bias: bias.as_deref(),
        gate: gate.as_ref().map(|gate| (plug::slice(gate), s)),
        scratch: &mut sums,
    };
    cpu.product(&Product { m: b * s, n, left: &left, right }, finish, p, true);
    plug::wrap(residual)
}

fn mapped<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    then: Option<Unary>,
    p: Precision,
) -> Tensor<D> {
    let mut dims = x.dims();
    let [n, k] = w.dims();
    assert_eq!(dims[D - 1], k, "a linear layer of {k} inputs got {dims:?}");
    let m = dims[..D - 1].iter().product();
    let (x, w, bias) = (plug::contiguous(x), plug::weight(w), bias.map(plug::small));
    let right = Right::Rows(Rows { values: plug::values(&w), stride: k, width: k });
    let product = Product { m, n, left: &[dense(plug::slice(&x), k)], right };
    dims[D - 1] = n;
    plug::tensor(cpu.new_product(&product, bias.as_deref(), then, p), dims)
}

/// Rows of `width` values without gaps.
fn dense(values: &[f32], width: usize) -> Rows<'_> {
    Rows { values: Values::F32(values), stride: width, width }
}

impl From<Activation> for Unary {
    fn from(a: Activation) -> Self {
        match a {
            Activation::GeluNew => Self::GeluNew,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Silu => Self::Silu,
        }
    }
}
