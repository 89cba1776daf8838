//! Products of f32 matrices by kernels that multiply f32: without tensor cores, whose f32 is TF32 (19 bits).

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

/// The shape of a product, with the batch dimensions of either side.
pub(super) fn shape(left: &Shape, right: &Shape) -> Shape {
    let rank = left.num_dims();
    let mut dims: Vec<usize> = (0..rank).map(|i| left[i].max(right[i])).collect();
    dims[rank - 2] = left[rank - 2];
    dims[rank - 1] = right[rank - 1];
    Shape::from(dims)
}

/// `left · right` by units that each compute some values, from tiles in shared memory.
///
/// # Panics
/// If the tensors are not f32, or do not fit each other.
pub(super) fn product(left: CubeTensor, right: CubeTensor) -> CubeTensor {
    assert!(left.dtype == DType::F32 && right.dtype == DType::F32, "{:?} · {:?}", left.dtype, right.dtype);
    let out = super::like(&left, shape(left.meta.shape(), right.meta.shape()), DType::F32);
    if out.meta.shape().num_elements() == 0 {
        return out;
    }
    let f32_type = f32::elem_type_native();
    let mut elements =
        MatmulElems::from_globals(&MatmulGlobalElems { lhs: f32_type, rhs: f32_type, out: f32_type });
    let client = left.client.clone();
    let side = |t: CubeTensor| InputBinding::new(t.binding(), f32_type);
    let (left, right) = (side(left), side(right));
    let strategies =
        [Strategy::DoubleUnit(Default::default()), Strategy::SimpleUnit(Default::default()), Strategy::Naive];
    let mut refused = None;
    for strategy in strategies {
        let to = out.clone().binding();
        match cubek::matmul::launch::launch_ref(
            &strategy.into(),
            &client,
            left.clone(),
            right.clone(),
            to,
            &mut elements,
        ) {
            Ok(()) => return out,
            Err(error) => refused = Some(error),
        }
    }
    panic!("no kernel multiplies these matrices: {refused:?}");
}
