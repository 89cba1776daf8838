//! Activations and arithmetic, element by element, in parallel and in place where possible.

use crate::plug::{self, CHUNK};
use crate::simd::{Binary, Unary};
use crate::{Precision, reference};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Rounds to the precision; nothing happens for [`Precision::F32`].
pub fn round<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    match p {
        Precision::F32 => x,
        Precision::Bf16 => map(x, Unary::Round, p, reference::round),
    }
}

/// GELU by the tanh approximation, rounded once (FLUX).
pub fn gelu_tanh<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    map(x, Unary::GeluTanh, p, reference::gelu_tanh)
}

/// The same function, `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, every step rounded (T5); the cube
/// is two products.
pub fn gelu_new<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    map(x, Unary::GeluNew, p, reference::gelu_new)
}

/// `x·σ(1.702·x)`, every step rounded (CLIP).
pub fn quick_gelu<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    map(x, Unary::QuickGelu, p, reference::quick_gelu)
}

/// `x·σ(x)`, rounded once.
pub fn silu<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    map(x, Unary::Silu, p, reference::silu)
}

/// `x + y`, rounded. Works in the memory of `x` if nobody else holds it. Shapes may differ where burn
/// broadcasts, on a slower path.
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>, p: Precision) -> Tensor<D> {
    zip(x, y, Binary::Add, p, reference::add)
}

/// `x · y`, as [`add`].
pub fn mul<const D: usize>(x: Tensor<D>, y: Tensor<D>, p: Precision) -> Tensor<D> {
    zip(x, y, Binary::Mul, p, reference::mul)
}

/// `x + gate·y`, product and sum rounded: `x` and `y` `[b, s, c]`, `gate` `[b, c]`. Works in the memory
/// of `x` if nobody else holds it.
pub fn gated_residual(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>, p: Precision) -> Tensor<3> {
    let ([b, s, c], cpu) = (x.dims(), plug::native(&x).filter(|_| plug::native(&y).is_some()));
    let Some(cpu) = cpu else { return reference::gated_residual(x, gate, y, p) };
    assert!(y.dims() == [b, s, c] && gate.dims() == [b, c], "a gate or residual of another shape");
    let (mut x, gate, y) = (plug::dense(x), plug::contiguous(gate), plug::contiguous(y));
    let (gate, y) = (plug::slice(&gate), plug::slice(&y));
    let rows = x.storage_mut::<f32>().par_chunks_mut(c).with_min_len(CHUNK.div_ceil(c));
    rows.enumerate().for_each(|(row, x)| cpu.gated(p, x, &gate[row / s * c..][..c], &y[row * c..][..c]));
    plug::wrap(x)
}

type Twin<const D: usize> = fn(Tensor<D>, Precision) -> Tensor<D>;

fn map<const D: usize>(x: Tensor<D>, op: Unary, p: Precision, twin: Twin<D>) -> Tensor<D> {
    let Some(cpu) = plug::native(&x) else { return twin(x, p) };
    let dims = x.dims();
    let mut x = plug::dense(x);
    if let Some(data) = x.try_storage_mut::<f32>() {
        data.par_chunks_mut(CHUNK).for_each(|v| cpu.unary(op, p, v));
        return plug::wrap(x);
    }
    // copied chunk by chunk, while it is in the cache
    let from = plug::slice(&x);
    let mut out = vec![0f32; from.len()];
    out.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        to.copy_from_slice(from);
        cpu.unary(op, p, to);
    });
    plug::tensor(out, dims)
}

type BinaryTwin<const D: usize> = fn(Tensor<D>, Tensor<D>, Precision) -> Tensor<D>;

fn zip<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    op: Binary,
    p: Precision,
    twin: BinaryTwin<D>,
) -> Tensor<D> {
    let cpu = plug::native(&x).filter(|_| plug::native(&y).is_some() && x.dims() == y.dims());
    let Some(cpu) = cpu else { return twin(x, y, p) };
    let dims = x.dims();
    let (mut x, y) = (plug::dense(x), plug::contiguous(y));
    let y = plug::slice(&y);
    if let Some(data) = x.try_storage_mut::<f32>() {
        data.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| cpu.binary(op, p, x, y));
        return plug::wrap(x);
    }
    let mut out = vec![0f32; y.len()];
    let chunks = out.par_chunks_mut(CHUNK).zip(plug::slice(&x).par_chunks(CHUNK));
    chunks.zip(y.par_chunks(CHUNK)).for_each(|((to, x), y)| {
        to.copy_from_slice(x);
        cpu.binary(op, p, to, y);
    });
    plug::tensor(out, dims)
}
