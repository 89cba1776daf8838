//! Nodes that differ in speed or memory: which of them are looked at together.
//!
//! The slowest rank of a job sets its pace and the smallest its memory. So a job is planned for the fastest nodes alone,
//! for these and the next fastest, and so on to all of them, and the same for memory; what is predicted best counts.

use super::{Facts, Kind, Registry};

/// Nodes with at least this speed and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    flops: u64,
    memory_bytes: u64,
}

impl Tier {
    /// Whether a node is one of them.
    pub fn has(&self, facts: &Facts) -> bool {
        facts.flops >= self.flops && facts.memory_bytes >= self.memory_bytes
    }
}

impl Registry {
    /// Sorts the nodes of a kind into tiers anew.
    pub(super) fn sort(&mut self, kind: Kind) {
        let nodes = || self.nodes.values().filter(|node| node.is_up && node.facts.kind == kind);
        let speeds = floors(nodes().map(|node| node.facts.flops).collect());
        let mut memories = floors(nodes().map(|node| node.facts.memory_bytes).collect());
        // Of two that are as fast the first counts: the one with more nodes to choose from.
        memories.reverse();
        let tiers = speeds
            .iter()
            .flat_map(|flops| memories.iter().map(|memory| Tier { flops: *flops, memory_bytes: *memory }));
        let tiers = tiers.collect();
        self.tiers.insert(kind, tiers);
    }
}

/// The least value of each group of values that are about the same, the largest first.
fn floors(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable_by(|a, b| b.cmp(a));
    let mut floors: Vec<u64> = Vec::new();
    let mut top = None;
    for value in values {
        let is_like = top.is_some_and(|top: u64| value >= top - top / ALIKE);
        let is_last = floors.len() == TIERS_MAX;
        match floors.last_mut() {
            Some(floor) if is_like || is_last => *floor = value,
            _ => {
                floors.push(value);
                top = Some(value);
            }
        }
    }
    floors
}

/// What differs by less than a third is alike: measured speeds are not more exact.
const ALIKE: u64 = 3;
/// Groups of speed, and of memory. The last takes in all that is less.
const TIERS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_same_is_one_group() {
        assert_eq!(floors(vec![100, 90, 100, 70]), [70]);
        assert_eq!(floors(vec![100, 67]), [67], "a third less is alike");
        assert_eq!(floors(vec![100, 66]), [100, 66], "more than that is not");
        assert_eq!(floors(vec![100, 30, 90, 25, 10]), [90, 25, 10]);
        assert_eq!(floors(vec![u64::MAX, 0]), [u64::MAX, 0]);
        assert_eq!(floors(vec![1, 1 << 8, 1 << 16, 1 << 24, 1 << 32]), [1 << 32, 1 << 24, 1 << 16, 1]);
        assert_eq!(floors(Vec::new()), Vec::<u64>::new());
    }
}
