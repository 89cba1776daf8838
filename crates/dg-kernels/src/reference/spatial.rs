//! Convolutions and group norm of the image autoencoder.

use super::{add, cast, in_f32, round, silu};
use crate::Precision;
use burn::tensor::{DType, Tensor, module, ops::ConvOptions};

/// See [`crate::group_norm()`].
pub fn group_norm(
    x: Tensor<4>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    groups: usize,
    eps: f64,
    with_silu: bool,
    p: Precision,
) -> Tensor<4> {
    let moments = group_moments(x.clone(), groups);
    group_norm_by(x, &moments, weight, bias, eps, with_silu, p)
}

/// Mean and variance of the groups of some images, in f32, each `[b, groups, 1]`.
pub struct Moments {
    mean: Tensor<3>,
    variance: Tensor<3>,
}

/// Those of `x` `[b, c, h, w]`.
pub fn group_moments(x: Tensor<4>, groups: usize) -> Moments {
    let [b, c, h, w] = x.dims();
    let x: Tensor<3> = cast(&x, DType::F32).reshape([b, groups, c / groups * h * w]);
    let (variance, mean) = x.var_mean_bias(2);
    Moments { mean, variance }
}

/// Those of all values, from those of parts with so many values in each group.
pub fn join_moments(parts: Vec<(Moments, usize)>) -> Moments {
    let total: usize = parts.iter().map(|(_, count)| count).sum();
    let mean_of = |values: Vec<Tensor<3>>| -> Tensor<3> {
        let weighted = values.into_iter().zip(&parts).map(|(x, (_, n))| x * (*n as f64 / total as f64));
        weighted.reduce(|a, b| a + b).expect("at least one part")
    };
    let mean = mean_of(parts.iter().map(|(part, _)| part.mean.clone()).collect());
    // what is inside the parts, and what is between them
    let about = |part: &Moments| part.variance.clone() + (part.mean.clone() - mean.clone()).powi_scalar(2);
    let variance = mean_of(parts.iter().map(|(part, _)| about(part)).collect());
    Moments { mean, variance }
}

/// See [`crate::group_norm_by`].
pub fn group_norm_by(
    x: Tensor<4>,
    moments: &Moments,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f64,
    with_silu: bool,
    p: Precision,
) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    in_f32(x, |x| {
        let [_, groups, _] = moments.mean.dims();
        let y = x.reshape([b, groups, c / groups * h * w]);
        let factor = moments.variance.clone().add_scalar(eps).sqrt().recip();
        let y = ((y - moments.mean.clone()) * factor).reshape([b, c, h, w]);
        let per_channel = |t: &Tensor<1>| cast(t, DType::F32).reshape([1, c, 1, 1]);
        let y = round(y * per_channel(weight) + per_channel(bias), p);
        if with_silu { silu(y, p) } else { y }
    })
}

/// See [`crate::conv3x3`].
pub fn conv3x3(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    conv(x, weight, bias, ConvOptions::new([1, 1], [1, 1], [1, 1], 1), p)
}

/// See [`crate::conv3x3_add`].
pub fn conv3x3_add(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    residual: Tensor<4>,
    p: Precision,
) -> Tensor<4> {
    add(conv3x3(x, weight, bias, p), residual, p)
}

/// See [`crate::conv3x3_upsampled`].
pub fn conv3x3_upsampled(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let x: Tensor<6> = x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]);
    conv3x3(x.reshape([b, c, 2 * h, 2 * w]), weight, bias, p)
}

/// See [`crate::conv3x3_stride2`].
pub fn conv3x3_stride2(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    let ([b, c, h, w], kind, device) = (x.dims(), x.dtype(), x.device());
    let right = Tensor::zeros([b, c, h, 1], (&device, kind));
    let below = Tensor::zeros([b, c, 1, w + 1], (&device, kind));
    let x = Tensor::cat(vec![Tensor::cat(vec![x, right], 3), below], 2);
    conv(x, weight, bias, ConvOptions::new([2, 2], [0, 0], [1, 1], 1), p)
}

/// See [`crate::conv1x1`].
pub fn conv1x1(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>, p: Precision) -> Tensor<4> {
    conv(x, weight, bias, ConvOptions::new([1, 1], [0, 0], [1, 1], 1), p)
}

/// One image at a time: the algorithm burn picks, and so the bits, may depend on the batch.
fn conv(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    options: ConvOptions<2>,
    p: Precision,
) -> Tensor<4> {
    let kind = x.dtype();
    let (weight, bias) = (cast(weight, kind), cast(bias, kind));
    let image = |i| {
        let x: Tensor<4> = x.clone().narrow(0, i, 1);
        round(module::conv2d(x, weight.clone(), Some(bias.clone()), options.clone()), p)
    };
    Tensor::cat((0..x.dims()[0]).map(image).collect(), 0)
}
