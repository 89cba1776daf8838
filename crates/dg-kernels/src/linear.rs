//! Linear layers over weights as they lie in the file.

use crate::plug::{self, CHUNK, Weight};
use crate::simd::gemm::{Matrix, Shape, product};
use crate::simd::{Cpu, Unary};
use crate::{Precision, reference, scratch};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// `x · wᵀ + bias`, rounded once: `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]` -> `[.., out]`.
///
/// `w` and `bias` may be f32, bf16 or f16. A row of the result has the same bits however many rows
/// there are; the bias is where the sum starts.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    w: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    p: Precision,
) -> Tensor<D> {
    let Some(cpu) = plug::native(&x) else { return reference::linear(x, w, bias, p) };
    let mut dims = x.dims();
    let [n, k] = w.dims();
    assert_eq!(dims[D - 1], k, "a linear layer of {k} inputs got {dims:?}");
    let m = dims[..D - 1].iter().product();
    let (x, w, bias) = (plug::contiguous(x), Weight::of(cpu, w), bias.map(plug::small));
    let (x, rows) = (plug::slice(&x), padded_rows(m, n, k));

    let mut out = vec![0f32; m * n];
    if rows == m {
        multiply(x, &w, bias.as_deref(), &mut out, Shape { m, k, n });
    } else {
        let mut from = scratch::take(rows * k);
        from[..m * k].copy_from_slice(x);
        from[m * k..].fill(0.0);
        let mut to = scratch::take(rows * n);
        multiply(&from, &w, bias.as_deref(), &mut to, Shape { m: rows, k, n });
        out.copy_from_slice(&to[..m * n]);
    }
    round_in_place(cpu, &mut out, p);
    dims[D - 1] = n;
    plug::tensor(out, dims)
}

/// The rows to compute so that a row's bits do not depend on their number.
///
/// The crate `gemm` sums differently for one row and for at most 256 results (dot products), and
/// splits a long sum differently for at most 64 rows and 64 columns.
pub(crate) fn padded_rows(m: usize, n: usize, k: usize) -> usize {
    let tiny = if m == 1 || m * n <= 256 { (256 / n.max(1) + 1).next_multiple_of(8).max(8) } else { m };
    if k > 512 && n <= 64 && tiny <= 64 { 72 } else { tiny.max(m) }
}

pub(crate) fn round_in_place(cpu: Cpu, v: &mut [f32], p: Precision) {
    if p == Precision::Bf16 {
        v.par_chunks_mut(CHUNK).for_each(|v| cpu.unary(Unary::Round, p, v));
    }
}

fn multiply(x: &[f32], w: &[f32], bias: Option<&[f32]>, out: &mut [f32], shape: Shape) {
    let Shape { k, n, .. } = shape;
    if let Some(bias) = bias {
        out.par_chunks_mut(n).with_min_len(CHUNK.div_ceil(n)).for_each(|row| row.copy_from_slice(bias));
    }
    let (x, w) = (Matrix { data: x, strides: [k, 1] }, Matrix { data: w, strides: [1, k] });
    product(shape, (out, n), bias.is_some(), x, w, true);
}
