//! What the head of a cluster and its agents decide. Time is a [`Duration`](std::time::Duration) since some start, of
//! the clock of whoever decides, and is handed in.
//!
//! - [`head`]: all of the head: events of nodes, ranks, clients and timers in, actions out
//! - [`lease`]: how long a node may compute without hearing from the head, on both sides
//! - [`epoch`]: one attempt at a job on a fixed set of ranks; [`fence`]: how a rank keeps older ones out
//! - [`job`]: one job over all its attempts; [`checkpoint`]: what it can go on from; [`pace`]: when it hangs
//! - [`queue`]: which job is next
//! - [`registry`]: nodes and the processes of their ranks; [`placement`]: which of them a job gets
//! - [`planner`]: how a job is laid out on them; [`timers`]: when the head has to look again
//!
//! Everything that the head sends may be lost and is sent again until it is answered; everything that it hears may come
//! late, twice or out of order. Three numbers keep that harmless: a node has an incarnation, the process of a rank a
//! start, an attempt at a job an epoch, and only the present ones count.

pub mod checkpoint;
pub mod epoch;
pub mod fence;
pub mod head;
pub mod job;
pub mod lease;
pub mod pace;
pub mod placement;
pub mod planner;
pub mod queue;
pub mod registry;
pub mod timers;

use serde::{Deserialize, Serialize};

pub use super::queue::JobId;

/// A node: its place in the cluster's list of names. A name keeps its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// A place for a process that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RankId {
    /// On which node.
    pub node: NodeId,
    /// Which of the node's devices.
    pub slot: u16,
}

/// Who submits jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u32);

/// A model, by the hash that nodes compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelHash(pub u64);

/// A number that the head gives out once: epochs of jobs and starts of processes. Later ones are larger, those of a
/// later head larger than all of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Incarnation of the head.
    pub term: u64,
    /// Counted by it.
    pub number: u64,
}

impl std::fmt::Display for RankId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of node {}", self.slot, self.node.0)
    }
}
