//! How long a node may compute without hearing from the head.
//!
//! A node asks for its lease anew every second. The head grants it for the TTL from when it *answers*; the node counts
//! the TTL from when it *asked*, less a margin. Asking is before answering, so that whatever the network does, the
//! node's lease ends first if its clock runs slower than the head's by no more than the margin allows: once a lease is
//! over for the head, the node has stopped its ranks.

use super::NodeId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Times of leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long a grant holds at the head.
    pub ttl: Duration,
    /// A node asks this often.
    pub renew: Duration,
    /// A node gives up its lease this much before the TTL is over: for the drift of clocks and for stopping its ranks.
    pub margin: Duration,
    /// Ranks that are told to stop because the lease is over are killed after this.
    pub grace: Duration,
    /// A node without a lease for so long ends.
    pub alone_max: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(5),
            renew: Duration::from_secs(1),
            margin: Duration::from_secs(1),
            grace: Duration::from_millis(300),
            alone_max: Duration::from_secs(60),
        }
    }
}

// === Node ===

/// What a node learns about its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// A head of this incarnation has taken the node. What an earlier one has started stops at once, and not when the
    /// first lease comes: by then there may be work of the new one.
    Head {
        /// Its incarnation.
        term: u64,
    },
    /// The head has answered.
    Granted {
        /// Incarnation of the head.
        term: u64,
        /// Of the question.
        seq: u64,
        /// For how long from there.
        ttl: Duration,
    },
    /// Time has passed.
    Tick,
}

/// What a node does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAction {
    /// Ask the head.
    Renew {
        /// Comes back with the answer.
        seq: u64,
    },
    /// Tell all ranks to stop, and start nothing until there is a lease again.
    Fence,
    /// Kill the ranks that have not stopped.
    Kill,
    /// End the agent.
    Exit,
    /// Look again at this time.
    SetTimer(Duration),
}

/// The lease of a node, at the node and by its clock.
#[derive(Clone, Debug)]
pub struct Keeper {
    times: LeaseTimes,
    /// The latest head that has granted anything.
    term: u64,
    seq: u64,
    renew_at: Duration,
    /// Questions without an answer and when they were asked, the oldest first.
    asked: VecDeque<(u64, Duration)>,
    state: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Computing is allowed.
    Until(Duration),
    /// It is not; ranks were told so at `since` and are killed at `kill_at`.
    Fenced {
        since: Duration,
        kill_at: Option<Duration>,
    },
    Exited,
}

impl Keeper {
    /// No lease yet.
    pub fn new(times: LeaseTimes, now: Duration) -> Self {
        let state = Held::Fenced { since: now, kill_at: None };
        Self { times, term: 0, seq: 0, renew_at: now, asked: VecDeque::new(), state }
    }

    /// A head has taken the node, and has these times. A lease that an earlier one has granted ends as it was granted.
    /// Being alone begins anew.
    pub fn set_times(&mut self, times: LeaseTimes, now: Duration) {
        self.times = times;
        if let Held::Fenced { since, .. } = &mut self.state {
            *since = now;
        }
    }

    /// Whether ranks of the node may compute.
    pub fn is_held(&self, now: Duration) -> bool {
        matches!(self.state, Held::Until(end) if now < end)
    }

    /// The latest head that has granted a lease.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Takes an event and says what to do, in order.
    pub fn handle(&mut self, event: NodeEvent, now: Duration) -> Vec<NodeAction> {
        let mut actions = Vec::new();
        if self.state == Held::Exited {
            return actions;
        }
        self.expire(now, &mut actions);
        match event {
            NodeEvent::Granted { term, seq, ttl } => self.granted(term, seq, ttl, now, &mut actions),
            NodeEvent::Head { term } => self.taken(term, now, &mut actions),
            NodeEvent::Tick => {}
        }
        if self.state != Held::Exited && now >= self.renew_at {
            self.seq += 1;
            self.renew_at = now + self.times.renew;
            self.asked.push_back((self.seq, now));
            if self.asked.len() > ASKED_MAX {
                self.asked.pop_front();
            }
            actions.push(NodeAction::Renew { seq: self.seq });
        }
        actions.extend(self.next().map(NodeAction::SetTimer));
        actions
    }

    fn expire(&mut self, now: Duration, actions: &mut Vec<NodeAction>) {
        match &mut self.state {
            Held::Until(end) if now >= *end => self.fence(now, actions),
            Held::Fenced { kill_at, .. } if kill_at.is_some_and(|at| now >= at) => {
                *kill_at = None;
                actions.push(NodeAction::Kill);
            }
            Held::Until(_) | Held::Fenced { .. } | Held::Exited => {}
        }
        if matches!(self.state, Held::Fenced { since, .. } if now >= since + self.times.alone_max) {
            self.state = Held::Exited;
            actions.push(NodeAction::Exit);
        }
    }

    fn fence(&mut self, now: Duration, actions: &mut Vec<NodeAction>) {
        self.state = Held::Fenced { since: now, kill_at: Some(now + self.times.grace) };
        actions.push(NodeAction::Fence);
    }

    fn taken(&mut self, term: u64, now: Duration, actions: &mut Vec<NodeAction>) {
        if term <= self.term || self.state == Held::Exited {
            return;
        }
        if matches!(self.state, Held::Until(_)) {
            self.fence(now, actions);
        }
        self.term = term;
        self.asked.clear();
        self.renew_at = now;
    }

    fn granted(&mut self, term: u64, seq: u64, ttl: Duration, now: Duration, actions: &mut Vec<NodeAction>) {
        let asked = self.asked.iter().find(|(other, _)| *other == seq).map(|(_, at)| *at);
        let (Some(asked), true) = (asked, term >= self.term && self.state != Held::Exited) else { return };
        if term > self.term && matches!(self.state, Held::Until(_)) {
            // What runs here is of the former head.
            self.fence(now, actions);
        }
        self.term = term;
        self.asked.retain(|(other, _)| *other > seq);
        let end = (asked + ttl).saturating_sub(self.times.margin);
        if let Held::Fenced { kill_at: Some(_), .. } = self.state {
            // Ranks that do not stop are killed first, so that nothing goes on under a lease that it did not have.
            return;
        }
        if end > now {
            self.state = Held::Until(end);
        }
    }

    fn next(&self) -> Option<Duration> {
        let then = match self.state {
            Held::Until(end) => end,
            Held::Fenced { since, kill_at } => {
                let exit = since + self.times.alone_max;
                kill_at.map_or(exit, |at| at.min(exit))
            }
            Held::Exited => return None,
        };
        Some(then.min(self.renew_at))
    }
}

// === Head ===

/// What the head learns about leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadEvent {
    /// A node says that it is there.
    Joined {
        /// Which.
        node: NodeId,
        /// Larger after each start of its agent.
        incarnation: u64,
    },
    /// A node asks for its lease.
    Renew {
        /// Which.
        node: NodeId,
        /// Of the agent that asks.
        incarnation: u64,
        /// To be sent back.
        seq: u64,
    },
    /// The connection of a node is gone.
    Closed(NodeId),
    /// Time has passed.
    Tick,
}

/// What the head does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadAction {
    /// The node is in, with a lease.
    Admit {
        /// Which.
        node: NodeId,
        /// Whether it takes the place of an earlier start, whose ranks are gone with it.
        is_restart: bool,
    },
    /// Tell the node that it has a lease.
    Grant {
        /// Which.
        node: NodeId,
        /// As asked.
        seq: u64,
    },
    /// The one who asks is not the node, or not in.
    Refuse {
        /// Which.
        node: NodeId,
        /// Who asks.
        incarnation: u64,
        /// The one who counts, if any.
        have: Option<u64>,
    },
    /// The node did not ask for so long that it has stopped its ranks.
    Expired(NodeId),
}

/// The leases of all nodes, at the head.
#[derive(Clone, Debug)]
pub struct Leases {
    ttl: Duration,
    /// Highest incarnation of each node, and until when it has a lease.
    nodes: BTreeMap<NodeId, (u64, Option<Duration>)>,
    ends: super::timers::Timers<NodeId>,
}

impl Leases {
    /// Nobody is in.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, nodes: BTreeMap::new(), ends: Default::default() }
    }

    /// When the next lease ends.
    pub fn next(&self) -> Option<Duration> {
        self.ends.next()
    }

    /// Until when the node may compute at the latest.
    pub fn end(&self, node: NodeId) -> Option<Duration> {
        self.nodes.get(&node).and_then(|(_, end)| *end)
    }

    /// Whether this is the agent that counts and has a lease.
    pub fn is_present(&self, node: NodeId, incarnation: u64) -> bool {
        matches!(self.nodes.get(&node), Some((have, Some(_))) if *have == incarnation)
    }

    /// Takes an event and says what to do, in order.
    pub fn handle(&mut self, event: HeadEvent, now: Duration) -> Vec<HeadAction> {
        match event {
            HeadEvent::Joined { node, incarnation } => vec![self.join(node, incarnation, now)],
            HeadEvent::Renew { node, incarnation, seq } => {
                if self.is_present(node, incarnation) {
                    self.hold(node, incarnation, Some(now + self.ttl));
                    return vec![HeadAction::Grant { node, seq }];
                }
                let have = self.nodes.get(&node).map(|(have, _)| *have);
                vec![HeadAction::Refuse { node, incarnation, have }]
            }
            HeadEvent::Closed(node) => {
                if let Some((incarnation, _)) = self.nodes.get(&node).copied() {
                    self.hold(node, incarnation, None);
                }
                Vec::new()
            }
            HeadEvent::Tick => {
                let mut actions = Vec::new();
                while let Some(node) = self.ends.pop(now) {
                    if let Some((_, end)) = self.nodes.get_mut(&node) {
                        *end = None;
                    }
                    actions.push(HeadAction::Expired(node));
                }
                actions
            }
        }
    }

    fn join(&mut self, node: NodeId, incarnation: u64, now: Duration) -> HeadAction {
        let have = self.nodes.get(&node).map(|(have, _)| *have);
        if have.is_some_and(|have| have > incarnation) {
            return HeadAction::Refuse { node, incarnation, have };
        }
        self.hold(node, incarnation, Some(now + self.ttl));
        HeadAction::Admit { node, is_restart: have.is_some_and(|have| have < incarnation) }
    }

    fn hold(&mut self, node: NodeId, incarnation: u64, end: Option<Duration>) {
        self.nodes.insert(node, (incarnation, end));
        self.ends.set(node, end);
    }
}

/// Questions whose answers are still taken.
const ASKED_MAX: usize = 8;

#[cfg(test)]
mod tests;
