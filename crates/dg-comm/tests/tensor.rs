//! Tensors and blocks share memory.

use burn::tensor::{DType, Device, Tensor, TensorData};
use dg_comm::{Block, BlockShape};

fn numbers<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn address(block: &Block) -> usize {
    block.host().unwrap().as_ptr().addr()
}

#[test]
fn a_tensor_and_its_rows_are_not_copied() {
    let tensor = numbers([6, 4]);
    let whole = Block::from_tensor(tensor.clone()).unwrap();
    assert_eq!(whole.shape(), BlockShape::f32(24));
    let rows = Block::from_tensor(tensor.clone().slice([2..5, 0..4])).unwrap();
    assert_eq!(rows.as_f32().unwrap(), (8..20).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(address(&rows), address(&whole) + 8 * 4);
    let columns = Block::from_tensor(tensor.transpose()).unwrap();
    assert_eq!(columns.as_f32().unwrap()[..3], [0.0, 4.0, 8.0]);
    assert_ne!(address(&columns), address(&whole));
}

#[test]
fn a_block_becomes_a_tensor_of_the_same_memory() {
    let block = Block::from_tensor(numbers([2, 3, 4])).unwrap();
    let tensor = block.slice(12..24).to_tensor([3, 4]).unwrap();
    let again = Block::from_tensor(tensor.clone()).unwrap();
    assert_eq!(address(&again), address(&block) + 12 * 4);
    // Whoever changes the tensor does not change what others read.
    let sum = (tensor + 1.0).into_data().try_to_vec::<f32>().unwrap();
    assert_eq!((sum[0], block.as_f32().unwrap()[12]), (13.0, 12.0));
    assert!(block.to_tensor([5, 5]).is_none());
}

#[test]
fn bf16_and_empty_tensors_pass_too() {
    let tensor = numbers([2, 3]).cast(DType::BF16);
    let block = Block::from_tensor(tensor).unwrap();
    assert_eq!((block.shape(), block.as_bf16().unwrap()[5].to_f32()), (BlockShape::bf16(6), 5.0));
    let back = block.to_tensor([3, 2]).unwrap();
    assert_eq!(
        (back.dtype(), back.cast(DType::F32).into_data().try_to_vec::<f32>().unwrap()[4]),
        (DType::BF16, 4.0)
    );
    let empty = Block::from_tensor(numbers([0, 4])).unwrap();
    assert_eq!(empty.shape(), BlockShape::f32(0));
    assert_eq!(empty.to_tensor([0, 4]).unwrap().dims(), [0, 4]);
    assert!(Block::from_tensor(numbers([2]).cast(DType::F16)).is_none());
}
