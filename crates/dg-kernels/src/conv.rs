//! Convolutions straight from and to `[b, c, h, w]`. All panic when weight, bias or residual do not fit.

use crate::plug;
use crate::simd::{Convolution, Finish, Product, Right, Rows, Sampling};
use crate::{Precision, reference};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// 3×3, stride 1, padding 1: `x` `[b, c, h, w]`, `weight` `[o, c, 3, 3]` (f32, bf16 or f16), `bias`
/// `[o]` -> `[b, o, h, w]`, rounded once.
pub fn conv3x3(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::conv3x3(x, weight, bias, p);
    }
    convolve(x, weight, bias, Sampling::Plain, None, p)
}

/// `residual` + [`conv3x3`], with the rounding of the two steps.
pub fn conv3x3_add(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    residual: Tensor<4>,
    p: Precision,
) -> Tensor<4> {
    if plug::native(&x).is_none() || plug::native(&residual).is_none() {
        return reference::conv3x3_add(x, weight, bias, residual, p);
    }
    convolve(x, weight, bias, Sampling::Plain, Some(residual), p)
}

/// Nearest-neighbour doubling, then [`conv3x3`]: `[b, c, h, w]` -> `[b, o, 2h, 2w]`. The taps that fall on
/// the same input are added first, which leaves 4/9 of the products; the result is that of the two steps
/// but for the rounding of these sums in f32.
pub fn conv3x3_upsampled(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::conv3x3_upsampled(x, weight, bias, p);
    }
    convolve(x, weight, bias, Sampling::Doubled, None, p)
}

/// 3×3, stride 2, one zero row below and one zero column on the right, no other padding:
/// `[b, c, h, w]` -> `[b, o, h/2, w/2]`. `h` and `w` are at least 2.
pub fn conv3x3_stride2(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::conv3x3_stride2(x, weight, bias, p);
    }
    convolve(x, weight, bias, Sampling::Halved, None, p)
}

/// 1×1: `x` `[b, c, h, w]`, `weight` `[o, c, 1, 1]`, `bias` `[o]` -> `[b, o, h, w]`, rounded once.
pub fn conv1x1(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    let Some(cpu) = plug::native(&x) else { return reference::conv1x1(x, weight, bias, p) };
    let ([b, c, h, w], o, plane) = (x.dims(), weight.dims()[0], x.dims()[2] * x.dims()[3]);
    assert!(
        weight.dims() == [o, c, 1, 1] && bias.dims() == [o],
        "a weight {:?} for {c} channels",
        weight.dims()
    );
    let (x, weight, bias) = (plug::contiguous(x), plug::weight(weight), plug::small(bias));
    let weight = Rows { values: plug::values(&weight), stride: c, width: c };
    let mut out = vec![0f32; b * o * plane];
    for (to, from) in out.chunks_mut(o * plane).zip(plug::slice(&x).chunks(c * plane)) {
        let product = Product { m: o, n: plane, left: &[weight], right: Right::Columns(from, plane) };
        cpu.product(&product, Finish::Map { to, bias: None, then: None }, Precision::F32, true);
        to.par_chunks_mut(plane).zip(&bias).for_each(|(to, bias)| cpu.shift(p, to, *bias));
    }
    plug::tensor(out, [b, o, h, w])
}

fn convolve(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    sampling: Sampling,
    residual: Option<Tensor<4>>,
    p: Precision,
) -> Tensor<4> {
    let cpu = plug::native(&x).expect("checked by the callers");
    let ([b, c, h, w], o) = (x.dims(), weight.dims()[0]);
    assert!(
        weight.dims() == [o, c, 3, 3] && bias.dims() == [o],
        "a weight {:?} for {c} channels",
        weight.dims()
    );
    let [oh, ow] = sampling.result(h, w);
    let (x, weight, bias) = (plug::contiguous(x), plug::weight(weight), plug::small(bias));
    let residual = residual.map(|r| {
        assert!(r.dims() == [b, o, oh, ow], "a residual of another shape");
        plug::contiguous(r)
    });
    let convolution = Convolution {
        input: plug::slice(&x),
        dims: [b, c, h, w],
        weight: plug::values(&weight),
        bias: &bias,
        sampling,
        residual: residual.as_ref().map(plug::slice),
    };
    plug::tensor(cpu.convolve(&convolution, p), [b, o, oh, ow])
}
