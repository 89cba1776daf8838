//! How results are rounded, and held.

use crate::reference;
use burn::tensor::{DType, Tensor};

/// How the result of an operation is rounded. On the CPU, storage is f32 either way; see [`held`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single: no rounding beyond the arithmetic itself.
    F32,
    /// Results are rounded to the nearest bfloat16, ties to even, and kept as f32 with a zero lower
    /// half. Inputs are expected to hold bfloat16 values already.
    Bf16,
}

/// `x` as it is held between layers: in a bfloat16 run on a device as bfloat16, which is half the memory to read and
/// write; otherwise as it is. No value changes, because such a run has rounded it already. Operations take either, and
/// their results are of the type of their first argument.
pub fn held<const D: usize>(x: Tensor<D>, p: Precision) -> Tensor<D> {
    if p == Precision::F32 || reference::is_flex(&x) || x.dims().contains(&0) {
        return x;
    }
    reference::cast(&x, DType::BF16)
}

/// `x` in f32.
pub fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    reference::cast(&x, DType::F32)
}
