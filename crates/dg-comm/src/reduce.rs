//! Combining the values of all ranks so that every rank gets the same bits.

use crate::Block;
use dg_core::DType;
use half::bf16;

/// What [`reduce`](crate::Communicator::reduce) computes for each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The largest; NaN if one of them is NaN, +0 before -0.
    Max,
    /// `((x0 + x1) + x2) + …` in the order of the ranks, in f32; bf16 is rounded once, at the end.
    Sum,
}

impl Reduce {
    fn of(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Max if a.is_nan() || b.is_nan() => f32::NAN,
            Self::Max if a.total_cmp(&b).is_lt() => b,
            Self::Max => a,
            Self::Sum => a + b,
        }
    }
}

/// Combines the blocks of ranks 0, 1, … in this order. They have one shape. `None` if one is not on the host.
pub fn in_order(how: Reduce, blocks: &[Block]) -> Option<Block> {
    let (first, rest) = blocks.split_first()?;
    let mut sum = widened(first)?;
    for block in rest {
        for (sum, x) in sum.iter_mut().zip(widened(block)?) {
            *sum = how.of(*sum, x);
        }
    }
    Some(match first.dtype() {
        DType::Float32 => Block::from_f32(sum),
        DType::Bfloat16 => Block::from_bf16(sum.into_iter().map(bf16::from_f32).collect()),
    })
}

fn widened(block: &Block) -> Option<Vec<f32>> {
    match block.dtype() {
        DType::Float32 => block.as_f32().map(<[f32]>::to_vec),
        DType::Bfloat16 => block.as_bf16().map(|values| values.iter().map(|x| x.to_f32()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(how: Reduce, values: &[f32], expect: f32) {
        let blocks: Vec<_> = values.iter().map(|x| Block::from_f32(vec![*x])).collect();
        let got = in_order(how, &blocks).unwrap().as_f32().unwrap()[0];
        assert_eq!(got.to_bits(), expect.to_bits(), "{how:?} of {values:?} is {got}");
    }

    #[test]
    fn the_order_is_that_of_the_ranks() {
        check(Reduce::Sum, &[1e8, 1.0, -1e8], 0.0);
        check(Reduce::Sum, &[1e8, -1e8, 1.0], 1.0);
        check(Reduce::Max, &[-0.0, 0.0], 0.0);
        check(Reduce::Max, &[0.0, -0.0], 0.0);
        check(Reduce::Max, &[1.0, f32::NAN, 2.0], f32::NAN);
        check(Reduce::Max, &[f32::NEG_INFINITY], f32::NEG_INFINITY);
    }

    #[test]
    fn bf16_is_rounded_once() {
        // 256 + 0.5 + 0.5 + 0.5 + 0.5: a bf16 sum would stay at 256 for ever.
        let of = |x: f32| Block::from_bf16(vec![bf16::from_f32(x)]);
        let blocks = [of(256.0), of(0.5), of(0.5), of(0.5), of(0.5)];
        assert_eq!(in_order(Reduce::Sum, &blocks).unwrap().as_bf16().unwrap()[0].to_f32(), 258.0);
    }
}
