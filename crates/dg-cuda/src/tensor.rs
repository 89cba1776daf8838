//! Tensors as messages and back.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, CubeBackend};
use cubecl_server::runtime::Runtime;
use dg_comm::{Block, BlockShape};
use dg_nccl::memory::{Arena, Memory, Owner};
use dg_nccl::{GpuError, error};
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The values of `tensor`, f32 or bf16 on a CUDA device, in row-major order. Runs what fusion holds back, and waits for
/// the device: another library may read the block at once.
///
/// # Errors
/// What the device says: here what went wrong before comes to light. Other devices and formats are refused.
pub fn block<const D: usize>(tensor: Tensor<D>) -> error::Result<Block> {
    let refused = |what: String| GpuError::Cuda { call: "a tensor as a message", what, code: 0 };
    let dtype = tensor.dtype();
    let dtype = of_burn(dtype).ok_or_else(|| refused(format!("{dtype:?} is neither f32 nor bf16")))?;
    let shape = BlockShape { dtype, len: tensor.dims().iter().product() };
    if shape.len == 0 {
        return Ok(Block::empty(dtype));
    }
    // One dimension: those of several may have padded rows.
    let owner = Held::new(tensor.reshape([shape.len]))?;
    let memory = Memory::new(Arc::new(owner), shape).ok_or_else(|| refused(format!("no whole {shape}")))?;
    Ok(Block::on_device(shape, Arc::new(memory)))
}

/// A tensor of the values of a block that [`block`] or [`Tensors`] made. `None` for other blocks, or another number of
/// values.
pub fn tensor<const D: usize>(block: &Block, shape: [usize; D]) -> Option<Tensor<D>> {
    let memory = Arc::clone(block.device()?) as Arc<dyn Any + Send + Sync>;
    let memory = memory.downcast::<Memory>().ok()?;
    let owner = Arc::clone(memory.owner()) as Arc<dyn Any + Send + Sync>;
    let held = owner.downcast::<Held>().ok()?;
    if shape.iter().product::<usize>() != block.len() {
        return None;
    }
    let (size, range) = (block.dtype().bytes() as usize, memory.range());
    let part = held.tensor.clone().slice([range.start / size..range.end / size]);
    Some(part.reshape(shape))
}

/// Received messages as tensors of a device.
#[derive(Clone, Debug)]
pub struct Tensors(pub Device);

impl Arena for Tensors {
    fn room(&self, shape: BlockShape) -> error::Result<Arc<dyn Owner>> {
        let tensor = Tensor::<1>::empty([shape.len], (&self.0, to_burn(shape.dtype)));
        Ok(Arc::new(Held::new(tensor)?))
    }

    fn filled(&self, shape: BlockShape, bytes: &[u8]) -> error::Result<Arc<dyn Owner>> {
        let dtype = to_burn(shape.dtype);
        let bytes = burn::tensor::Bytes::from_bytes_vec(bytes.to_vec());
        let data = TensorData::from_bytes(bytes, [shape.len], dtype);
        Ok(Arc::new(Held::new(Tensor::<1>::from_data(data, (&self.0, dtype)))?))
    }
}

/// A tensor of one dimension that is complete, and where it is.
#[derive(Debug)]
struct Held {
    tensor: Tensor<1>,
    /// Keeps the memory from being used for another tensor.
    _cube: CubeTensor,
    /// cubecl's claim to the address, without which it may move what is there. Nobody locks it: what it holds may not be
    /// shared between threads otherwise.
    _claim: Mutex<Box<dyn Any + Send>>,
    address: u64,
    bytes: usize,
}

impl Held {
    fn new(tensor: Tensor<1>) -> error::Result<Self> {
        let failed = |what: String| GpuError::Cuda { call: "a tensor's memory", what, code: 0 };
        let bytes = tensor.dims()[0] * tensor.dtype().size();
        let device = tensor.device();
        let fused =
            tensor.clone().try_into_primitive::<Cube>().map_err(|error| failed(format!("{error:?}")))?;
        let client = fused.client.clone();
        let cube = burn_cubecl::kernel::into_contiguous(client.resolve_tensor_float::<CubeBackend>(fused));
        device.sync().map_err(|error| failed(error.to_string()))?;
        let held = cube.client.get_resource::<<CudaRuntime as Runtime>::Server>(cube.handle.clone());
        let held = held.map_err(|error| failed(format!("{error:?}")))?;
        let address = held.resource().ptr;
        let claim: Box<dyn Any + Send> = Box::new(held);
        Ok(Self { tensor, _cube: cube, _claim: Mutex::new(claim), address, bytes })
    }
}

impl Owner for Held {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn to_host(&self, range: Range<usize>) -> error::Result<Vec<u8>> {
        let data = self.tensor.clone().into_data();
        let bytes: &[u8] = data.as_bytes();
        Ok(bytes.get(range).unwrap_or_default().to_vec())
    }
}

fn of_burn(dtype: DType) -> Option<dg_core::DType> {
    match dtype {
        DType::F32 => Some(dg_core::DType::Float32),
        DType::BF16 => Some(dg_core::DType::Bfloat16),
        _ => None,
    }
}

fn to_burn(dtype: dg_core::DType) -> DType {
    match dtype {
        dg_core::DType::Float32 => DType::F32,
        dg_core::DType::Bfloat16 => DType::BF16,
    }
}
