//! [`Cpu`] where there are no kernels: a type without values.

use super::{Attention, Binary, Convolution, Finish, Layer, Most, Norm, Product, Rows, Unary};
use crate::Precision;
use burn::tensor::bf16;

/// Never exists here.
#[derive(Clone, Copy)]
pub(crate) enum Cpu {}

macro_rules! absent {
    ($($name:ident($($kind:ty),*) $(-> $result:ty)?;)*) => {
        impl Cpu {
            pub(crate) fn detect(_: Most) -> Option<Self> {
                None
            }
            $(pub(crate) fn $name(self, $(_: $kind),*) $(-> $result)? {
                match self {}
            })*
        }
    };
}

absent! {
    unary(Unary, Precision, &mut [f32]);
    binary(Binary, Precision, &mut [f32], &[f32]);
    gated(Precision, &mut [f32], &[f32], &[f32]);
    blend(&mut [f32], f32, &[f32], f32);
    widen_bf16(&mut [f32], &[bf16]);
    norm_row(Norm<'_>, f32, Precision, &mut [f32], &[f32]);
    rotate(Precision, &mut [f32], &[f32], &[f32]);
    biased_softmax(Precision, &mut [f32], f32, &[f32]);
    moments(&[f32], f32) -> (f32, f32);
    affine(Precision, &mut [f32], [f32; 3], bool);
    attention(&Attention<'_>, f32, [Precision; 2]) -> Vec<(Vec<f32>, Vec<f32>)>;
    fma(Precision, usize) -> (usize, f32);
    shift(Precision, &mut [f32], f32);
    product(&Product<'_>, Finish<'_>, Precision, bool);
    layers(usize, &[Rows<'_>], &[Layer<'_>], Precision) -> Vec<Vec<f32>>;
    name() -> &'static str;
    convolve(&Convolution<'_>, Precision) -> Vec<f32>;
}
