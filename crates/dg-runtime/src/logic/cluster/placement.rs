//! Which ranks a job gets: as few nodes as can be, so that groups with heavy traffic stay inside one.

use super::{NodeId, RankId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a node computes on. A job gets ranks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Cores.
    Cpu,
    /// CUDA devices.
    Cuda,
}

/// Ranks that have nothing to do.
#[derive(Clone, Debug, Default)]
pub struct Free {
    nodes: HashMap<NodeId, BTreeSet<u16>>,
    /// Nodes by how many there are.
    order: BTreeMap<Kind, BTreeSet<(usize, NodeId)>>,
    count: BTreeMap<Kind, usize>,
}

impl Free {
    /// How many there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.count.get(&kind).copied().unwrap_or(0)
    }

    /// The rank has nothing to do, or has.
    pub fn set(&mut self, kind: Kind, rank: RankId, is_free: bool) {
        let slots = self.nodes.entry(rank.node).or_default();
        let before = slots.len();
        let has_changed = if is_free { slots.insert(rank.slot) } else { slots.remove(&rank.slot) };
        if !has_changed {
            return;
        }
        let after = slots.len();
        let order = self.order.entry(kind).or_default();
        order.remove(&(before, rank.node));
        if after > 0 {
            order.insert((after, rank.node));
        } else {
            self.nodes.remove(&rank.node);
        }
        let count = self.count.entry(kind).or_default();
        *count = (*count + after).saturating_sub(before);
    }

    /// Up to `ranks` of them, from each node a multiple of `unit`, of nodes that `suits` allows. If one node has all
    /// of them, the fullest such; else the emptiest nodes first.
    pub fn pick(&self, kind: Kind, ranks: usize, unit: usize, suits: &dyn Fn(NodeId) -> bool) -> Vec<RankId> {
        let mut picked = Vec::new();
        let Some(order) = self.order.get(&kind) else { return picked };
        let whole = order.range((ranks, NodeId(0))..).find(|(_, node)| suits(*node));
        if let Some((_, node)) = whole {
            self.take(*node, ranks, unit, &mut picked);
            return picked;
        }
        for (_, node) in order.iter().rev().filter(|(_, node)| suits(*node)) {
            if picked.len() >= ranks {
                break;
            }
            self.take(*node, ranks - picked.len(), unit, &mut picked);
        }
        picked
    }

    fn take(&self, node: NodeId, most: usize, unit: usize, picked: &mut Vec<RankId>) {
        let Some(slots) = self.nodes.get(&node) else { return };
        let unit = unit.max(1);
        let count = slots.len().min(most) / unit * unit;
        picked.extend(slots.iter().take(count).map(|slot| RankId { node, slot: *slot }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nodes: &[u16], ranks: usize, unit: usize, expected: &[(u32, u16)]) {
        let mut free = Free::default();
        for (node, count) in nodes.iter().enumerate() {
            for slot in 0..*count {
                free.set(Kind::Cpu, RankId { node: NodeId(node as u32), slot }, true);
            }
        }
        let picked = free.pick(Kind::Cpu, ranks, unit, &|node| node != NodeId(9));
        let picked: Vec<_> = picked.iter().map(|rank| (rank.node.0, rank.slot)).collect();
        assert_eq!(picked, expected);
        assert_eq!(free.count(Kind::Cpu), nodes.iter().map(|n| usize::from(*n)).sum::<usize>());
    }

    #[test]
    fn few_nodes_and_whole_groups() {
        check(&[4, 2, 3], 2, 1, &[(1, 0), (1, 1)]);
        check(&[4, 2, 3], 3, 1, &[(2, 0), (2, 1), (2, 2)]);
        check(&[2, 3, 3], 4, 2, &[(2, 0), (2, 1), (1, 0), (1, 1)]);
        check(&[1, 1], 4, 1, &[(1, 0), (0, 0)]);
    }
}
