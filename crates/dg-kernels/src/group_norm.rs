//! GroupNorm, with or without SiLU: what stands before every convolution of the autoencoder.

use crate::plug;
use crate::simd::Cpu;
use crate::{Precision, reference};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Group norm of `x` `[b, c, h, w]` with `weight` and `bias` `[c]`, rounded, then SiLU if `with_silu`,
/// rounded again. Works in the memory of `x` if nobody else holds it.
///
/// Sums are taken over fixed stretches: neither the threads nor the batch change a bit.
pub fn group_norm(
    x: Tensor<4>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    groups: usize,
    eps: f64,
    with_silu: bool,
    p: Precision,
) -> Tensor<4> {
    let Some(cpu) = plug::native(&x) else {
        return reference::group_norm(x, weight, bias, groups, eps, with_silu, p);
    };
    let [_, c, h, w] = x.dims();
    assert!(groups > 0 && c.is_multiple_of(groups), "{c} channels in {groups} groups");
    let (mut x, weight, bias) = (plug::dense(x), plug::small(weight), plug::small(bias));
    let (plane, channels) = (h * w, c / groups);
    // copies first when the memory is shared
    x.storage_mut::<f32>().par_chunks_mut(channels * plane).enumerate().for_each(|(g, v)| {
        let first = g % groups * channels;
        let (mean, variance) = moments(cpu, v);
        let factor = (1.0 / (variance + eps).sqrt()) as f32;
        v.par_chunks_mut(plane).enumerate().for_each(|(i, v)| {
            let map = [mean, weight[first + i] * factor, bias[first + i]];
            v.par_chunks_mut(CHUNK).for_each(|v| cpu.affine(p, v, map, with_silu));
        });
    });
    plug::wrap(x)
}

/// Mean and variance: the second pass is about the mean of the first.
fn moments(cpu: Cpu, v: &[f32]) -> (f32, f64) {
    let sums = |mean: f32| -> (f64, f64) {
        let parts: Vec<(f32, f32)> = v.par_chunks(CHUNK).map(|v| cpu.moments(v, mean)).collect();
        parts.iter().fold((0.0, 0.0), |a, part| (a.0 + f64::from(part.0), a.1 + f64::from(part.1)))
    };
    let n = v.len() as f64;
    let mean = (sums(0.0).0 / n) as f32;
    let (rest, squares) = sums(mean);
    (mean, squares / n - (rest / n).powi(2))
}

/// Elements per partial sum.
const CHUNK: usize = 1 << 13;
