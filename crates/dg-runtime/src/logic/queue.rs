//! Which job runs when and where, and what happens when a worker dies.

use super::replica::Replica;
use std::collections::VecDeque;

/// Identifies a job within one cluster. Later jobs have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// As users see it: of a head, its incarnation before the number.
impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0 >> 32, self.0 & 0xffff_ffff) {
            (0, number) => write!(f, "{number}"),
            (term, number) => write!(f, "{term}-{number}"),
        }
    }
}

/// As it is shown.
impl std::str::FromStr for JobId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (term, number) = text.split_once('-').unwrap_or(("0", text));
        Ok(Self(u64::from(term.parse::<u32>()?) << 32 | u64::from(number.parse::<u32>()?)))
    }
}

/// Jobs that may wait.
pub const WAITING_MAX: usize = 4096;
/// Losses in a row, without a job finished in between, before the cluster stops. A job that takes several ranks of
/// its replica along is one loss.
pub const LOSSES_MAX: u32 = 3;
/// Jobs that a replica has at a time: one whose pictures are decoded, and the one after it.
pub const IN_FLIGHT_MAX: usize = 2;

/// What happened. Ranks are counted over all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job was submitted.
    Submitted(JobId),
    /// The rank's worker has loaded its weights.
    Ready(usize),
    /// The job's latents are there: all ranks but the one that decodes are done with it.
    Denoised(JobId),
    /// The job has ended on all its ranks, with pictures or an error.
    Ended {
        /// Which.
        job: JobId,
        /// Whether it took one of its ranks along.
        has_lost: bool,
    },
    /// The job has ended on all its ranks because one of them was lost through another job.
    Orphaned(JobId),
    /// The rank's worker is gone.
    Lost(usize),
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give the job to the ranks of the replica.
    Start {
        /// Which.
        job: JobId,
        /// Where.
        replica: usize,
    },
    /// Tell the job's owner that too many wait.
    Refuse(JobId),
    /// Tell the job's owner that the cluster has stopped.
    Fail(JobId),
    /// Start a worker in place of the rank's lost one.
    Respawn(usize),
    /// Give up: what waits has failed.
    Stop,
}

/// All replicas and the jobs before them.
#[derive(Clone, Debug)]
pub struct Queue {
    /// In the order of their numbers.
    waiting: VecDeque<JobId>,
    replicas: Vec<Replica>,
    /// Ranks of a replica.
    ranks: usize,
    losses: u32,
    is_stopped: bool,
}

impl Queue {
    /// No rank is ready yet.
    pub fn new(replicas: usize, ranks: usize) -> Self {
        let replicas = vec![Replica::new(ranks); replicas];
        Self { waiting: VecDeque::new(), replicas, ranks: ranks.max(1), losses: 0, is_stopped: false }
    }

    /// Takes an event and says what to do, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Submitted(job) | Event::Orphaned(job) if self.is_stopped => vec![Action::Fail(job)],
            Event::Submitted(job) if self.waiting.len() >= WAITING_MAX => vec![Action::Refuse(job)],
            Event::Submitted(job) => self.enqueue(job),
            Event::Orphaned(job) => {
                self.remove(job);
                self.enqueue(job)
            }
            Event::Denoised(job) => {
                let _ = self.replicas.iter_mut().any(|r| r.denoised(job));
                self.next()
            }
            Event::Ended { job, has_lost } => {
                self.remove(job);
                if !has_lost {
                    self.losses = 0;
                }
                self.next()
            }
            Event::Ready(rank) => {
                if let Some(replica) = self.replicas.get_mut(rank / self.ranks) {
                    replica.ready(rank % self.ranks);
                }
                self.next()
            }
            Event::Lost(rank) => self.lost(rank),
        }
    }

    /// A job that comes back stands before those that were submitted after it.
    fn enqueue(&mut self, job: JobId) -> Vec<Action> {
        let at = self.waiting.iter().rposition(|earlier| *earlier < job).map_or(0, |at| at + 1);
        self.waiting.insert(at, job);
        self.next()
    }

    fn remove(&mut self, job: JobId) {
        let _ = self.replicas.iter_mut().any(|r| r.ended(job));
    }

    /// Starts what can be started, in order: on the first replica that is idle, else on the first that decodes.
    fn next(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while !self.is_stopped && !self.waiting.is_empty() {
            let rooms = self.replicas.iter().enumerate().filter_map(|(i, r)| Some((r.room()?, i)));
            let Some((_, replica)) = rooms.min() else { break };
            let Some(job) = self.waiting.pop_front() else { break };
            self.replicas[replica].start(job);
            actions.push(Action::Start { job, replica });
        }
        actions
    }

    fn lost(&mut self, rank: usize) -> Vec<Action> {
        let Some(replica) = self.replicas.get_mut(rank / self.ranks) else { return Vec::new() };
        self.losses += u32::from(replica.lost(rank % self.ranks));
        if self.is_stopped {
            return Vec::new();
        }
        if self.losses < LOSSES_MAX {
            return vec![Action::Respawn(rank)];
        }
        self.is_stopped = true;
        let waiting = self.waiting.drain(..).map(Action::Fail);
        waiting.chain([Action::Stop]).collect()
    }
}

#[cfg(test)]
mod tests;
