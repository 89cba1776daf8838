//! Models of agents and ranks: what the programs on a node do, without anything that computes.

use dg_runtime::logic::cluster::epoch::{Order, Say, Team, Trouble};
use dg_runtime::logic::cluster::fence::{Fence, Verdict};
use dg_runtime::logic::cluster::lease::{Keeper, LeaseTimes};
use dg_runtime::logic::cluster::{RankId, Stamp};
use std::sync::Arc;
use std::time::Duration;

/// An agent, or the place where one may be started.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) is_alive: bool,
    pub(crate) incarnation: u64,
    /// Its clock runs this many thousandths as fast as the head's, and began elsewhere.
    rate: u64,
    offset: Duration,
    pub(crate) keeper: Keeper,
    /// Since when it has heard nothing of the head.
    pub(crate) heard: Duration,
    pub(crate) is_welcome: bool,
    pub(crate) ranks: Vec<Rank>,
}

/// A process, or the place for one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rank {
    /// The process that runs.
    pub(crate) process: Option<Stamp>,
    /// The newest one that was ever asked for.
    pub(crate) newest: Option<Stamp>,
    pub(crate) fence: Fence,
    pub(crate) work: Option<Work>,
    pub(crate) is_hung: bool,
    /// What goes wrong at the next step.
    pub(crate) trouble: Option<Trouble>,
    /// Grows whenever what was scheduled for it is void.
    pub(crate) version: u64,
}

/// What a rank is doing.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) epoch: Stamp,
    pub(crate) team: Arc<Team>,
    pub(crate) stage: Stage,
    pub(crate) step: u32,
    /// It is to stop after the step.
    pub(crate) is_stopping: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    Loading,
    Ready,
    Computing,
    Done,
    Broken(Trouble),
}

/// What a rank does with an order.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply {
    Say(Say),
    /// It loads, and says so later.
    Load,
    /// It computes.
    Compute,
    Nothing,
}

impl Agent {
    pub(crate) fn new(slots: u16, rate: u64, offset: Duration, times: LeaseTimes) -> Self {
        Self {
            is_alive: true,
            incarnation: 1,
            rate,
            offset,
            keeper: Keeper::new(times, offset),
            heard: Duration::ZERO,
            is_welcome: false,
            ranks: vec![Rank::default(); usize::from(slots)],
        }
    }

    /// What its clock shows.
    pub(crate) fn clock(&self, now: Duration) -> Duration {
        self.offset + now * self.rate as u32 / 1000
    }

    /// When its clock will show this.
    pub(crate) fn when(&self, clock: Duration) -> Duration {
        clock.saturating_sub(self.offset) * 1000 / self.rate as u32 + Duration::from_micros(1)
    }

    /// All processes end with the agent.
    pub(crate) fn kill(&mut self) {
        self.is_alive = false;
        for rank in &mut self.ranks {
            rank.kill();
        }
    }

    pub(crate) fn restart(&mut self, now: Duration, times: LeaseTimes) {
        self.is_alive = true;
        self.incarnation += 1;
        self.is_welcome = false;
        self.heard = now;
        self.keeper = Keeper::new(times, self.clock(now));
        for rank in &mut self.ranks {
            rank.newest = None;
        }
    }

    pub(crate) fn running(&self) -> Vec<(u16, Stamp)> {
        let ranks = self.ranks.iter().enumerate();
        ranks.filter_map(|(slot, rank)| Some((slot as u16, rank.process?))).collect()
    }
}

impl Rank {
    pub(crate) fn kill(&mut self) {
        *self = Self { newest: self.newest, version: self.version + 1, ..Self::default() };
    }

    pub(crate) fn begin(&mut self, start: Stamp) {
        self.kill();
        self.process = Some(start);
    }

    pub(crate) fn is_computing(&self) -> bool {
        matches!(&self.work, Some(work) if work.stage == Stage::Computing)
    }

    /// The node's lease is over.
    pub(crate) fn close(&mut self) {
        self.fence.close();
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(work) = &mut self.work {
            if work.stage == Stage::Computing {
                work.is_stopping = true;
            } else {
                self.work = None;
                self.version += 1;
            }
        }
    }

    /// What it does with an order; `checks` can be switched off to see whether that is found out.
    pub(crate) fn order(&mut self, epoch: Stamp, order: &Order, checks: bool) -> Reply {
        if self.is_hung {
            return Reply::Nothing;
        }
        let is_other = self.work.as_ref().is_none_or(|work| work.epoch != epoch);
        let verdict = match self.fence.admit(epoch, order) {
            Verdict::Fenced(_) | Verdict::Over if !checks && is_other => Verdict::New,
            verdict => verdict,
        };
        match (verdict, order) {
            (Verdict::New, Order::Prepare(team)) => {
                let team = team.clone();
                self.version += 1;
                self.work = Some(Work { epoch, team, stage: Stage::Loading, step: 0, is_stopping: false });
                Reply::Load
            }
            (Verdict::Over, _) => {
                self.stop();
                if self.work.is_some() { Reply::Nothing } else { Reply::Say(Say::Stopped) }
            }
            (Verdict::Fenced(_), _) => Reply::Say(Say::Failed(Trouble::Fenced)),
            (Verdict::Again | Verdict::New, _) => self.again(order),
        }
    }

    fn again(&mut self, order: &Order) -> Reply {
        let Some(work) = &mut self.work else { return Reply::Nothing };
        match (&work.stage, order) {
            (Stage::Broken(trouble), _) => Reply::Say(Say::Failed(trouble.clone())),
            (Stage::Done, Order::Run { .. }) => Reply::Say(Say::Done),
            (Stage::Ready, Order::Run { from_step, .. }) => {
                (work.stage, work.step) = (Stage::Computing, *from_step);
                Reply::Compute
            }
            (Stage::Computing, Order::Run { .. }) => Reply::Say(Say::Progress(work.step)),
            (Stage::Ready, Order::Prepare(_)) => Reply::Say(Say::Prepared),
            (Stage::Ready, Order::InitGroup) => Reply::Say(Say::Grouped),
            _ => Reply::Nothing,
        }
    }
}

/// What a rank learns of its peers at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    Along,
    Behind,
    Gone,
}

/// How the others of the team are doing, seen from `me`.
pub(crate) fn peers(agents: &[Agent], me: RankId, work: &Work, reaches: &dyn Fn(RankId) -> bool) -> Peers {
    let mut found = Peers::Along;
    for peer in work.team.members.iter().filter(|peer| **peer != me) {
        let there = &agents[peer.node.0 as usize].ranks[usize::from(peer.slot)];
        let theirs = there.work.as_ref().filter(|theirs| theirs.epoch == work.epoch);
        match theirs {
            None => return Peers::Gone,
            Some(theirs) if theirs.is_stopping || matches!(theirs.stage, Stage::Broken(_)) => {
                return Peers::Gone;
            }
            Some(_) if !reaches(*peer) => found = Peers::Behind,
            Some(theirs) if theirs.stage != Stage::Done && theirs.step < work.step => found = Peers::Behind,
            Some(_) => {}
        }
    }
    found
}
