//! PipeFusion's patches: runs of image tokens.

use crate::split::{Extra, split};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The image tokens cut into patches. Patches are runs of tokens, not of rows, so any number up to the number of
/// tokens is legal; one patch is no cut at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchTable(Vec<Range<usize>>);

impl PatchTable {
    /// Cuts `tokens` image tokens into `patches` runs whose lengths differ by at most one, the first ones
    /// longer. Nothing if a patch would be empty.
    pub fn new(tokens: usize, patches: usize) -> Option<Self> {
        (patches >= 1 && patches <= tokens).then(|| Self(split(tokens, patches, Extra::First)))
    }

    /// The runs, in order.
    pub fn runs(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Number of image tokens, N.
    pub fn tokens(&self) -> usize {
        self.0.last().map_or(0, |run| run.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_patches_are_refused() {
        assert_eq!(PatchTable::new(7, 3).unwrap().runs(), [0..3, 3..5, 5..7]);
        assert_eq!(PatchTable::new(7, 7).unwrap().tokens(), 7);
        assert_eq!(PatchTable::new(7, 8), None);
        assert_eq!(PatchTable::new(7, 0), None);
    }
}
