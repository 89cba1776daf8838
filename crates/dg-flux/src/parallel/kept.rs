//! Keys and values that PipeFusion keeps from one pass to the next.

use super::ring::Keys;
use crate::attend::Pass;
use burn::tensor::Tensor;
use dg_plan::SegmentTable;
use std::collections::HashMap;

/// The segments of `table` that go through the blocks together, by their place in the table: of the whole sequence,
/// then of each patch.
pub(super) fn passes(table: &SegmentTable) -> Vec<Vec<usize>> {
    let of = |patch: Option<usize>| {
        let is_in = |i: &usize| patch.is_none_or(|patch| table.segments()[*i].patch == patch);
        (0..table.segments().len()).filter(is_in).collect()
    };
    std::iter::once(None).chain((0..table.patches()).map(Some)).map(of).collect()
}

/// The keys and values of one rank's heads, of every token that it has seen, by picture, branch and block.
///
/// They begin empty with each job. What is not there yet, because the pipeline goes stale from the first step on, is
/// not attended to.
#[derive(Default)]
pub(super) struct Kept(HashMap<Place, Vec<Option<Keys>>>);

/// Whose keys: the first picture of a pass, its branch, and the block.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    image: usize,
    branch: usize,
    layer: u32,
}

impl Place {
    pub(super) fn new(pass: Pass, layer: u32) -> Self {
        Self { image: pass.image, branch: pass.branch, layer }
    }
}

impl Kept {
    /// Puts the keys and values of a segment in the place of older ones. They are copied: as they come they are
    /// parts of larger tensors, which would stay too.
    pub(super) fn put(&mut self, place: Place, segment: usize, (k, v): &Keys) {
        let of = self.0.entry(place).or_default();
        if of.len() <= segment {
            of.resize(segment + 1, None);
        }
        of[segment] = Some((copied(k), copied(v)));
    }

    /// Those of the segments for which `is_wanted`, in canonical order.
    pub(super) fn get(&self, place: Place, is_wanted: impl Fn(usize) -> bool) -> Vec<Keys> {
        let of = self.0.get(&place).map(Vec::as_slice).unwrap_or_default();
        let known = of.iter().enumerate().filter(|(segment, _)| is_wanted(*segment));
        known.filter_map(|(_, keys)| keys.clone()).collect()
    }
}

fn copied(t: &Tensor<4>) -> Tensor<4> {
    t.clone().mul_scalar(1.0)
}
