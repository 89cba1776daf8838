//! Which job of those that wait is next: by priority, within a priority one of each client in turn, for each client in
//! the order in which it submitted them.

use super::{ClientId, JobId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// What happens to jobs that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client submits one.
    Submitted {
        /// Which; later ones are larger.
        job: JobId,
        /// Whose.
        client: ClientId,
        /// Larger is sooner.
        priority: u8,
    },
    /// One comes back that was started: it stands where it stood.
    Returned(JobId),
    /// The next one was started.
    Started(JobId),
    /// The next one needs more than there is: the others need not wait for it.
    Parked(JobId),
    /// There is more than before: those that were parked wait again.
    Grown,
    /// One is over, wherever it is.
    Ended(JobId),
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Too many wait.
    Refuse(JobId),
}

/// Jobs of a cluster, those that wait in order.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// All jobs that are not over: whose and how urgent.
    jobs: HashMap<JobId, (ClientId, u8)>,
    levels: BTreeMap<Reverse<u8>, Level>,
    parked: BTreeSet<JobId>,
}

#[derive(Clone, Debug, Default)]
struct Level {
    /// Clients that have jobs here, the next one first.
    turns: VecDeque<ClientId>,
    waiting: HashMap<ClientId, BTreeSet<JobId>>,
}

impl Queue {
    /// Takes an event and says what follows.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Submitted { job, .. } if self.jobs.len() >= JOBS_MAX => return vec![Action::Refuse(job)],
            Event::Submitted { job, client, priority } => {
                self.jobs.insert(job, (client, priority));
                self.wait(job, false);
            }
            Event::Returned(job) => self.wait(job, true),
            Event::Started(job) => {
                self.remove(job, true);
            }
            Event::Parked(job) => {
                if self.remove(job, false) {
                    self.parked.insert(job);
                }
            }
            Event::Grown => {
                for job in std::mem::take(&mut self.parked) {
                    self.wait(job, false);
                }
            }
            Event::Ended(job) => {
                self.remove(job, false);
                self.parked.remove(&job);
                self.jobs.remove(&job);
            }
        }
        Vec::new()
    }

    /// The job that is to be started first of those that `suits` takes.
    pub fn next(&self, suits: impl Fn(JobId) -> bool) -> Option<JobId> {
        let clients = self.levels.values().flat_map(|level| level.turns.iter().map(|c| level.waiting.get(c)));
        clients.flatten().flatten().copied().find(|job| suits(*job))
    }

    /// Jobs that are not over.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether all jobs are over.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn wait(&mut self, job: JobId, is_first: bool) {
        let Some((client, priority)) = self.jobs.get(&job).copied() else { return };
        let level = self.levels.entry(Reverse(priority)).or_default();
        let jobs = level.waiting.entry(client).or_default();
        if jobs.is_empty() {
            // A client whose job comes back had its turn but nothing of it.
            if is_first { level.turns.push_front(client) } else { level.turns.push_back(client) }
        }
        jobs.insert(job);
    }

    /// Whether it waited. If it was its client's turn, the turn passes on.
    fn remove(&mut self, job: JobId, has_turn: bool) -> bool {
        let Some((client, priority)) = self.jobs.get(&job).copied() else { return false };
        let Some(level) = self.levels.get_mut(&Reverse(priority)) else { return false };
        let Some(jobs) = level.waiting.get_mut(&client) else { return false };
        let had = jobs.remove(&job);
        if jobs.is_empty() {
            level.waiting.remove(&client);
            level.turns.retain(|other| *other != client);
        } else if had && has_turn {
            level.turns.retain(|other| *other != client);
            level.turns.push_back(client);
        }
        if level.turns.is_empty() {
            self.levels.remove(&Reverse(priority));
        }
        had
    }
}

/// Jobs that may be there at a time, waiting or running.
pub const JOBS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn submit(queue: &mut Queue, jobs: &[(u64, u32, u8)]) {
        for (job, client, priority) in jobs {
            let event = Event::Submitted { job: JobId(*job), client: ClientId(*client), priority: *priority };
            assert_eq!(queue.handle(event), []);
        }
    }

    fn order(queue: &mut Queue) -> Vec<u64> {
        let next = std::iter::from_fn(|| {
            let job = queue.next(|_| true)?;
            queue.handle(Event::Started(job));
            Some(job.0)
        });
        next.collect()
    }

    #[test]
    fn priority_then_turns_of_clients_then_first_come() {
        let mut queue = Queue::default();
        submit(&mut queue, &[(1, 7, 0), (2, 7, 0), (3, 7, 0), (4, 8, 0), (5, 9, 3), (6, 8, 0)]);
        assert_eq!(order(&mut queue), [5, 1, 4, 2, 6, 3]);
    }

    #[test]
    fn a_job_that_comes_back_is_next_and_a_parked_one_waits_for_more() {
        let mut queue = Queue::default();
        submit(&mut queue, &[(1, 7, 0), (2, 8, 0), (3, 9, 0)]);
        queue.handle(Event::Started(JobId(1)));
        queue.handle(Event::Returned(JobId(1)));
        assert_eq!(queue.next(|_| true), Some(JobId(1)));
        queue.handle(Event::Parked(JobId(1)));
        queue.handle(Event::Ended(JobId(3)));
        assert_eq!(order(&mut queue), [2]);
        queue.handle(Event::Grown);
        assert_eq!(order(&mut queue), [1]);
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn who_cannot_start_is_passed_over_and_keeps_its_turn() {
        let mut queue = Queue::default();
        submit(&mut queue, &[(1, 7, 0), (2, 7, 0), (3, 8, 0), (4, 8, 5)]);
        let suits = |jobs: &'static [u64]| move |job: JobId| jobs.contains(&job.0);
        assert_eq!(queue.next(suits(&[2, 3])), Some(JobId(2)), "the first client's");
        assert_eq!(queue.next(suits(&[3])), Some(JobId(3)));
        assert_eq!(queue.next(suits(&[])), None);
        queue.handle(Event::Ended(JobId(4)));
        queue.handle(Event::Started(JobId(3)));
        assert_eq!(order(&mut queue), [1, 2]);
    }

    #[test]
    fn the_number_of_jobs_is_bounded() {
        let mut queue = Queue::default();
        for n in 0..JOBS_MAX as u64 {
            submit(&mut queue, &[(n, 0, 0)]);
        }
        let last = JobId(JOBS_MAX as u64);
        let event = Event::Submitted { job: last, client: ClientId(1), priority: 9 };
        assert_eq!(queue.handle(event), [Action::Refuse(last)]);
    }
}
