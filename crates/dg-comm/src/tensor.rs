//! Tensors of burn's Flex device as blocks and back, without copying (feature `burn`).

use crate::Block;
use burn::backend::{DispatchDevice, Flex, flex::FlexTensor};
use burn::tensor::{AllocationProperty, Bytes, DType, Shape, Tensor, TensorData};
use std::sync::Arc;

impl Block {
    /// The values of `tensor` in row-major order. Shares the tensor's memory if they lie there in this order, as in a
    /// whole tensor or a run of its rows; else copies them.
    ///
    /// `None` if the tensor is on another device, or neither f32 nor bf16.
    pub fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Option<Self> {
        let dtype = match tensor.dtype() {
            DType::F32 => dg_core::DType::Float32,
            DType::BF16 => dg_core::DType::Bfloat16,
            _ => return None,
        };
        if !matches!(tensor.device().as_dispatch(), DispatchDevice::Flex(_)) {
            return None;
        }
        let tensor = tensor.try_into_primitive::<Flex>().ok()?;
        let tensor = if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() };
        let size = dtype.bytes() as usize;
        let (begin, len) = (tensor.layout().start_offset() * size, tensor.layout().num_elements() * size);
        if len == 0 {
            return Some(Self::empty(dtype));
        }
        let memory = bytes::Bytes::from_owner(Memory(tensor.data_arc()));
        Self::from_bytes(dtype, memory.slice(begin..begin + len))
    }

    /// A tensor of the Flex device that shares the memory of this block. Writing to it copies first.
    ///
    /// `None` if the block is on another device or has another number of values.
    pub fn to_tensor<const D: usize>(&self, shape: [usize; D]) -> Option<Tensor<D>> {
        let memory = self.host()?;
        if shape.iter().product::<usize>() != self.len() {
            return None;
        }
        let dtype = match self.dtype() {
            dg_core::DType::Float32 => DType::F32,
            dg_core::DType::Bfloat16 => DType::BF16,
        };
        let bytes = if self.is_empty() {
            Bytes::from_elems::<f32>(Vec::new())
        } else {
            Bytes::from_shared(memory.clone(), AllocationProperty::Other)
        };
        let data = TensorData::from_bytes(bytes, Shape::from(shape), dtype);
        Some(Tensor::from_primitive::<Flex>(FlexTensor::from_data(data)))
    }
}

/// Memory of a tensor, for as long as a block needs it.
struct Memory(Arc<Bytes>);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
