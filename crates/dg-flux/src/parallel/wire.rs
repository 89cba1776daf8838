//! Tensors as messages: values in the format of the run, so that a bfloat16 run sends half the bytes. What its f32
//! tensors hold are bfloat16 values, so that nothing is lost.

use burn::tensor::{DType, Tensor};
use dg_comm::{Block, BlockShape, Call, CommError, Place, Side};
use dg_kernels::Precision;

/// The values of `t` in row-major order.
pub(super) fn pack<const D: usize>(t: Tensor<D>, p: Precision, call: &Call) -> Result<Block, CommError> {
    let t = match p {
        Precision::Bf16 => t.cast(DType::BF16),
        Precision::F32 => t,
    };
    block(t).map_err(|what| invalid(call, what))
}

/// A message of device memory if the tensor is on a GPU.
#[cfg(feature = "cuda")]
fn block<const D: usize>(t: Tensor<D>) -> Result<Block, String> {
    if crate::is_cpu(&t.device()) {
        return Block::from_tensor(t).ok_or_else(|| UNFIT.into());
    }
    dg_cuda::tensor::block(t).map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn block<const D: usize>(t: Tensor<D>) -> Result<Block, String> {
    Block::from_tensor(t).ok_or_else(|| UNFIT.into())
}

#[cfg(feature = "cuda")]
fn tensor<const D: usize>(block: &Block, shape: [usize; D]) -> Option<Tensor<D>> {
    match block.device() {
        Some(_) => dg_cuda::tensor::tensor(block, shape),
        None => block.to_tensor(shape),
    }
}

#[cfg(not(feature = "cuda"))]
fn tensor<const D: usize>(block: &Block, shape: [usize; D]) -> Option<Tensor<D>> {
    block.to_tensor(shape)
}

/// The inverse of [`pack`], in f32.
pub(super) fn unpack<const D: usize>(
    block: &Block,
    shape: [usize; D],
    call: &Call,
) -> Result<Tensor<D>, CommError> {
    let t = tensor(block, shape).ok_or_else(|| invalid(call, UNFIT.into()))?;
    Ok(if t.dtype() == DType::F32 { t } else { t.cast(DType::F32) })
}

/// A message of a tensor of that shape.
pub(super) fn shape<const D: usize>(dims: [usize; D], p: Precision) -> BlockShape {
    let len = dims.iter().product();
    match p {
        Precision::Bf16 => BlockShape::bf16(len),
        Precision::F32 => BlockShape::f32(len),
    }
}

fn invalid(call: &Call, what: String) -> CommError {
    CommError::Invalid { place: Place::new(call, Side::Neither, None), what }
}

const UNFIT: &str = "the tensor is on a device that this communicator cannot read";
