//! Consecutive blocks of the transformer: a stage of a pipeline, or all of them.

use dg_core::shape::TransformerShape;
use std::ops::Range;

/// The blocks of a stage, each numbered among those of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) double: Range<usize>,
    pub(crate) single: Range<usize>,
    /// Whether it has the first block, and with it the embedders.
    pub(crate) is_first: bool,
    /// Whether it has the last block, and with it the end.
    pub(crate) is_last: bool,
}

impl Stage {
    /// Of the blocks `blocks`, double blocks numbered first.
    pub(crate) fn new(shape: &TransformerShape, blocks: &Range<usize>) -> Self {
        let doubles = shape.double_blocks;
        let single = |i: usize| i.saturating_sub(doubles);
        Self {
            double: blocks.start.min(doubles)..blocks.end.min(doubles),
            single: single(blocks.start)..single(blocks.end),
            is_first: blocks.start == 0,
            is_last: blocks.end == doubles + shape.single_blocks,
        }
    }
}

/// All blocks.
pub(crate) fn all(shape: &TransformerShape) -> Range<usize> {
    0..shape.double_blocks + shape.single_blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_among_their_kind() {
        let shape = TransformerShape {
            heads: 1,
            head_dim: 2,
            double_blocks: 3,
            single_blocks: 4,
            in_channels: 4,
            text_width: 1,
            pooled_width: 1,
            guidance_embeds: false,
            axes_dims_rope: vec![2],
        };
        let stage = |blocks| Stage::new(&shape, &blocks);
        assert_eq!(stage(0..7), Stage { double: 0..3, single: 0..4, is_first: true, is_last: true });
        assert_eq!(stage(2..5), Stage { double: 2..3, single: 0..2, is_first: false, is_last: false });
        assert_eq!(stage(5..7), Stage { double: 3..3, single: 2..4, is_first: false, is_last: true });
    }
}
