//! One attempt at a job on a fixed set of ranks.
//!
//! Preparing → Grouping → Running → done, and from each of them → Aborting → over. What belongs to another attempt is
//! dropped.

use super::checkpoint::{Checkpoint, Reference};
use super::pace::Pace;
use super::{JobId, RankId, Stamp};
use dg_plan::Layout;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What the head wants of a rank.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Get ready: load weights, compare hashes, allocate.
    Prepare(Arc<Team>),
    /// Find the other ranks.
    InitGroup,
    /// Compute.
    Run {
        /// Steps that are done.
        from_step: u32,
        /// Their result, unless it is 0.
        checkpoint: Option<Checkpoint>,
    },
    /// Stop, and take nothing of this attempt or an older one any more.
    Abort,
}

/// The ranks of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Team {
    /// What they compute.
    pub job: JobId,
    /// In the order of the layout.
    pub members: Vec<RankId>,
    /// Their degrees.
    pub layout: Layout,
    /// Denoising steps of the job.
    pub steps: u32,
}

/// What a rank says, always with the epoch that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    /// Ready.
    Prepared,
    /// The group stands.
    Grouped,
    /// So many steps are done.
    Progress(u32),
    /// It computes: layers are done, in a step or before the first or after the last.
    Alive,
    /// Latents after a step are kept.
    Checkpoint(u32, Reference),
    /// It is done with its part.
    Done,
    /// It has stopped, as it was told.
    Stopped,
    /// It cannot go on.
    Failed(Trouble),
}

/// Why a rank cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// Memory is not enough.
    Oom {
        /// Bytes that were needed.
        need: u64,
        /// Bytes that were free before, if the device told.
        free: Option<u64>,
    },
    /// The device is gone; the process has to be started anew.
    DeviceLost,
    /// Another rank is gone.
    PeerLost,
    /// Another attempt is newer.
    Fenced,
    /// An error of its own.
    Error(String),
}

// === Head ===

/// Why an attempt ends early; those that explain more stand first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Somebody cancelled the job.
    Cancelled,
    /// The memory of a rank is not enough: what it needs, and what was free if that is known.
    Oom(RankId, u64, Option<u64>),
    /// The process of a rank ended, with its last log lines.
    Exited(RankId, Vec<String>),
    /// The device of a rank is gone.
    DeviceLost(RankId),
    /// A rank's own error.
    Error(RankId, String),
    /// The node of a rank is gone.
    NodeLost(RankId),
    /// A rank makes no progress.
    Hung(RankId),
    /// A rank does not get ready.
    Silent(RankId),
    /// A rank has seen another one go, and nobody knows why.
    PeerLost(RankId),
}

impl Cause {
    /// Whose fault it is.
    pub fn rank(&self) -> Option<RankId> {
        match self {
            Self::Cancelled => None,
            Self::Oom(rank, ..) | Self::Exited(rank, _) | Self::DeviceLost(rank) | Self::Error(rank, _) => {
                Some(*rank)
            }
            Self::NodeLost(rank) | Self::Hung(rank) | Self::Silent(rank) | Self::PeerLost(rank) => {
                Some(*rank)
            }
        }
    }
}

/// Times of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochTimes {
    /// Orders without an answer are repeated this often.
    pub resend: Duration,
    /// Longest preparation.
    pub prepare_max: Duration,
    /// Longest forming of a group.
    pub group_max: Duration,
    /// Silence that counts as hanging before an attempt's first step and after the last, where a GPU's kernels may be
    /// compiled.
    pub quiet_first: Duration,
    /// Shortest silence that counts as hanging between steps.
    pub quiet_min: Duration,
    /// Median steps of silence that count as hanging.
    pub quiet_steps: u32,
    /// Ranks that do not answer an abort for so long, or for as long as they may take to stop, are given up.
    pub abort_grace: Duration,
    /// Attempts in a row without a checkpoint that are made.
    pub barren_max: u32,
}

impl Default for EpochTimes {
    fn default() -> Self {
        Self {
            resend: Duration::from_millis(500),
            prepare_max: Duration::from_secs(600),
            group_max: Duration::from_secs(30),
            quiet_first: Duration::from_secs(120),
            quiet_min: Duration::from_secs(10),
            quiet_steps: 3,
            abort_grace: Duration::from_millis(300),
            barren_max: 3,
        }
    }
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Ranks get ready.
    Preparing,
    /// They find each other.
    Grouping,
    /// They compute.
    Running,
    /// They are stopping.
    Aborting,
}

/// What happens to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A rank says something.
    Said(RankId, Say),
    /// The process of a rank, or all contact with it, is gone.
    Gone(RankId, Cause),
    /// It has to end.
    Abort(Cause),
    /// Time has passed.
    Tick,
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell a rank.
    Send(RankId, Order),
    /// A rank has kept its latents after a step.
    Keep(RankId, u32, Reference),
    /// All ranks are done.
    Done,
    /// All ranks have stopped or are given up.
    Over(Cause),
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Its number.
    pub stamp: Stamp,
    /// Its ranks.
    pub team: Arc<Team>,
    /// How far it is.
    pub phase: Phase,
    /// Durations of steps, from earlier attempts too.
    pub pace: Pace,
    /// Steps that all ranks have done.
    pub step: u32,
    times: EpochTimes,
    run: Order,
    members: Vec<Member>,
    places: HashMap<RankId, usize>,
    /// Members that have not answered in this phase.
    waiting: usize,
    /// Members that have done no more steps than the slowest.
    behind: usize,
    /// Steps that were done before it.
    from_step: u32,
    /// Since when there is nothing new.
    since: Duration,
    /// When all had done the last step.
    stepped: Duration,
    resend_at: Duration,
    cause: Option<Cause>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    state: State,
    step: u32,
}

/// What a rank of an attempt is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was told.
    Working,
    /// It has answered in this phase.
    Answered,
    /// It has stopped, and can be used again.
    Stopped,
    /// It has ended, or contact with it has.
    Gone,
}

impl Epoch {
    /// Begins an attempt that will run from the checkpoint.
    pub fn begin(
        stamp: Stamp,
        team: Team,
        checkpoint: Option<Checkpoint>,
        pace: Pace,
        times: EpochTimes,
        now: Duration,
    ) -> (Self, Vec<Action>) {
        let step = checkpoint.as_ref().map_or(0, |c| c.step);
        let places = team.members.iter().enumerate().map(|(place, rank)| (*rank, place)).collect();
        let members = vec![Member { state: State::Working, step }; team.members.len()];
        let mut epoch = Self {
            stamp,
            team: Arc::new(team),
            phase: Phase::Preparing,
            pace,
            step,
            times,
            run: Order::Run { from_step: step, checkpoint },
            waiting: members.len(),
            behind: members.len(),
            members,
            places,
            from_step: step,
            since: now,
            stepped: now,
            resend_at: now,
            cause: None,
        };
        let actions = epoch.send(now);
        (epoch, actions)
    }

    /// What a rank is doing, if it is one of this attempt.
    pub fn state(&self, rank: RankId) -> Option<State> {
        self.places.get(&rank).map(|place| self.members[*place].state)
    }

    /// When to look again.
    pub fn next(&self) -> Duration {
        self.resend_at.min(self.since + self.patience())
    }

    /// Takes what happened to the attempt `stamp`; nothing follows from what happened to another one.
    pub fn handle(&mut self, stamp: Stamp, event: Event, now: Duration) -> Vec<Action> {
        if stamp != self.stamp {
            return Vec::new();
        }
        match event {
            Event::Said(rank, say) => match self.places.get(&rank) {
                Some(place) => self.said(*place, rank, say, now),
                None => Vec::new(),
            },
            Event::Gone(rank, cause) => {
                let Some(place) = self.places.get(&rank).copied() else { return Vec::new() };
                self.settle(place, State::Gone);
                self.abort(cause, now)
            }
            Event::Abort(cause) => self.abort(cause, now),
            Event::Tick => self.tick(now),
        }
    }

    fn said(&mut self, place: usize, rank: RankId, say: Say, now: Duration) -> Vec<Action> {
        let is_live = matches!(self.members[place].state, State::Working | State::Answered);
        match (say, self.phase) {
            _ if !is_live => Vec::new(),
            (Say::Prepared, Phase::Preparing) | (Say::Grouped, Phase::Grouping) => {
                self.settle(place, State::Answered);
                self.advance(now)
            }
            (Say::Progress(step), Phase::Running) => {
                self.progress(place, step, now);
                Vec::new()
            }
            (Say::Alive, Phase::Running) => {
                self.since = now;
                Vec::new()
            }
            (Say::Checkpoint(step, at), Phase::Running) => vec![Action::Keep(rank, step, at)],
            (Say::Done, Phase::Running) => {
                self.settle(place, State::Answered);
                self.advance(now)
            }
            (Say::Done | Say::Stopped, Phase::Aborting) => {
                self.settle(place, State::Stopped);
                self.over()
            }
            (Say::Stopped, _) => {
                // Not through this head's abort: its node has fenced it.
                self.settle(place, State::Stopped);
                self.abort(Cause::NodeLost(rank), now)
            }
            (Say::Failed(trouble), _) => {
                self.settle(place, State::Stopped);
                self.abort(cause_of(trouble, rank), now)
            }
            (Say::Prepared | Say::Grouped | Say::Progress(_) | Say::Alive, _) => Vec::new(),
            (Say::Checkpoint(..) | Say::Done, _) => Vec::new(),
        }
    }

    fn settle(&mut self, place: usize, state: State) {
        let member = &mut self.members[place];
        if member.state == State::Working {
            self.waiting -= 1;
        }
        member.state = state;
    }

    /// To the next phase, if all have answered.
    fn advance(&mut self, now: Duration) -> Vec<Action> {
        if self.waiting > 0 {
            return Vec::new();
        }
        self.phase = match self.phase {
            Phase::Preparing => Phase::Grouping,
            Phase::Grouping => Phase::Running,
            Phase::Running | Phase::Aborting => return vec![Action::Done],
        };
        for member in &mut self.members {
            member.state = State::Working;
        }
        self.waiting = self.members.len();
        (self.since, self.stepped) = (now, now);
        self.send(now)
    }

    /// The slowest rank counts.
    fn progress(&mut self, place: usize, step: u32, now: Duration) {
        let before = self.members[place].step;
        self.members[place].step = before.max(step);
        if before > self.step || step <= self.step {
            return;
        }
        self.behind -= 1;
        if self.behind > 0 {
            return;
        }
        let slowest = self.members.iter().map(|m| m.step).min().unwrap_or(self.step);
        self.pace.step((now - self.stepped) / (slowest - self.step).max(1));
        self.step = slowest;
        self.behind = self.members.iter().filter(|m| m.step == slowest).count();
        (self.since, self.stepped) = (now, now);
    }

    fn abort(&mut self, cause: Cause, now: Duration) -> Vec<Action> {
        if self.cause.as_ref().is_none_or(|known| cause < *known) {
            self.cause = Some(cause);
        }
        let mut actions = Vec::new();
        if self.phase != Phase::Aborting {
            self.phase = Phase::Aborting;
            for member in self.members.iter_mut().filter(|m| m.state == State::Answered) {
                member.state = State::Working;
                self.waiting += 1;
            }
            self.since = now;
            actions = self.send(now);
        }
        actions.extend(self.over());
        actions
    }

    fn over(&self) -> Vec<Action> {
        match &self.cause {
            Some(cause) if self.waiting == 0 => vec![Action::Over(cause.clone())],
            _ => Vec::new(),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        if now >= self.since + self.patience() {
            let slow = (0..self.members.len()).filter(|place| self.members[*place].state == State::Working);
            let slow =
                slow.min_by_key(|place| self.members[*place].step).map(|place| self.team.members[place]);
            return match (self.phase, slow, &self.cause) {
                (Phase::Aborting, _, Some(cause)) => vec![Action::Over(cause.clone())],
                (Phase::Running, Some(rank), _) => self.abort(Cause::Hung(rank), now),
                (_, Some(rank), _) => self.abort(Cause::Silent(rank), now),
                (_, None, _) => Vec::new(),
            };
        }
        if now >= self.resend_at { self.send(now) } else { Vec::new() }
    }

    /// The order of this phase to all that have not answered.
    fn send(&mut self, now: Duration) -> Vec<Action> {
        let resend = self.times.resend;
        self.resend_at =
            now + if self.phase == Phase::Aborting { resend.min(self.grace() / 3) } else { resend };
        let order = match self.phase {
            Phase::Preparing => Order::Prepare(self.team.clone()),
            Phase::Grouping => Order::InitGroup,
            Phase::Running => self.run.clone(),
            Phase::Aborting => Order::Abort,
        };
        let ranks = self.team.members.iter().zip(&self.members);
        let ranks = ranks.filter(|(_, member)| member.state == State::Working);
        ranks.map(|(rank, _)| Action::Send(*rank, order.clone())).collect()
    }

    /// How long there may be nothing new.
    fn patience(&self) -> Duration {
        let is_between_steps = self.step > self.from_step && self.step < self.team.steps;
        match (self.phase, self.pace.median().filter(|_| is_between_steps)) {
            (Phase::Preparing, _) => self.times.prepare_max,
            (Phase::Grouping, _) => self.times.group_max,
            (Phase::Running, Some(median)) => self.times.quiet_min.max(median * self.times.quiet_steps),
            (Phase::Running, None) => self.times.quiet_first.max(self.times.quiet_min),
            (Phase::Aborting, _) => self.grace(),
        }
    }

    /// How long ranks have to stop.
    fn grace(&self) -> Duration {
        self.times.abort_grace.max(self.pace.stop_time())
    }
}

fn cause_of(trouble: Trouble, rank: RankId) -> Cause {
    match trouble {
        Trouble::Oom { need, free } => Cause::Oom(rank, need, free),
        Trouble::DeviceLost => Cause::DeviceLost(rank),
        Trouble::PeerLost | Trouble::Fenced => Cause::PeerLost(rank),
        Trouble::Error(text) => Cause::Error(rank, text),
    }
}

#[cfg(test)]
mod tests;
