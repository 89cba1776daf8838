//! Values that follow from a number, so that sender, receiver and model agree on them without talking.

use super::harness::{Outcome, ensure};
use crate::delayed::splitmix;
use crate::{Block, BlockShape, Class, Reduce};
use dg_core::DType;
use half::bf16;

/// A number that follows from several.
pub(super) fn word(parts: &[u64]) -> u64 {
    parts.iter().fold(0x0dd0, |hash, part| splitmix(&mut (hash ^ part)))
}

/// Random choices that follow from a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        splitmix(&mut self.0)
    }

    /// 0 to `end` - 1.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A length: often 0, mostly small, sometimes large.
    pub(super) fn len(&mut self) -> usize {
        match self.below(20) {
            0..5 => 0,
            5..19 => self.below(24),
            _ => self.below(1500),
        }
    }

    pub(super) fn dtype(&mut self) -> DType {
        if self.below(2) == 0 { DType::Float32 } else { DType::Bfloat16 }
    }

    pub(super) fn class(&mut self) -> Class {
        Class::ALL[self.below(Class::ALL.len())]
    }

    pub(super) fn reduce(&mut self) -> Reduce {
        if self.below(3) == 0 { Reduce::Max } else { Reduce::Sum }
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Finite values of very different sizes, so that the order of a sum shows.
pub(super) fn block(seed: u64, shape: BlockShape) -> Block {
    let mut state = seed;
    let mut value = move || {
        let x = splitmix(&mut state);
        let fraction = (x >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        fraction * [1.0, 1e-3, 300.0, 1e6][(x & 3) as usize]
    };
    match shape.dtype {
        DType::Float32 => Block::from_f32((0..shape.len).map(|_| value()).collect()),
        DType::Bfloat16 => Block::from_bf16((0..shape.len).map(|_| bf16::from_f32(value())).collect()),
    }
}

/// The sequential model of a reduction: plain loops over the ranks.
pub(super) fn reduced(how: Reduce, blocks: &[Block]) -> Block {
    let shape = blocks[0].shape();
    let values: Vec<f32> = (0..shape.len)
        .map(|i| {
            let mut of_ranks = blocks.iter().map(|block| match shape.dtype {
                DType::Float32 => block.as_f32().map_or(f32::NAN, |values| values[i]),
                DType::Bfloat16 => block.as_bf16().map_or(f32::NAN, |values| values[i].to_f32()),
            });
            let first = of_ranks.next().unwrap_or_default();
            of_ranks.fold(first, |sum, x| match how {
                Reduce::Sum => sum + x,
                Reduce::Max => sum.max(x),
            })
        })
        .collect();
    match shape.dtype {
        DType::Float32 => Block::from_f32(values),
        DType::Bfloat16 => Block::from_bf16(values.into_iter().map(bf16::from_f32).collect()),
    }
}

/// A number that changes with every bit of the block and with its shape.
pub(super) fn digest(block: &Block) -> u64 {
    let start = word(&[block.len() as u64, block.dtype().bytes()]);
    let bytes = block.host().map_or(&[][..], |bytes| bytes);
    bytes.chunks(8).fold(start, |hash, chunk| {
        let mut part = [0; 8];
        part[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(part)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

/// Compares what arrived with what should have.
pub(super) fn same(what: &str, expected: &Block, got: &Block) -> Outcome {
    if expected.same_bits(got) {
        return Ok(());
    }
    ensure(expected.shape() == got.shape(), || {
        format!("{what}: expected {}, got {}", expected.shape(), got.shape())
    })?;
    let differs = |(a, b): (&Block, &Block)| {
        let (a, b) = (a.host()?, b.host()?);
        a.iter().zip(b.iter()).position(|(a, b)| a != b)
    };
    let at = differs((expected, got));
    ensure(false, || match at {
        Some(byte) => format!("{what}: {} differs from byte {byte} on", got.shape()),
        None => format!("{what}: {} is not on the host", got.shape()),
    })
}
