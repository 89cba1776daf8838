//! Nodes and the processes of their ranks.

use super::epoch::Cause;
use super::placement::{Free, Kind};
use super::timers::Timers;
use super::{JobId, ModelHash, NodeId, RankId, Stamp};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

mod processes;
mod tiers;

pub use tiers::Tier;

/// What a node says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Larger after each start of its agent.
    pub incarnation: u64,
    /// What its ranks compute on.
    pub kind: Kind,
    /// How many there may be.
    pub slots: u16,
    /// Bytes that each may use.
    pub memory_bytes: u64,
    /// Operations per second that each reaches; 0 if that is not known.
    pub flops: u64,
    /// Models that it has.
    pub models: Vec<ModelHash>,
    /// Processes that run already.
    pub running: Vec<(u16, Stamp)>,
}

/// What a place for a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// Nothing that the head knows of: the node is not there, or does not take new work.
    Absent,
    /// One that is being started.
    Spawning(Stamp),
    /// One that has nothing to do.
    Idle(Stamp),
    /// One that a job has.
    Busy(Stamp, JobId),
    /// One that has been told to stop what it does: all up to the second stamp.
    Stopping(Stamp, Stamp, Duration),
    /// One that is being killed.
    Dying(Stamp),
    /// A device that is not used any more.
    Bad,
}

/// Times of processes, and what makes a device bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessTimes {
    /// Orders without an answer are repeated this often.
    pub resend: Duration,
    /// A process that does not stop for so long is killed.
    pub stop_max: Duration,
    /// So many deaths within the window make a device bad.
    pub deaths_max: usize,
    /// How long a death counts.
    pub deaths_window: Duration,
}

impl Default for ProcessTimes {
    fn default() -> Self {
        Self {
            resend: Duration::from_secs(1),
            stop_max: Duration::from_secs(2),
            deaths_max: 3,
            deaths_window: Duration::from_secs(300),
        }
    }
}

/// What happens to nodes and processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node is in; after a restart nothing is left of its processes.
    Up(NodeId, Facts, bool),
    /// A node has this model too.
    Model(NodeId, ModelHash),
    /// A node is out.
    Down(NodeId),
    /// A node takes no new work, or does again.
    Drain(NodeId, bool),
    /// A process runs.
    Spawned(RankId, Stamp),
    /// A process has ended, with its last log lines.
    Exited(RankId, Stamp, Vec<String>),
    /// A process has stopped all up to the second stamp.
    Stopped(RankId, Stamp, Stamp),
    /// A job takes an idle rank.
    Take(RankId, JobId),
    /// A job gives a rank back that has nothing to do any more.
    Free(RankId),
    /// A job gives a rank back that may still be at it, and take so long to stop.
    Stop(RankId, Duration),
    /// The device of a rank has failed: its process has to be started anew.
    Replace(RankId),
    /// Time has passed.
    Tick,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a process.
    Spawn(RankId, Stamp),
    /// Kill a process.
    Kill(RankId, Stamp),
    /// Tell a process to stop all up to the second stamp.
    Abort(RankId, Stamp, Stamp),
    /// A job has lost a rank.
    Lost(RankId, JobId, Cause),
    /// A rank has nothing to do.
    Ready(RankId),
    /// There may be more ranks for a job than before.
    Grown,
    /// Nothing runs on a node that takes no new work.
    Drained(NodeId),
    /// A device is not used any more.
    Bad(RankId),
}

/// A node and its ranks.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it says of itself.
    pub facts: Facts,
    /// Whether it is in.
    pub is_up: bool,
    /// Whether it takes no new work.
    pub is_draining: bool,
    ranks: Vec<Rank>,
}

#[derive(Clone, Debug)]
struct Rank {
    process: Process,
    deaths: Vec<Duration>,
}

/// All nodes.
#[derive(Clone, Debug)]
pub struct Registry {
    nodes: BTreeMap<NodeId, Node>,
    free: Free,
    capacity: BTreeMap<Kind, usize>,
    /// Nodes that are in, by what they compute with.
    tiers: BTreeMap<Kind, Vec<Tier>>,
    /// Nodes that are in, and how many of them have each model.
    up: usize,
    models: HashMap<ModelHash, usize>,
    timers: Timers<RankId>,
    times: ProcessTimes,
    stamp: Stamp,
}

impl Registry {
    /// No node yet; stamps are of the head's incarnation `term`.
    pub fn new(term: u64, times: ProcessTimes) -> Self {
        Self {
            nodes: BTreeMap::new(),
            free: Free::default(),
            capacity: BTreeMap::new(),
            tiers: BTreeMap::new(),
            up: 0,
            models: HashMap::new(),
            timers: Timers::default(),
            times,
            stamp: Stamp { term, number: 0 },
        }
    }

    /// A new stamp.
    pub fn stamp(&mut self) -> Stamp {
        self.stamp.number += 1;
        self.stamp
    }

    /// A node that has ever been in.
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// All nodes that have ever been in.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// What a place for a rank holds.
    pub fn process(&self, rank: RankId) -> Process {
        let node = self.nodes.get(&rank.node);
        node.and_then(|node| node.ranks.get(usize::from(rank.slot)))
            .map_or(Process::Absent, |rank| rank.process)
    }

    /// The start of the process that counts.
    pub fn start(&self, rank: RankId) -> Option<Stamp> {
        match self.process(rank) {
            Process::Absent | Process::Bad => None,
            Process::Spawning(start) | Process::Idle(start) | Process::Busy(start, _) => Some(start),
            Process::Stopping(start, ..) | Process::Dying(start) => Some(start),
        }
    }

    /// Ranks that have nothing to do.
    pub fn free(&self) -> &Free {
        &self.free
    }

    /// Ranks of nodes that are in and take work, whatever they do now.
    pub fn capacity(&self, kind: Kind) -> usize {
        self.capacity.get(&kind).copied().unwrap_or(0)
    }

    /// Sets of nodes that are worth a look when a job is placed: from the fastest alone to all of them.
    pub fn tiers(&self, kind: Kind) -> &[Tier] {
        self.tiers.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// A node that is in and does not have the model.
    pub fn lacks(&self, model: ModelHash) -> Option<NodeId> {
        if self.models.get(&model).copied().unwrap_or(0) == self.up {
            return None;
        }
        let lacking = |(_, node): &(&NodeId, &Node)| node.is_up && !node.facts.models.contains(&model);
        self.nodes.iter().find(lacking).map(|(id, _)| *id)
    }

    /// When to look again.
    pub fn next(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// Takes an event and says what to do, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Up(node, facts, is_restart) => self.up(node, facts, is_restart, now),
            Event::Model(node, model) => {
                if let Some(node) = self.nodes.get_mut(&node)
                    && node.is_up
                    && !node.facts.models.contains(&model)
                {
                    node.facts.models.push(model);
                    *self.models.entry(model).or_default() += 1;
                }
                Vec::new()
            }
            Event::Down(node) => self.down(node, now),
            Event::Drain(node, is_draining) => self.drain(node, is_draining, now),
            Event::Spawned(rank, start) if self.process(rank) == Process::Spawning(start) => {
                self.idle(rank, start, now)
            }
            Event::Exited(rank, start, log) if self.start(rank) == Some(start) => self.exited(rank, log, now),
            Event::Stopped(rank, start, stamp) => match self.process(rank) {
                Process::Stopping(have, until, _) if have == start && stamp >= until => {
                    self.idle(rank, start, now)
                }
                _ => Vec::new(),
            },
            Event::Take(rank, job) => {
                if let Process::Idle(start) = self.process(rank) {
                    self.set(rank, Process::Busy(start, job), now);
                }
                Vec::new()
            }
            Event::Free(rank) => match self.process(rank) {
                Process::Busy(start, _) => self.idle(rank, start, now),
                _ => Vec::new(),
            },
            Event::Stop(rank, time) => match self.process(rank) {
                Process::Busy(start, _) => self.stop(rank, start, time, now),
                _ => Vec::new(),
            },
            Event::Replace(rank) => self.replace(rank, now),
            Event::Spawned(..) | Event::Exited(..) => Vec::new(),
            Event::Tick => {
                let due: Vec<RankId> = std::iter::from_fn(|| self.timers.pop(now)).collect();
                due.into_iter().flat_map(|rank| self.remind(rank, now)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
