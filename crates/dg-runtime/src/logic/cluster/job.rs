//! One job over all its attempts.

use super::checkpoint::Checkpoints;
use super::epoch::{self, Cause, Epoch, EpochTimes, Order, State, Team};
use super::pace::Pace;
use super::placement::Kind;
use super::{ClientId, ModelHash, RankId, Stamp};
use dg_plan::{Ask, Layout, Work};
use std::sync::Arc;
use std::time::Duration;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Who wants it.
    pub client: ClientId,
    /// Larger is sooner.
    pub priority: u8,
    /// With which model.
    pub model: ModelHash,
    /// On which kind of ranks; absent, on CUDA devices if there are any.
    pub kind: Option<Kind>,
    /// Denoising steps.
    pub steps: u32,
    /// Fewest ranks that may do it.
    pub ranks_min: usize,
    /// Most ranks that it gets.
    pub ranks_max: usize,
    /// What a planner that searches goes by.
    pub work: Option<Arc<Work>>,
    /// The layout that is asked for; absent, any.
    pub ask: Option<Arc<Ask>>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With its pictures.
    Done,
    /// Somebody cancelled it.
    Cancelled,
    /// For good.
    Failed(Failure),
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Attempts that brought it no further: the last one ended for this.
    NoProgress {
        /// With the rank, its node and its last log lines.
        cause: Cause,
        /// Steps that were done.
        step: u32,
        /// Attempts in all.
        epochs: u32,
    },
    /// No layout needs little enough memory.
    Memory {
        /// Which rank ran out of it.
        rank: RankId,
        /// Bytes that it needed.
        need: u64,
        /// Bytes that were free, if its device told.
        free: Option<u64>,
    },
    /// There were too few ranks for too long.
    NoRanks,
}

/// One attempt that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number.
    pub epoch: Stamp,
    /// Steps that were done before it.
    pub from_step: u32,
    /// Steps that were done after it.
    pub to_step: u32,
}

/// Predicted times until a job is done that has lost ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// With the lost ranks started anew.
    pub respawn: Option<Duration>,
    /// Of it, until they are there.
    pub respawn_wait: Duration,
    /// On what is left.
    pub replan: Option<Duration>,
}

/// What a job was about to do when it lost ranks.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Its ranks that are left.
    pub left: Vec<RankId>,
    /// Those that are not.
    pub lost: Vec<RankId>,
    /// Its degrees.
    pub layout: Layout,
    /// Steps that are still to be made.
    pub steps_left: u32,
    /// What a step took, if that is known.
    pub step: Option<Duration>,
}

/// What happens to a job.
#[derive(Clone, Debug)]
pub enum Event {
    /// Ranks are there for it: they are told to get ready as this attempt.
    Place(Stamp, Team, u64),
    /// Something of this attempt.
    Epoch(Stamp, epoch::Event),
    /// A rank that it waits for is back; if it is the last one, this attempt begins.
    Back(Stamp, RankId),
    /// No layout fits into the memory that it may use.
    NoLayout,
    /// Somebody cancels it.
    Cancel,
    /// Time has passed.
    Tick,
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell a rank.
    Send(RankId, Stamp, Order),
    /// The rank is no longer the job's.
    Release(RankId, State),
    /// The attempt goes on after so many steps that were done before.
    Resumed(Stamp, u32),
    /// Latents after this step are complete.
    Kept(Stamp, u32),
    /// It keeps what it has and waits for this rank.
    Await(RankId),
    /// The rank's process has to be started anew.
    Replace(RankId),
    /// It waits for ranks again.
    Requeue,
    /// It is over.
    End(End),
}

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is wanted.
    pub spec: JobSpec,
    /// What a rank may use: less after each time that it was not enough.
    pub memory_bytes: Option<u64>,
    state: Life,
    checkpoints: Checkpoints,
    attempts: Vec<Attempt>,
    epochs: u32,
    /// Attempts in a row that completed no checkpoint.
    barren: u32,
    /// Whether the present attempt has completed one.
    has_progressed: bool,
    pace: Pace,
    times: EpochTimes,
    patience: Duration,
    /// Bytes that the present layout needs.
    planned_bytes: u64,
    /// The rank whose memory was not enough, and what it needed.
    oom: Option<(RankId, u64, Option<u64>)>,
}

#[derive(Clone, Debug)]
enum Life {
    Waiting { since: Duration },
    Active(Box<Epoch>),
    Mending { team: Team, missing: Vec<RankId>, until: Duration },
    Ended,
}

impl Job {
    /// A job that waits for ranks; `patience` is how long.
    pub fn new(spec: JobSpec, times: EpochTimes, patience: Duration, now: Duration) -> Self {
        Self {
            spec,
            memory_bytes: None,
            state: Life::Waiting { since: now },
            checkpoints: Checkpoints::default(),
            attempts: Vec::new(),
            epochs: 0,
            barren: 0,
            has_progressed: false,
            pace: Pace::default(),
            times,
            patience,
            planned_bytes: 0,
            oom: None,
        }
    }

    /// Its present attempt.
    pub fn epoch(&self) -> Option<&Epoch> {
        match &self.state {
            Life::Active(epoch) => Some(epoch),
            Life::Waiting { .. } | Life::Mending { .. } | Life::Ended => None,
        }
    }

    /// Whether it waits for ranks.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, Life::Waiting { .. })
    }

    /// Whether it waits for ranks that are started anew.
    pub fn is_mending(&self) -> bool {
        matches!(self.state, Life::Mending { .. })
    }

    /// The attempts that were made, the latest ones if there were many.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Whether it has lost ranks before: it then goes on with fewer than it asked for.
    pub fn has_begun(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Its latents.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// How long its ranks may take to stop, as far as its steps tell.
    pub fn stop_time(&self) -> Duration {
        self.epoch().map_or(&self.pace, |epoch| &epoch.pace).stop_time()
    }

    /// When to look again.
    pub fn next(&self) -> Option<Duration> {
        match &self.state {
            Life::Waiting { since } => Some(*since + self.patience),
            Life::Active(epoch) => Some(epoch.next()),
            Life::Mending { until, .. } => Some(*until),
            Life::Ended => None,
        }
    }

    /// Takes an event and says what to do, in order. `prices` predicts, when ranks are lost.
    pub fn handle(&mut self, event: Event, now: Duration, prices: &dyn Fn(&Loss) -> Prices) -> Vec<Action> {
        match event {
            Event::Place(stamp, team, bytes) => {
                if !self.is_waiting() {
                    return Vec::new();
                }
                self.planned_bytes = bytes;
                self.begin(stamp, team, now)
            }
            Event::Epoch(stamp, event) => self.on_epoch(stamp, event, now, prices),
            Event::Back(stamp, rank) => self.back(stamp, rank, now),
            Event::NoLayout => match self.oom {
                Some((rank, need, free)) if self.is_waiting() => {
                    vec![self.end(End::Failed(Failure::Memory { rank, need, free }))]
                }
                _ => Vec::new(),
            },
            Event::Cancel => self.cancel(now, prices),
            Event::Tick => self.tick(now, prices),
        }
    }

    fn begin(&mut self, stamp: Stamp, team: Team, now: Duration) -> Vec<Action> {
        let from = self.checkpoints.newest().cloned();
        let from_step = from.as_ref().map_or(0, |c| c.step);
        let pace = std::mem::take(&mut self.pace);
        let (epoch, sends) = Epoch::begin(stamp, team, from, pace, self.times, now);
        self.state = Life::Active(Box::new(epoch));
        self.epochs += 1;
        self.has_progressed = false;
        if self.attempts.len() >= ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push(Attempt { epoch: stamp, from_step, to_step: from_step });
        let resumed = (from_step > 0).then_some(Action::Resumed(stamp, from_step));
        resumed.into_iter().chain(sends.into_iter().filter_map(|send| self.send(stamp, send))).collect()
    }

    fn send(&self, stamp: Stamp, action: epoch::Action) -> Option<Action> {
        match action {
            epoch::Action::Send(rank, order) => Some(Action::Send(rank, stamp, order)),
            epoch::Action::Keep(..) | epoch::Action::Done | epoch::Action::Over(_) => None,
        }
    }

    fn on_epoch(
        &mut self,
        stamp: Stamp,
        event: epoch::Event,
        now: Duration,
        prices: &dyn Fn(&Loss) -> Prices,
    ) -> Vec<Action> {
        let Life::Active(epoch) = &mut self.state else { return Vec::new() };
        let mut actions = Vec::new();
        for action in epoch.handle(stamp, event, now) {
            match action {
                epoch::Action::Send(rank, order) => actions.push(Action::Send(rank, stamp, order)),
                epoch::Action::Keep(rank, step, at) => {
                    let Life::Active(epoch) = &self.state else { break };
                    let kept = self.checkpoints.part(stamp, &epoch.team.members, rank, step, at);
                    if let Some(step) = kept {
                        self.has_progressed = true;
                        actions.push(Action::Kept(stamp, step));
                    }
                }
                epoch::Action::Done => {
                    self.close();
                    actions.extend(self.release(State::Stopped));
                    actions.push(self.end(End::Done));
                    break;
                }
                epoch::Action::Over(cause) => {
                    actions.extend(self.over(cause, now, prices));
                    break;
                }
            }
        }
        actions
    }

    /// Notes what the attempt has reached.
    fn close(&mut self) {
        let Life::Active(epoch) = &mut self.state else { return };
        self.pace = std::mem::take(&mut epoch.pace);
        if let Some(last) = self.attempts.last_mut() {
            last.to_step = epoch.step;
        }
        self.checkpoints.end_epoch();
    }

    /// Gives all ranks of the attempt back; all as `state`, if they have answered.
    fn release(&self, state: State) -> Vec<Action> {
        let Some(epoch) = self.epoch() else { return Vec::new() };
        let state_of = |rank| match epoch.state(rank) {
            Some(State::Answered) => state,
            Some(other) => other,
            None => State::Gone,
        };
        epoch.team.members.iter().map(|rank| Action::Release(*rank, state_of(*rank))).collect()
    }

    fn end(&mut self, end: End) -> Action {
        self.state = Life::Ended;
        Action::End(end)
    }

    fn over(&mut self, cause: Cause, now: Duration, prices: &dyn Fn(&Loss) -> Prices) -> Vec<Action> {
        self.close();
        let Life::Active(epoch) = std::mem::replace(&mut self.state, Life::Ended) else { return Vec::new() };
        let (step, team) = (epoch.step, (*epoch.team).clone());
        // In a collective all ranks stand still together: it is one that does not answer which hangs, and if it is not
        // alone, the one that was behind.
        let silent = team.members.iter().filter(|rank| epoch.state(**rank) == Some(State::Working)).copied();
        let silent: Vec<RankId> = silent.collect();
        let cause = match (cause, silent.as_slice()) {
            (Cause::Hung(named), [first, ..]) if !silent.contains(&named) => Cause::Hung(*first),
            (cause, _) => cause,
        };
        let (left, lost): (Vec<_>, Vec<_>) =
            team.members.iter().partition(|rank| epoch.state(**rank) == Some(State::Stopped));
        self.state = Life::Active(epoch);
        self.barren = if self.has_progressed { 0 } else { self.barren + 1 };
        let replaced = match &cause {
            Cause::DeviceLost(rank) => Some(Action::Replace(*rank)),
            // Among several it is not known whose fault it is: they are left behind, and none of them is nearer to being
            // taken for broken.
            Cause::Hung(rank) if silent.len() == 1 => Some(Action::Replace(*rank)),
            _ => None,
        };
        if let Cause::Oom(rank, need, free) = cause {
            self.oom = Some((rank, need, free));
            // what the device told, or a tenth less than before
            let less = self.planned_bytes / 10 * 9;
            self.memory_bytes = Some(free.map_or(less, |free| free.min(less)));
        }
        let end = match cause {
            Cause::Cancelled => Some(End::Cancelled),
            cause if self.barren >= self.times.barren_max => {
                Some(End::Failed(Failure::NoProgress { cause, step, epochs: self.epochs }))
            }
            _ => None,
        };
        if let Some(end) = end {
            let mut actions = self.release(State::Stopped);
            actions.extend(replaced);
            actions.push(self.end(end));
            return actions;
        }
        let done = self.checkpoints.newest().map_or(0, |c| c.step);
        let steps_left = self.spec.steps - done.min(self.spec.steps);
        let loss = Loss { left, lost, layout: team.layout, steps_left, step: self.pace.median() };
        let prices =
            if loss.lost.is_empty() || replaced.is_some() { Prices::default() } else { prices(&loss) };
        if is_respawn_sooner(&prices) {
            return self.mend(team, loss, prices.respawn_wait, now);
        }
        let mut actions = self.release(State::Stopped);
        actions.extend(replaced);
        self.state = Life::Waiting { since: now };
        actions.push(Action::Requeue);
        actions
    }

    /// Keeps the ranks that are left and waits for the others.
    fn mend(&mut self, team: Team, loss: Loss, wait: Duration, now: Duration) -> Vec<Action> {
        let gone = self.release(State::Stopped).into_iter();
        let gone = gone.filter(|action| !matches!(action, Action::Release(_, State::Stopped)));
        let actions = gone.chain(loss.lost.iter().map(|rank| Action::Await(*rank))).collect();
        self.state = Life::Mending { team, missing: loss.lost, until: now + wait * 2 };
        actions
    }

    fn back(&mut self, stamp: Stamp, rank: RankId, now: Duration) -> Vec<Action> {
        let Life::Mending { team, missing, .. } = &mut self.state else { return Vec::new() };
        missing.retain(|other| *other != rank);
        if !missing.is_empty() {
            return Vec::new();
        }
        let team = team.clone();
        self.begin(stamp, team, now)
    }

    /// A kept rank is gone too, or the others take too long: what is kept is given back.
    fn give_up_mending(&mut self, gone: Option<RankId>, now: Duration) -> Vec<Action> {
        let Life::Mending { team, missing, .. } = &self.state else { return Vec::new() };
        let kept = team.members.iter().filter(|rank| !missing.contains(rank) && gone != Some(**rank));
        let mut actions: Vec<_> = kept.map(|rank| Action::Release(*rank, State::Stopped)).collect();
        self.state = Life::Waiting { since: now };
        actions.push(Action::Requeue);
        actions
    }

    /// A rank that it keeps while it waits for others is gone.
    pub fn handle_kept_lost(&mut self, rank: RankId, now: Duration) -> Vec<Action> {
        self.give_up_mending(Some(rank), now)
    }

    fn cancel(&mut self, now: Duration, prices: &dyn Fn(&Loss) -> Prices) -> Vec<Action> {
        match &self.state {
            Life::Ended => Vec::new(),
            Life::Active(epoch) => {
                let stamp = epoch.stamp;
                self.on_epoch(stamp, epoch::Event::Abort(Cause::Cancelled), now, prices)
            }
            Life::Waiting { .. } => vec![self.end(End::Cancelled)],
            Life::Mending { .. } => {
                let mut actions = self.give_up_mending(None, now);
                actions.pop();
                actions.push(self.end(End::Cancelled));
                actions
            }
        }
    }

    fn tick(&mut self, now: Duration, prices: &dyn Fn(&Loss) -> Prices) -> Vec<Action> {
        match &self.state {
            Life::Waiting { since } if now >= *since + self.patience => {
                vec![self.end(End::Failed(Failure::NoRanks))]
            }
            Life::Mending { until, .. } if now >= *until => self.give_up_mending(None, now),
            Life::Active(epoch) => {
                let stamp = epoch.stamp;
                self.on_epoch(stamp, epoch::Event::Tick, now, prices)
            }
            Life::Waiting { .. } | Life::Mending { .. } | Life::Ended => Vec::new(),
        }
    }
}

/// If both take as long, what is left is used: nothing has to work for that.
fn is_respawn_sooner(prices: &Prices) -> bool {
    match (prices.respawn, prices.replan) {
        (Some(respawn), Some(replan)) => respawn < replan,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// Attempts that are remembered.
const ATTEMPTS_MAX: usize = 64;

#[cfg(test)]
mod tests;
