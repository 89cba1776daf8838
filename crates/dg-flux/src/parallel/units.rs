//! What goes through the stages, and in which order. The rules are those of [`dg_plan::traffic`].

use dg_comm::IN_FLIGHT_MIN;
use dg_plan::{Passes, Plan, SegmentTable};
use std::collections::VecDeque;
use std::ops::Range;

/// What the scheduler steps at once: one patch of all pictures, or all of the sequence of some pictures. Each of the
/// branches that a rank computes is a pass of it through the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// The patch; absent, the whole sequence.
    pub(super) patch: Option<usize>,
    /// Pictures of the batch.
    pub(super) images: Range<usize>,
}

impl Unit {
    /// Whether text goes along.
    pub(super) fn has_text(&self) -> bool {
        self.patch.is_none_or(|patch| patch == 0)
    }

    fn shares_tokens(&self, other: &Self) -> bool {
        let patches = self.patch.is_none() || other.patch.is_none() || self.patch == other.patch;
        patches && self.images.start < other.images.end && other.images.start < self.images.end
    }
}

/// The units of a step of a batch of `images` pictures, in order.
pub(super) fn units(plan: &Plan, images: usize, step: usize) -> Vec<Unit> {
    let whole = Unit { patch: None, images: 0..images };
    match plan.passes {
        Passes::Patches if plan.is_stale(step) => {
            (0..plan.patches.runs().len()).map(|p| Unit { patch: Some(p), ..whole.clone() }).collect()
        }
        Passes::Streams => (0..images).map(|i| Unit { patch: None, images: i..i + 1 }).collect(),
        _ => vec![whole],
    }
}

/// The segments of `table` that go through the blocks together, by their place in the table: of the whole sequence,
/// then of each patch.
pub(super) fn passes(table: &SegmentTable) -> Vec<Vec<usize>> {
    let of = |patch: Option<usize>| {
        let is_in = |i: &usize| patch.is_none_or(|patch| table.segments()[*i].patch == patch);
        (0..table.segments().len()).filter(is_in).collect()
    };
    std::iter::once(None).chain((0..table.patches()).map(Some)).map(of).collect()
}

/// An owner's rows of each patch among its image tokens.
pub(super) fn rows_of_patches(table: &SegmentTable, owner: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut next = |patch| {
        start += table.image_in(owner, patch);
        start - table.image_in(owner, patch)..start
    };
    (0..table.patches()).map(&mut next).collect()
}

/// What the first stage has sent off and not got back: the credit of a pipeline. It bounds the messages that wait at
/// every stage, however slow one is.
pub(super) struct Credit {
    out: VecDeque<(usize, Unit)>,
    units_max: usize,
}

impl Credit {
    /// For a pipeline of `stages` stages: enough to keep them busy, with one unit waiting before each.
    pub(super) fn new(stages: usize) -> Self {
        Self { out: VecDeque::new(), units_max: (2 * stages).min(IN_FLIGHT_MIN) }
    }

    /// A unit was sent off in `step`, and its latents will come back.
    pub(super) fn sent(&mut self, step: usize, unit: Unit) {
        self.out.push_back((step, unit));
    }

    /// The next one whose latents must be there before `unit` can be sent off.
    pub(super) fn due(&mut self, unit: &Unit) -> Option<(usize, Unit)> {
        let is_needed = self.out.iter().any(|(_, out)| out.shares_tokens(unit));
        if is_needed || self.out.len() >= self.units_max { self.out.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_ends_at_two_units_a_stage() {
        let mut credit = Credit::new(2);
        let unit = |i| Unit { patch: None, images: i..i + 1 };
        for i in 0..4 {
            assert_eq!(credit.due(&unit(i)), None);
            credit.sent(0, unit(i));
        }
        assert_eq!(credit.due(&unit(4)), Some((0, unit(0))));
        credit.sent(0, unit(4));
        // what it needs itself, and all before that
        let due: Vec<_> = std::iter::from_fn(|| credit.due(&unit(2))).map(|(_, u)| u.images.start).collect();
        assert_eq!(due, [1, 2]);
    }

    #[test]
    fn a_patch_waits_for_itself_and_for_a_whole_step() {
        let (patch, whole) = (|p| Unit { patch: Some(p), images: 0..2 }, Unit { patch: None, images: 0..2 });
        assert!(patch(1).shares_tokens(&whole) && whole.shares_tokens(&patch(1)));
        assert!(patch(1).shares_tokens(&patch(1)) && !patch(1).shares_tokens(&patch(0)));
    }
}
