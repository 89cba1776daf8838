//! Convolutions straight from and to `[b, c, h, w]`.
//!
//! A tile of up to 512 pixels is unfolded by shifted row copies and multiplied with the weight as it
//! lies in the file: no copy of the image in another order, no unfolded image.

use crate::linear::round_in_place;
use crate::plug::{self, Weight};
use crate::simd::gemm::{Matrix, Shape, product, tiles};
use crate::{Precision, reference};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// 3×3, stride 1, padding 1: `x` `[b, c, h, w]`, `weight` `[o, c, 3, 3]` (f32, bf16 or f16), `bias`
/// `[o]` -> `[b, o, h, w]`, rounded once.
pub fn conv3x3(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::conv3x3(x, weight, bias, p);
    }
    unfolded(x, weight, bias, Sampling::Plain, p)
}

/// Nearest-neighbour doubling, then [`conv3x3`]: `[b, c, h, w]` -> `[b, o, 2h, 2w]`, with the bits of
/// the two steps but without the doubled image.
pub fn conv3x3_upsampled(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::conv3x3_upsampled(x, weight, bias, p);
    }
    unfolded(x, weight, bias, Sampling::Doubled, p)
}

/// 3×3, stride 2, one zero row below and one zero column on the right, no other padding:
/// `[b, c, h, w]` -> `[b, o, h/2, w/2]`. `h` and `w` are at least 2.
pub fn conv3x3_stride2(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::conv3x3_stride2(x, weight, bias, p);
    }
    unfolded(x, weight, bias, Sampling::Halved, p)
}

/// 1×1: `x` `[b, c, h, w]`, `weight` `[o, c, 1, 1]`, `bias` `[o]` -> `[b, o, h, w]`, rounded once.
pub fn conv1x1(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    let Some(cpu) = plug::native(&x) else { return reference::conv1x1(x, weight, bias, p) };
    let ([b, c, h, w], o, plane) = (x.dims(), weight.dims()[0], x.dims()[2] * x.dims()[3]);
    let (x, weight, bias) = (plug::contiguous(x), Weight::of(cpu, weight), plug::small(bias));
    let mut out = vec![0f32; b * o * plane];
    for (to, from) in out.chunks_mut(o * plane).zip(plug::slice(&x).chunks(c * plane)) {
        to.par_chunks_mut(plane).zip(&bias).for_each(|(to, bias)| to.fill(*bias));
        let weight = Matrix { data: &weight, strides: [c, 1] };
        let image = Matrix { data: from, strides: [plane, 1] };
        product(Shape { m: o, k: c, n: plane }, (to, plane), true, weight, image, true);
    }
    round_in_place(cpu, &mut out, p);
    plug::tensor(out, [b, o, h, w])
}

fn unfolded(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    sampling: Sampling,
    p: Precision,
) -> Tensor<4> {
    let cpu = plug::native(&x).expect("checked by the callers");
    let ([b, c, h, w], o) = (x.dims(), weight.dims()[0]);
    assert!(weight.dims() == [o, c, 3, 3], "a weight {:?} for {c} channels", weight.dims());
    let (x, weight, bias) = (plug::contiguous(x), Weight::of(cpu, weight), plug::small(bias));
    let x = plug::slice(&x);
    let (oh, ow) = (sampling.length(h), sampling.length(w));
    let cuts = cuts(oh, ow);
    let mut out = vec![0f32; b * o * oh * ow];
    tiles(&mut out, oh * ow, (&weight, 9 * c), &bias, &cuts, |image, first, pixels| {
        let n = pixels.len() / (9 * c);
        let (y0, x0) = (first / ow, first % ow);
        for (k, line) in pixels.chunks_exact_mut(n).enumerate() {
            let plane = &x[(image * c + k / 9) * h * w..][..h * w];
            let (dy, dx) = (k / 3 % 3, k % 3);
            for (r, line) in line.chunks_mut(ow).enumerate() {
                match sampling.source(y0 + r, dy, h) {
                    Some(y) => sampling.fill(line, &plane[y * w..][..w], x0, dx),
                    None => line.fill(0.0),
                }
            }
        }
    });
    round_in_place(cpu, &mut out, p);
    plug::tensor(out, [b, o, oh, ow])
}

/// Where tiles begin and end in a plane: whole rows, or parts of one row.
fn cuts(h: usize, w: usize) -> Vec<usize> {
    let steps: Vec<usize> = if w < TILE {
        (0..h).step_by(TILE / w).map(|y| y * w).collect()
    } else {
        (0..h).flat_map(|y| (0..w).step_by(TILE).map(move |x| y * w + x)).collect()
    };
    steps.into_iter().chain([h * w]).collect()
}

/// How positions of the result map to positions of the input.
#[derive(Clone, Copy)]
enum Sampling {
    Plain,
    Doubled,
    Halved,
}

impl Sampling {
    /// The length of the result.
    fn length(self, n: usize) -> usize {
        match self {
            Self::Plain => n,
            Self::Doubled => 2 * n,
            Self::Halved => n / 2,
        }
    }

    /// The input position under tap `tap` of result position `at`; `None` in the padding.
    fn source(self, at: usize, tap: usize, n: usize) -> Option<usize> {
        match self {
            Self::Plain => (at + tap).checked_sub(1),
            Self::Doubled => (at + tap).checked_sub(1).map(|i| i / 2),
            Self::Halved => Some(2 * at + tap),
        }
        .filter(|i| *i < n)
    }

    /// `line[i]` = the input under tap `dx` of column `x0 + i`.
    fn fill(self, line: &mut [f32], row: &[f32], x0: usize, dx: usize) {
        if let Self::Plain = self {
            return shifted(line, row, x0 + dx);
        }
        for (i, to) in line.iter_mut().enumerate() {
            *to = self.source(x0 + i, dx, row.len()).map_or(0.0, |x| row[x]);
        }
    }
}

/// `line[i] = row[i + start - 1]`, zero outside.
fn shifted(line: &mut [f32], row: &[f32], start: usize) {
    let left = usize::from(start == 0);
    let from = start + left - 1;
    let n = (line.len() - left).min(row.len() - from);
    line[..left].fill(0.0);
    line[left..left + n].copy_from_slice(&row[from..from + n]);
    line[left + n..].fill(0.0);
}

/// Pixels per tile: the unfolded tile is `9·c·TILE` floats per thread.
const TILE: usize = 512;
