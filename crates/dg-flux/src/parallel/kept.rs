//! Keys and values that PipeFusion keeps from one pass to the next.

use super::ring::Keys;
use crate::attend::Pass;
use burn::tensor::Tensor;
use std::collections::HashMap;

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
