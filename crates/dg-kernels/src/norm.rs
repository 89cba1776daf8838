//! Norms over the last dimension, alone and with what follows them; one task per few rows.

use crate::plug::{self, CHUNK};
use crate::simd::{Cpu, Norm};
use crate::{Precision, reference};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Layer norm over channels with a weight and a bias, rounded once: `x` `[b, s, c]`, `weight` and
/// `bias` `[c]`.
pub fn layer_norm(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64, p: Precision) -> Tensor<3> {
    let Some(cpu) = plug::native(&x) else { return reference::layer_norm(x, weight, bias, eps, p) };
    let (weight, bias) = (plug::small(weight), plug::small(bias));
    each_row(cpu, x, eps, p, |_| Norm::Layer { weight: &weight, bias: &bias })
}

/// `ln(x)·(1 + scale) + shift`, every step rounded: `x` `[b, s, c]`, `shift` and `scale` `[b, c]`.
pub fn layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<2>,
    scale: Tensor<2>,
    eps: f64,
    p: Precision,
) -> Tensor<3> {
    let Some(cpu) = plug::native(&x) else {
        return reference::layer_norm_modulate(x, shift, scale, eps, p);
    };
    let [b, s, c] = x.dims();
    assert!(shift.dims() == [b, c] && scale.dims() == [b, c], "a modulation of another shape");
    let (shift, scale) = (plug::contiguous(shift), plug::contiguous(scale));
    let (shift, scale) = (plug::slice(&shift), plug::slice(&scale));
    each_row(cpu, x, eps, p, |row| {
        let at = row / s * c;
        Norm::Modulate { shift: &shift[at..][..c], scale: &scale[at..][..c] }
    })
}

/// `x·(mean(x²) + eps)^-½·weight` over the last dimension, rounded once; `weight` has its length.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f64, p: Precision) -> Tensor<D> {
    let Some(cpu) = plug::native(&x) else { return reference::rms_norm(x, weight, eps, p) };
    let weight = plug::small(weight);
    each_row(cpu, x, eps, p, |_| Norm::Rms { weight: &weight })
}

/// As [`rms_norm`], but rounded before the weight as well (T5).
pub fn t5_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f64, p: Precision) -> Tensor<D> {
    let Some(cpu) = plug::native(&x) else { return reference::t5_norm(x, weight, eps, p) };
    let weight = plug::small(weight);
    each_row(cpu, x, eps, p, |_| Norm::T5 { weight: &weight })
}

/// [`rms_norm`] over `d`, then the rotation of neighbouring pairs
/// `(a, b) -> (a·cos - b·sin, a·sin + b·cos)`; rounded after each of the two.
///
/// `x` `[b, s, h, d]` with even `d` (views are read where they are if `d` is dense), `weight` `[d]`,
/// `cos` and `sin` `[s, d/2]` -> a contiguous `[b, s, h, d]`.
pub fn rms_norm_rope(
    x: Tensor<4>,
    weight: &Tensor<1>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    eps: f64,
    p: Precision,
) -> Tensor<4> {
    let Some(cpu) = plug::native(&x) else {
        return reference::rms_norm_rope(x, weight, cos, sin, eps, p);
    };
    let [b, s, h, d] = x.dims();
    assert!(cos.dims() == [s, d / 2] && sin.dims() == [s, d / 2], "a rotation of another shape");
    let (x, weight) = (plug::rows(x), plug::small(weight));
    let (cos, sin) = (plug::contiguous(cos.clone()), plug::contiguous(sin.clone()));
    let (view, cos, sin) = (plug::view(&x), plug::slice(&cos), plug::slice(&sin));
    let mut out = vec![0f32; b * s * h * d];
    let tokens = out.par_chunks_mut(h * d).with_min_len(CHUNK.div_ceil(h * d));
    tokens.enumerate().for_each(|(i, token)| {
        let half = i % s * (d / 2);
        for (head, to) in token.chunks_exact_mut(d).enumerate() {
            cpu.norm_row(Norm::Rms { weight: &weight }, eps as f32, p, to, view.row(i / s, i % s, head));
            cpu.rotate(p, to, &cos[half..][..d / 2], &sin[half..][..d / 2]);
        }
    });
    plug::tensor(out, [b, s, h, d])
}

/// Applies `norm(row)` to every row of the last dimension.
fn each_row<'a, const D: usize>(
    cpu: Cpu,
    x: Tensor<D>,
    eps: f64,
    p: Precision,
    norm: impl Fn(usize) -> Norm<'a> + Sync,
) -> Tensor<D> {
    let dims = x.dims();
    let n = dims[D - 1];
    let x = plug::contiguous(x);
    let x = plug::slice(&x);
    let mut out = vec![0f32; x.len()];
    let rows = out.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(CHUNK.div_ceil(n));
    rows.enumerate().for_each(|(i, (to, from))| cpu.norm_row(norm(i), eps as f32, p, to, from));
    plug::tensor(out, dims)
}
