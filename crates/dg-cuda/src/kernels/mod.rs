//! Own kernels for what burn does in several passes over memory, or not at all. They compile with the first use, by
//! NVRTC, as all kernels of burn do, and are queued among its operations: nothing waits for the device.
//!
//! - `flash`: attention of 16-bit floats with logarithms of sums (Ring attention needs them)
//! - `norm`: layer norm with modulation; RMS norm with rotation
//! - `product`: products of f32 matrices that stay f32

mod flash;
mod norm;
mod product;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// What the kernels are for burn: operations of its own.
#[backend_extension(Cube, Fusion)]
pub trait Kernels: Backend {
    /// See [`attention`].
    #[fusion(meta = |q, _k, _v, _scale, wide| (outputs(q, *wide), logarithms(q)))]
    fn flash_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
        wide: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`layer_norm_modulate`](fn@layer_norm_modulate).
    #[fusion(dtype = x, shape = x)]
    fn norm_modulate(
        x: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f32,
        round: bool,
    ) -> FloatTensor<Self>;

    /// See [`rms_norm_rope`](fn@rms_norm_rope).
    #[fusion(dtype = x, shape = x)]
    fn norm_rope(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        eps: f32,
        round: bool,
    ) -> FloatTensor<Self>;

    /// See [`matmul_f32`].
    #[fusion(dtype = left, shape = product::shape(left, right))]
    fn product_f32(left: FloatTensor<Self>, right: FloatTensor<Self>) -> FloatTensor<Self>;
}

fn outputs(q: &TensorSpec, wide: bool) -> TensorSpec {
    TensorSpec { dtype: if wide { DType::F32 } else { q.dtype }, ..q.clone() }
}

fn logarithms(q: &TensorSpec) -> TensorSpec {
    TensorSpec { shape: Shape::new([q.shape[0], q.shape[2], q.shape[1]]), dtype: DType::F32, ..q.clone() }
}

/// Whether a tensor is where the kernels run.
pub fn is_here(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// Whether [`attention`] takes heads of `dim` values in this format.
pub fn attends(dim: usize, dtype: DType) -> bool {
    dtype == DType::BF16 && flash::takes(dim)
}

/// Softmax of `scale · q·kᵀ`, times `v`: `q` `[b, sq, h, d]`, `k` and `v` `[b, sk, h, d]`, bfloat16 -> the result, like `q`
/// or, if `wide`, in f32 and not rounded, and the natural logarithms of the sums of exponentials, f32 `[b, h, sq]`. Memory grows with the tokens. A query's bits
/// do not depend on which others are computed with it.
///
/// # Panics
/// Without keys or queries, and where [`attends`] is false.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f32, wide: bool) -> (Tensor<4>, Tensor<3>) {
    use burn::backend::Dispatch;
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let (out, lse) = Dispatch::flash_attention(q, k, v, scale, wide);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// `(x − mean) / √(variance + eps) · (1 + scale) + shift` over the last dimension: `x` `[b, s, c]`, f32 or bf16, `shift` and
/// `scale` f32 `[b, c]`. `None` if `c` is none that the kernel takes.
pub fn layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<2>,
    scale: Tensor<2>,
    eps: f32,
    round: bool,
) -> Option<Tensor<3>> {
    use burn::backend::Dispatch;
    norm::takes_row(x.dims()[2]).then(|| {
        let (x, shift, scale) = (x.into_dispatch(), shift.into_dispatch(), scale.into_dispatch());
        Tensor::from_dispatch(Dispatch::norm_modulate(x, shift, scale, eps, round))
    })
}

/// RMS norm over the last dimension, then the rotation of neighbouring pairs: `x` `[b, s, h, d]`, f32 or bf16, `weight`
/// f32 `[d]`, `cos` and `sin` f32 `[s, d / 2]`. `None` if `d` is none that the kernel takes.
pub fn rms_norm_rope(
    x: Tensor<4>,
    weight: Tensor<1>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    eps: f32,
    round: bool,
) -> Option<Tensor<4>> {
    use burn::backend::Dispatch;
    norm::takes_head(x.dims()[3]).then(|| {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
        Tensor::from_dispatch(Dispatch::norm_rope(x, weight, cos, sin, eps, round))
    })
}

/// `left · right` in f32 from f32 `[.., m, k]` and `[.., k, n]`, without TF32, which burn's fastest kernels use.
pub fn matmul_f32<const D: usize>(left: Tensor<D>, right: Tensor<D>) -> Tensor<D> {
    use burn::backend::Dispatch;
    Tensor::from_dispatch(Dispatch::product_f32(left.into_dispatch(), right.into_dispatch()))
}

impl Kernels for CubeBackend {
    fn flash_attention(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        scale: f32,
        wide: bool,
    ) -> (CubeTensor, CubeTensor) {
        let [q, k, v] = [q, k, v].map(into_contiguous);
        let [b, sq, h, d] = core::array::from_fn(|i| q.meta.shape()[i]);
        let sk = k.meta.shape()[1];
        assert!(attends(d, q.dtype) && sq > 0 && sk > 0, "no attention of {sq} × {sk} × {d} {:?}", q.dtype);
        let out = like(&q, Shape::new([b, sq, h, d]), if wide { DType::F32 } else { q.dtype });
        let lse = like(&q, Shape::new([b, h, sq]), DType::F32);
        let launch = if wide {
            flash::flash::launch::<half::bf16, f32>
        } else {
            flash::flash::launch::<half::bf16, half::bf16>
        };
        let (client, dim) = (q.client.clone(), CubeDim::new_2d(32, small(flash::PLANES)));
        let cubes = CubeCount::Static(small(sq.div_ceil(flash::QUERIES)), small(h), small(b));
        let [q, k, v, to, to_lse] = [q, k, v, out.clone(), lse.clone()].map(CubeTensor::into_buffer_arg);
        launch(&client, cubes, dim, q, k, v, to, to_lse, small(sq), small(sk), scale, d);
        (out, lse)
    }

    fn norm_modulate(
        x: CubeTensor,
        shift: CubeTensor,
        scale: CubeTensor,
        eps: f32,
        round: bool,
    ) -> CubeTensor {
        let [x, shift, scale] = [x, shift, scale].map(into_contiguous);
        let [b, s, c] = core::array::from_fn(|i| x.meta.shape()[i]);
        let out = like(&x, x.meta.shape().clone(), x.dtype);
        if b * s == 0 {
            return out;
        }
        let (client, count) = (x.client.clone(), CubeCount::Static(small(b * s), 1, 1));
        let launch = match x.dtype {
            DType::BF16 => norm::layer_norm_modulate::launch::<half::bf16>,
            _ => norm::layer_norm_modulate::launch::<f32>,
        };
        let [x, shift, scale, to] = [x, shift, scale, out.clone()].map(CubeTensor::into_buffer_arg);
        launch(
            &client,
            count,
            CubeDim::new_1d(small(norm::UNITS)),
            x,
            shift,
            scale,
            to,
            small(s),
            eps,
            c,
            round,
        );
        out
    }

    fn norm_rope(
        x: CubeTensor,
        weight: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        eps: f32,
        round: bool,
    ) -> CubeTensor {
        let [x, weight, cos, sin] = [x, weight, cos, sin].map(into_contiguous);
        let [b, s, h, d] = core::array::from_fn(|i| x.meta.shape()[i]);
        let out = like(&x, x.meta.shape().clone(), x.dtype);
        let rows = b * s * h;
        if rows == 0 {
            return out;
        }
        let client = x.client.clone();
        let count = CubeCount::Static(small(rows.div_ceil(norm::PLANES)), 1, 1);
        let launch = match x.dtype {
            DType::BF16 => norm::rms_norm_rope::launch::<half::bf16>,
            _ => norm::rms_norm_rope::launch::<f32>,
        };
        let dim = CubeDim::new_2d(32, small(norm::PLANES));
        let [x, weight, cos, sin, to] = [x, weight, cos, sin, out.clone()].map(CubeTensor::into_buffer_arg);
        launch(&client, count, dim, x, weight, cos, sin, to, small(rows), small(s), small(h), eps, d, round);
        out
    }

    fn product_f32(left: CubeTensor, right: CubeTensor) -> CubeTensor {
        product::product(left, right)
    }
}

/// A dense tensor where `tensor` is, with nothing in it.
fn like(tensor: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), shape, dtype)
}

/// A size as kernels take it.
///
/// # Panics
/// From 2³² on, which no tensor of one device has in one dimension.
fn small(n: usize) -> u32 {
    u32::try_from(n).expect("a size below 2³²")
}
