//! Which blocks a pipeline stage computes.

use crate::parts::{Block, Part, block_parameters};
use crate::split::{Extra, split};
use dg_core::ModelShape;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How blocks are shared out among stages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Equal times: equal numbers of blocks, because a double and a single block cost a token the same 12·D²
    /// multiplications. The remainder goes to the last stages, where blocks have fewer weights.
    #[default]
    Time,
    /// The largest stage has as few weights as possible, embedders and the end included.
    Memory,
    /// These numbers of blocks, in order.
    Given(Vec<usize>),
}

/// The blocks of each stage: consecutive, none empty, together all. Double blocks come first in the numbering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTable(Vec<Range<usize>>);

impl StageTable {
    /// Shares out the blocks of `shape` among `stages` stages.
    ///
    /// # Errors
    /// If there are more stages than blocks, or a given list has another length, another sum or an empty stage.
    pub fn new(shape: &ModelShape, stages: usize, balance: &Balance) -> Result<Self, StageError> {
        let blocks = shape.transformer.double_blocks + shape.transformer.single_blocks;
        if stages == 0 || stages > blocks {
            return Err(StageError::TooMany { stages, blocks });
        }
        match balance {
            Balance::Time => Ok(Self(split(blocks, stages, Extra::Last))),
            Balance::Memory => Ok(Self(lightest(shape, blocks, stages))),
            Balance::Given(counts) => given(counts, blocks, stages),
        }
    }

    /// Block numbers of each stage.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.0.len()
    }

    /// Blocks of the stage that has most.
    pub fn most_blocks(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }

    /// The parts of the transformer that every rank of `stage` holds.
    pub fn parts(&self, shape: &ModelShape, stage: usize) -> Vec<Part> {
        let mut parts = vec![Part::TimeTextEmbed];
        if stage == 0 {
            parts.extend([Part::XEmbedder, Part::ContextEmbedder]);
        }
        parts.extend(self.0[stage].clone().flat_map(|i| Block::nth(&shape.transformer, i).parts()));
        if stage + 1 == self.0.len() {
            parts.extend([Part::NormOut, Part::ProjOut]);
        }
        parts
    }

    /// Weights of `stage`: those of [`parts`](Self::parts).
    pub fn parameters(&self, shape: &ModelShape, stage: usize) -> u64 {
        self.parts(shape, stage).iter().map(|part| part.parameters(shape)).sum()
    }
}

fn given(counts: &[usize], blocks: usize, stages: usize) -> Result<StageTable, StageError> {
    let sum = counts.iter().fold(0, |n: usize, c| n.saturating_add(*c));
    if counts.len() != stages || sum != blocks || counts.contains(&0) {
        return Err(StageError::Given { counts: counts.to_vec(), stages, blocks });
    }
    let mut start = 0;
    let one = |count: &usize| {
        start += count;
        start - count..start
    };
    Ok(StageTable(counts.iter().map(one).collect()))
}

/// The cut whose heaviest stage is lightest: `best[i]` is that weight for the first i blocks, stage by stage.
fn lightest(shape: &ModelShape, blocks: usize, stages: usize) -> Vec<Range<usize>> {
    let of = |part: Part| part.parameters(shape);
    let first = of(Part::XEmbedder) + of(Part::ContextEmbedder);
    let last = of(Part::NormOut) + of(Part::ProjOut);
    let mut before = vec![0u64];
    for i in 0..blocks {
        before.push(before[i] + block_parameters(shape, i));
    }
    let weight = |from: usize, to: usize| {
        let ends = if from == 0 { first } else { 0 } + if to == blocks { last } else { 0 };
        before[to] - before[from] + ends
    };
    let mut best: Vec<u64> = (0..=blocks).map(|to| if to == 0 { u64::MAX } else { weight(0, to) }).collect();
    let mut cuts: Vec<Vec<usize>> = Vec::new();
    for stage in 1..stages {
        let mut next = vec![u64::MAX; blocks + 1];
        let mut cut = vec![0; blocks + 1];
        for to in stage + 1..=blocks {
            let heaviest = |from: usize| best[from].max(weight(from, to));
            let from = (stage..to).min_by_key(|from| heaviest(*from)).unwrap_or(stage);
            (next[to], cut[to]) = (heaviest(from), from);
        }
        best = next;
        cuts.push(cut);
    }
    let mut ranges = Vec::new();
    let mut to = blocks;
    for cut in cuts.iter().rev() {
        ranges.push(cut[to]..to);
        to = cut[to];
    }
    ranges.push(0..to);
    ranges.reverse();
    ranges
}

/// Why blocks cannot be shared out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// A stage would be empty.
    #[error("{stages} pipeline stages need at least {stages} blocks, the model has {blocks}")]
    TooMany {
        /// Stages asked for.
        stages: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A list that does not fit.
    #[error(
        "blocks per stage {counts:?}: expected {stages} numbers of at least 1 with the sum {blocks}, got the sum {}",
        counts.iter().fold(0usize, |n, c| n.saturating_add(*c))
    )]
    Given {
        /// As given.
        counts: Vec<usize>,
        /// Stages of the layout.
        stages: usize,
        /// Blocks of the model.
        blocks: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known::flux_dev;

    fn ranges(stages: usize, balance: Balance) -> Vec<Range<usize>> {
        StageTable::new(&flux_dev(), stages, &balance).unwrap().ranges().to_vec()
    }

    #[test]
    fn equal_times_are_equal_numbers_of_blocks() {
        assert_eq!(ranges(4, Balance::Time), [0..14, 14..28, 28..42, 42..57]);
        assert_eq!(ranges(1, Balance::Time)[0], 0..57);
    }

    #[test]
    fn equal_memory_gives_the_double_blocks_more_stages() {
        let shape = flux_dev();
        for stages in [2, 3, 4, 8, 57] {
            let table = StageTable::new(&shape, stages, &Balance::Memory).unwrap();
            let heaviest = |t: &StageTable| (0..stages).map(|s| t.parameters(&shape, s)).max().unwrap();
            let by_time = StageTable::new(&shape, stages, &Balance::Time).unwrap();
            assert!(heaviest(&table) <= heaviest(&by_time), "{stages}");
            // no stage can be lighter than an even share, nor need it be more than a block heavier
            let share = shape.transformer.parameters() / stages as u64;
            assert!(heaviest(&table) >= share && heaviest(&table) < share + 500_000_000, "{stages}");
        }
        assert_eq!(ranges(2, Balance::Memory)[0].end, 17);
    }

    #[test]
    fn a_given_list_must_fit() {
        assert_eq!(ranges(2, Balance::Given(vec![20, 37])), [0..20, 20..57]);
        for counts in [vec![57], vec![20, 36], vec![0, 57], vec![19, 19, 19], vec![usize::MAX, 58]] {
            let e = StageTable::new(&flux_dev(), 2, &Balance::Given(counts.clone())).unwrap_err();
            assert!(e.to_string().contains("with the sum 57"), "{e}");
        }
        let e = StageTable::new(&flux_dev(), 58, &Balance::Time).unwrap_err();
        assert_eq!(e, StageError::TooMany { stages: 58, blocks: 57 });
    }
}
