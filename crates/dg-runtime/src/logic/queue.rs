//! Which job runs when, and what happens when its worker dies.

use std::collections::VecDeque;

/// Identifies a job within one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Jobs that may wait.
pub const WAITING_MAX: usize = 4096;
/// Workers that may be lost in a row, without a job finished in between, before the cluster stops.
pub const LOSSES_MAX: u32 = 3;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job was submitted.
    Submitted(JobId),
    /// The worker has loaded the model and is idle.
    WorkerReady,
    /// The worker has finished the job, with pictures or an error.
    Finished(JobId),
    /// The worker is gone.
    WorkerLost,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give the job to the worker.
    Start(JobId),
    /// Tell the job's owner that too many wait.
    Refuse(JobId),
    /// Tell the job's owner that its worker died.
    Fail(JobId),
    /// Start a worker in place of the lost one.
    Respawn,
    /// Give up: fail what waits and stop.
    Stop,
}

/// One worker and the jobs before it.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: VecDeque<JobId>,
    running: Option<JobId>,
    ready: bool,
    losses: u32,
    stopped: bool,
}

impl Queue {
    /// Takes an event and says what to do, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Submitted(job) if self.stopped => vec![Action::Fail(job)],
            Event::Submitted(job) if self.waiting.len() >= WAITING_MAX => vec![Action::Refuse(job)],
            Event::Submitted(job) => {
                self.waiting.push_back(job);
                self.next()
            }
            Event::WorkerReady => {
                self.ready = true;
                self.next()
            }
            Event::Finished(job) if self.running == Some(job) => {
                self.running = None;
                self.losses = 0;
                self.next()
            }
            // a report of a worker that has been given up
            Event::Finished(_) => Vec::new(),
            Event::WorkerLost => self.lost(),
        }
    }

    fn next(&mut self) -> Vec<Action> {
        if !self.ready || self.running.is_some() || self.stopped {
            return Vec::new();
        }
        self.running = self.waiting.pop_front();
        self.running.map(Action::Start).into_iter().collect()
    }

    fn lost(&mut self) -> Vec<Action> {
        self.ready = false;
        self.losses += 1;
        let mut actions: Vec<Action> = self.running.take().map(Action::Fail).into_iter().collect();
        if self.losses < LOSSES_MAX {
            actions.push(Action::Respawn);
        } else {
            self.stopped = true;
            actions.extend(self.waiting.drain(..).map(Action::Fail));
            actions.push(Action::Stop);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::*;
    use Event::*;

    const A: JobId = JobId(1);
    const B: JobId = JobId(2);

    #[test]
    fn jobs_run_one_at_a_time_in_order() {
        let mut q = Queue::default();
        assert_eq!(q.handle(Submitted(A)), []);
        assert_eq!(q.handle(WorkerReady), [Start(A)]);
        assert_eq!(q.handle(Submitted(B)), []);
        assert_eq!(q.handle(Finished(A)), [Start(B)]);
        assert_eq!(q.handle(Finished(A)), []);
        assert_eq!(q.handle(Finished(B)), []);
    }

    #[test]
    fn a_lost_worker_costs_its_job_only() {
        let mut q = Queue::default();
        q.handle(WorkerReady);
        q.handle(Submitted(A));
        q.handle(Submitted(B));
        assert_eq!(q.handle(WorkerLost), [Fail(A), Respawn]);
        assert_eq!(q.handle(Finished(A)), []);
        assert_eq!(q.handle(WorkerReady), [Start(B)]);
        assert_eq!(q.handle(Finished(B)), []);
    }

    #[test]
    fn workers_that_keep_dying_stop_the_cluster() {
        let mut q = Queue::default();
        q.handle(Submitted(A));
        assert_eq!(q.handle(WorkerLost), [Respawn]);
        assert_eq!(q.handle(WorkerLost), [Respawn]);
        assert_eq!(q.handle(WorkerLost), [Fail(A), Stop]);
        assert_eq!(q.handle(Submitted(B)), [Fail(B)]);
    }

    /// A queue, the owners' view of its jobs and a worker that may be there.
    #[derive(Default)]
    struct World {
        queue: Queue,
        ends: Vec<u32>,
        running: Option<JobId>,
        up: bool,
        stopped: bool,
    }

    impl World {
        fn submit(&mut self) {
            let job = JobId(self.ends.len() as u64);
            self.ends.push(0);
            self.tell(Submitted(job));
        }

        fn come_up(&mut self) {
            self.up = true;
            self.tell(WorkerReady);
        }

        fn lose(&mut self) {
            (self.up, self.running) = (false, None);
            self.tell(WorkerLost);
        }

        /// Whether there was a job to finish.
        fn finish(&mut self) -> bool {
            let Some(job) = self.running.take() else { return false };
            self.ends[job.0 as usize] += 1;
            self.tell(Finished(job));
            true
        }

        fn tell(&mut self, event: Event) {
            for action in self.queue.handle(event) {
                match action {
                    Start(job) => assert!(self.running.replace(job).is_none() && self.up && !self.stopped),
                    Fail(job) | Refuse(job) => self.ends[job.0 as usize] += 1,
                    Respawn => assert!(!self.stopped),
                    Stop => self.stopped = true,
                }
            }
        }
    }

    /// Every submitted job gets exactly one end, whatever happens in between.
    #[test]
    fn every_job_ends_once() {
        let (mut all_done, mut given_up) = (0, 0);
        for seed in 0..2000u64 {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut world = World::default();
            // some runs lose many workers, some few or none
            let losses = seed % 40;
            for _ in 0..400 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                match random % 100 {
                    0..30 if world.ends.len() < 20 => world.submit(),
                    roll if roll >= 100 - losses && !world.stopped && world.ends.contains(&0) => world.lose(),
                    _ if !world.up && !world.stopped => world.come_up(),
                    _ => {
                        world.finish();
                    }
                }
            }
            assert!(world.ends.iter().all(|n| *n <= 1), "seed {seed}: {:?}", world.ends);
            if !world.up && !world.stopped {
                world.come_up();
            }
            while world.finish() {}
            assert!(world.ends.iter().all(|n| *n == 1), "seed {seed}: {:?}", world.ends);
            *(if world.stopped { &mut given_up } else { &mut all_done }) += 1;
        }
        assert!(all_done > 100 && given_up > 100, "{all_done} drained, {given_up} stopped");
    }
}
