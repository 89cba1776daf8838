//! Moving rows: embedding tables, concatenation, plain memory.

use crate::plug::{self, CHUNK};
use crate::reference;
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

/// Rows `ids` of a `[n, c]` table (f32, bf16 or f16, read where it lies) as f32 `[ids.len(), c]`.
///
/// # Panics
/// If an id is not below `n`.
pub fn embedding(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let [n, c] = table.dims();
    if let Some(id) = ids.iter().find(|id| **id as usize >= n) {
        panic!("id {id} is outside of a table of {n} rows");
    }
    let here = matches!(table.device().as_dispatch(), DispatchDevice::Flex(_));
    match plug::cpu() {
        Some(cpu) if here && c > 0 && !ids.is_empty() => {
            plug::tensor(plug::gather(cpu, table, ids), [ids.len(), c])
        }
        _ => reference::embedding(table, ids),
    }
}

/// `[b, s1, c]` and `[b, s2, c]` one after the other, `[b, s1 + s2, c]`.
pub fn cat_tokens(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    if plug::native(&a).is_none() || plug::native(&b).is_none() {
        return reference::cat_tokens(a, b);
    }
    let ([n, s1, c], [_, s2, _]) = (a.dims(), b.dims());
    assert!(b.dims() == [n, s2, c], "tokens of other widths");
    joined(a, b, (s1 * c, s2 * c), [n, s1 + s2, c])
}

/// `[b, s, c1]` and `[b, s, c2]` side by side, `[b, s, c1 + c2]`.
pub fn cat_channels(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    if plug::native(&a).is_none() || plug::native(&b).is_none() {
        return reference::cat_channels(a, b);
    }
    let ([n, s, c1], [_, _, c2]) = (a.dims(), b.dims());
    assert!(b.dims() == [n, s, c2], "other numbers of tokens");
    joined(a, b, (c1, c2), [n, s, c1 + c2])
}

/// `[b, c, rows, w]` one below the other, from the top down, `[b, c, h, w]`. A part may lie scattered, as
/// some rows of a larger map do; a single one that does not is returned as it is.
///
/// # Panics
/// Without a part, and if they differ in anything but their rows.
pub fn cat_rows(mut parts: Vec<Tensor<4>>) -> Tensor<4> {
    if parts.iter().any(|part| plug::native(part).is_none()) {
        return if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) };
    }
    let [b, c, _, w] = parts[0].dims();
    let mut parts: Vec<_> = parts.into_iter().map(plug::rows).collect();
    if parts.len() == 1 && parts[0].is_contiguous() {
        return plug::wrap(parts.remove(0));
    }
    let views: Vec<_> = parts.iter().map(plug::view).collect();
    assert!(views.iter().all(|v| [v.dims[0], v.dims[1], v.dims[3]] == [b, c, w]), "rows of other maps");
    let h: usize = views.iter().map(|view| view.dims[2]).sum();
    let mut out = vec![0f32; b * c * h * w];
    out.par_chunks_mut(h * w).enumerate().for_each(|(plane, to)| {
        let rows = views.iter().flat_map(|view| (0..view.dims[2]).map(move |y| (view, y)));
        for (to, (view, y)) in to.chunks_exact_mut(w).zip(rows) {
            to.copy_from_slice(view.row(plane / c, plane % c, y));
        }
    });
    plug::tensor(out, [b, c, h, w])
}

/// A tensor around `data`, f32 on `device`; on the CPU without a copy.
///
/// # Panics
/// If `data` has not as many values as `shape` says.
pub fn from_vec<const D: usize>(data: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(data, shape), (device, DType::F32))
}

/// The values in row-major order as f32; without a copy if the tensor is dense and nobody else holds it.
pub fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    let x = if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) };
    x.into_data().try_into_vec().expect("converted to f32")
}

/// Blocks of `na` and `nb` values by turns.
fn joined(a: Tensor<3>, b: Tensor<3>, (na, nb): (usize, usize), shape: [usize; 3]) -> Tensor<3> {
    let (a, b) = (plug::contiguous(a), plug::contiguous(b));
    let (a, b) = (plug::slice(&a), plug::slice(&b));
    let n = na + nb;
    let mut out = vec![0f32; a.len() + b.len()];
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, to)| {
        let (mut at, mut to) = (i * CHUNK, to);
        while !to.is_empty() {
            let (block, inside) = (at / n, at % n);
            let from =
                if inside < na { &a[block * na..][inside..na] } else { &b[block * nb..][inside - na..nb] };
            let len = from.len().min(to.len());
            let (head, rest) = to.split_at_mut(len);
            head.copy_from_slice(&from[..len]);
            (at, to) = (at + len, rest);
        }
    });
    plug::tensor(out, shape)
}
