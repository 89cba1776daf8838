//! One replica: its ranks and the jobs that they have.

use super::queue::{IN_FLIGHT_MAX, JobId};

/// Ranks that share pictures.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    /// Which of its ranks have a worker that has loaded its weights.
    ready: Vec<bool>,
    /// Whether a rank was lost and the replica is not whole and empty again since. It gets no jobs.
    is_broken: bool,
    /// Its jobs, the oldest first.
    jobs: Vec<InFlight>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    job: JobId,
    /// Whether its latents are there, so that only the rank that decodes still has work.
    is_denoised: bool,
}

impl Replica {
    /// None of its ranks is ready.
    pub(super) fn new(ranks: usize) -> Self {
        Self { ready: vec![false; ranks], is_broken: false, jobs: Vec::new() }
    }

    /// Whether it can take a job, and if so, whether its ranks have nothing else to do.
    ///
    /// One rank alone decodes before it can begin anything else: it is given the next job only then, which another
    /// replica may have taken by that time.
    pub(super) fn room(&self) -> Option<Room> {
        if self.is_broken || self.ready.contains(&false) || self.jobs.len() >= IN_FLIGHT_MAX {
            return None;
        }
        match self.jobs.as_slice() {
            [] => Some(Room::Idle),
            jobs if self.ready.len() > 1 && jobs.iter().all(|j| j.is_denoised) => Some(Room::Decoding),
            _ => None,
        }
    }

    pub(super) fn start(&mut self, job: JobId) {
        self.jobs.push(InFlight { job, is_denoised: false });
    }

    /// Whether it had the job.
    pub(super) fn denoised(&mut self, job: JobId) -> bool {
        let found = self.jobs.iter_mut().find(|j| j.job == job);
        found.map(|j| j.is_denoised = true).is_some()
    }

    /// The job has ended on all its ranks. Whether it had the job.
    pub(super) fn ended(&mut self, job: JobId) -> bool {
        let before = self.jobs.len();
        self.jobs.retain(|j| j.job != job);
        self.heal();
        self.jobs.len() < before
    }

    pub(super) fn ready(&mut self, rank: usize) {
        if let Some(ready) = self.ready.get_mut(rank) {
            *ready = true;
        }
        self.heal();
    }

    /// Whether this is a new loss: several ranks that one job takes along are lost once.
    pub(super) fn lost(&mut self, rank: usize) -> bool {
        if let Some(ready) = self.ready.get_mut(rank) {
            *ready = false;
        }
        !std::mem::replace(&mut self.is_broken, true)
    }

    fn heal(&mut self) {
        self.is_broken &= !self.jobs.is_empty() || self.ready.contains(&false);
    }
}

/// What a replica that can take a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    /// Nothing.
    Idle,
    /// One of its ranks decodes.
    Decoding,
}
