//! Linear layers over weights as they lie in the file. All panic when weight, bias, gate or residual do not
//! fit the input.

use crate::plug;
use crate::simd::{Cpu, Finish, Layer, Product, Right, Rows, Unary, Values};
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
        Some(cpu) => one(shared(cpu, x, &[SharedLayer { weight: w, bias, then: None }], p)),
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
        Some(cpu) => one(shared(cpu, x, &[SharedLayer { weight: w, bias, then: Some(then) }], p)),
        None => reference::linear_then(x, w, bias, then, p),
    }
}

/// Several layers over the same `x` `[.., in]`: for each its weight `[outᵢ, in]`, bias and activation. As
/// [`linear_then`] or [`linear`] for each, with `x` brought into the order of the product once.
pub fn linear_shared<const D: usize>(
    x: Tensor<D>,
    layers: &[SharedLayer<'_>],
    p: Precision,
) -> Vec<Tensor<D>> {
    match plug::native(&x) {
        Some(cpu) => shared(cpu, x, layers, p),
        None => layers.iter().map(|layer| reference::linear_shared(x.clone(), layer, p)).collect(),
    }
}

/// One layer of [`linear_shared`].
#[derive(Clone, Copy, Debug)]
pub struct SharedLayer<'a> {
    /// `[out, in]`; f32, bf16 or f16.
    pub weight: &'a Tensor<2>,
    /// `[out]`
    pub bias: Option<&'a Tensor<1>>,
    /// What follows.
    pub then: Option<Activation>,
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

fn shared<const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    layers: &[SharedLayer<'_>],
    p: Precision,
) -> Vec<Tensor<D>> {
    let dims = x.dims();
    let (k, m) = (dims[D - 1], dims[..D - 1].iter().product());
    let held: Vec<_> = layers
        .iter()
        .map(|l| (plug::weight(l.weight), l.bias.map(plug::small), l.then.map(Unary::from)))
        .collect();
    let x = plug::contiguous(x);
    let layers: Vec<_> = held
        .iter()
        .zip(layers)
        .map(|((weight, bias, then), layer)| {
            let [n, inner] = layer.weight.dims();
            assert_eq!(inner, k, "a linear layer of {inner} inputs got {dims:?}");
            let right = Right::Rows(Rows { values: plug::values(weight), stride: k, width: k });
            Layer { n, right, bias: bias.as_deref(), then: *then }
        })
        .collect();
    let results = cpu.layers(m, &[dense(plug::slice(&x), k)], &layers, p);
    let tensor = |(result, layer): (Vec<f32>, &Layer<'_>)| {
        let mut dims = dims;
        dims[D - 1] = layer.n;
        plug::tensor(result, dims)
    };
    results.into_iter().zip(&layers).map(tensor).collect()
}

fn one<T>(mut all: Vec<T>) -> T {
    all.pop().expect("a result for each layer")
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
