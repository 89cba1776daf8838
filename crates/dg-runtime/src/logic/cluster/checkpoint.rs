//! Latents that a job can go on from.

use super::{RankId, Stamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Where the latents of one rank are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference(pub u64);

/// The latents of all ranks after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of which attempt.
    pub epoch: Stamp,
    /// Steps that are done.
    pub step: u32,
    /// In the order of the attempt's ranks.
    pub parts: Arc<[Reference]>,
}

/// Checkpoints of one job: those that are complete and those of which parts are missing.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// The oldest first.
    complete: VecDeque<Checkpoint>,
    /// Of the present attempt, by step.
    partial: BTreeMap<u32, BTreeMap<RankId, Reference>>,
}

impl Checkpoints {
    /// The newest complete one.
    pub fn newest(&self) -> Option<&Checkpoint> {
        self.complete.back()
    }

    /// Takes the part of a rank. With the last one comes the step that is complete now.
    pub fn part(
        &mut self,
        epoch: Stamp,
        members: &[RankId],
        rank: RankId,
        step: u32,
        at: Reference,
    ) -> Option<u32> {
        if self.newest().is_some_and(|newest| newest.step >= step) {
            return None;
        }
        let parts = self.partial.entry(step).or_default();
        parts.insert(rank, at);
        if parts.len() < members.len() {
            if self.partial.len() > PARTIAL_MAX {
                self.partial.pop_first();
            }
            return None;
        }
        let parts = members.iter().filter_map(|member| parts.get(member).copied()).collect();
        self.complete.push_back(Checkpoint { epoch, step, parts });
        if self.complete.len() > COMPLETE_MAX {
            self.complete.pop_front();
        }
        self.partial.retain(|other, _| *other > step);
        Some(step)
    }

    /// The attempt is over: what it has not completed is void, as the next one may share the latents otherwise.
    pub fn end_epoch(&mut self) {
        self.partial.clear();
    }
}

/// Complete checkpoints that are kept.
pub const COMPLETE_MAX: usize = 2;
/// Checkpoints whose parts are waited for.
const PARTIAL_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::cluster::NodeId;

    #[test]
    fn a_checkpoint_needs_all_ranks_of_one_attempt_and_the_last_two_are_kept() {
        let members = [0, 1].map(|slot| RankId { node: NodeId(0), slot });
        let epoch = Stamp { term: 1, number: 4 };
        let mut all = Checkpoints::default();
        let mut part =
            |rank: usize, step| all.part(epoch, &members, members[rank], step, Reference(rank as u64));
        assert_eq!((part(0, 2), part(0, 2), part(1, 2)), (None, None, Some(2)));
        assert_eq!((part(1, 1), part(1, 4)), (None, None), "late, and half");
        all.end_epoch();
        let mut part =
            |rank: usize, step| all.part(epoch, &members, members[rank], step, Reference(rank as u64));
        assert_eq!((part(0, 4), part(1, 4), part(1, 6), part(0, 6)), (None, Some(4), None, Some(6)));
        assert_eq!(all.newest().map(|c| c.parts.to_vec()), Some(vec![Reference(0), Reference(1)]));
        assert_eq!(all.complete.len(), COMPLETE_MAX);
    }
}
