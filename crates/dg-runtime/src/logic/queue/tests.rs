use super::*;
use Action::{Fail, Refuse, Respawn, Stop};
use Event::{Denoised, Lost, Orphaned, Ready, Submitted};

const A: JobId = JobId(1);
const B: JobId = JobId(2);
const C: JobId = JobId(3);

fn start(job: JobId, replica: usize) -> Action {
    Action::Start { job, replica }
}

fn ended(job: JobId) -> Event {
    Event::Ended { job, has_lost: false }
}

fn died(job: JobId) -> Event {
    Event::Ended { job, has_lost: true }
}

/// A queue whose ranks are all ready.
fn ready(replicas: usize, ranks: usize) -> Queue {
    let mut q = Queue::new(replicas, ranks);
    for rank in 0..replicas * ranks {
        assert_eq!(q.handle(Ready(rank)), []);
    }
    q
}

#[test]
fn one_rank_runs_one_job_at_a_time_in_order() {
    let mut q = Queue::new(1, 1);
    assert_eq!(q.handle(Submitted(A)), []);
    assert_eq!(q.handle(Ready(0)), [start(A, 0)]);
    assert_eq!(q.handle(Submitted(B)), []);
    assert_eq!(q.handle(Denoised(A)), [], "it decodes itself");
    assert_eq!(q.handle(ended(A)), [start(B, 0)]);
    assert_eq!(q.handle(ended(A)), []);
    assert_eq!(q.handle(ended(B)), []);
}

#[test]
fn a_lost_worker_costs_its_job_only() {
    let mut q = ready(1, 1);
    q.handle(Submitted(A));
    q.handle(Submitted(B));
    assert_eq!(q.handle(Lost(0)), [Respawn(0)]);
    assert_eq!(q.handle(died(A)), []);
    assert_eq!(q.handle(Ready(0)), [start(B, 0)]);
    assert_eq!(q.handle(ended(B)), []);
}

#[test]
fn workers_that_keep_dying_stop_the_cluster() {
    let mut q = Queue::new(1, 1);
    q.handle(Submitted(A));
    assert_eq!(q.handle(Lost(0)), [Respawn(0)]);
    q.handle(Ready(0));
    assert_eq!(q.handle(Lost(0)), [Respawn(0)]);
    q.handle(died(A));
    q.handle(Submitted(B));
    assert_eq!(q.handle(Ready(0)), [start(B, 0)]);
    q.handle(Submitted(C));
    assert_eq!(q.handle(Lost(0)), [Fail(C), Stop]);
    assert_eq!(q.handle(died(B)), []);
    assert_eq!(q.handle(Submitted(A)), [Fail(A)]);
    assert_eq!(q.handle(Orphaned(B)), [Fail(B)]);
}

#[test]
fn a_replica_waits_for_all_its_ranks() {
    let mut q = Queue::new(2, 3);
    q.handle(Submitted(A));
    for rank in [0, 4, 2, 3] {
        assert_eq!(q.handle(Ready(rank)), []);
    }
    assert_eq!(q.handle(Ready(5)), [start(A, 1)]);
    q.handle(Submitted(B));
    assert_eq!(q.handle(Ready(1)), [start(B, 0)]);
}

#[test]
fn the_next_job_begins_while_one_rank_decodes() {
    let mut q = ready(2, 2);
    assert_eq!(q.handle(Submitted(A)), [start(A, 0)]);
    assert_eq!(q.handle(Submitted(B)), [start(B, 1)]);
    assert_eq!(q.handle(Submitted(C)), []);
    assert_eq!(q.handle(Denoised(B)), [start(C, 1)]);
    assert_eq!(q.handle(Submitted(JobId(4))), []);
    assert_eq!(q.handle(Denoised(C)), [], "two are enough");
    assert_eq!(q.handle(ended(B)), [start(JobId(4), 1)]);
    assert_eq!(q.handle(ended(A)), []);
    assert_eq!(q.handle(Submitted(JobId(5))), [start(JobId(5), 0)], "idle before decoding");
}

#[test]
fn an_orphan_goes_before_later_jobs() {
    let mut q = ready(1, 2);
    q.handle(Submitted(A));
    q.handle(Denoised(A));
    q.handle(Submitted(B));
    q.handle(Submitted(C));
    assert_eq!(q.handle(Lost(0)), [Respawn(0)]);
    assert_eq!(q.handle(died(A)), []);
    assert_eq!(q.handle(Ready(0)), [], "B has not ended everywhere");
    assert_eq!(q.handle(Orphaned(B)), [start(B, 0)]);
    assert_eq!(q.handle(ended(B)), [start(C, 0)]);
}

#[test]
fn a_job_that_takes_all_ranks_along_is_one_loss() {
    let mut q = ready(1, 4);
    q.handle(Submitted(A));
    q.handle(Submitted(B));
    for rank in 0..4 {
        assert_eq!(q.handle(Lost(rank)), [Respawn(rank)]);
        assert_eq!(q.handle(Ready(rank)), [], "A has not ended yet");
    }
    assert_eq!(q.handle(died(A)), [start(B, 0)]);
}

#[test]
fn too_many_are_refused() {
    let mut q = Queue::new(1, 1);
    for job in 0..WAITING_MAX as u64 {
        assert_eq!(q.handle(Submitted(JobId(job))), []);
    }
    assert_eq!(q.handle(Submitted(JobId(9999))), [Refuse(JobId(9999))]);
}

/// What a rank of [`World`] is doing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Worker {
    #[default]
    Loading,
    Up,
}

/// A job that a replica has: which of its ranks have ended it, and how.
#[derive(Clone)]
struct Flight {
    job: JobId,
    replica: usize,
    over: Vec<bool>,
    is_denoised: bool,
    /// Whether a rank died of it, and whether one died before it began it.
    has_lost: bool,
    is_orphan: bool,
}

/// A queue, the owners' view of its jobs, and workers with a mailbox of events that come late but in order.
struct World {
    queue: Queue,
    ranks: usize,
    workers: Vec<Worker>,
    ends: Vec<u32>,
    flights: Vec<Flight>,
    /// First starts, in order.
    started: Vec<JobId>,
    mail: VecDeque<Event>,
    stopped: bool,
    random: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        random ^= random >> 31;
        let (replicas, ranks) = (1 + (seed % 3) as usize, [1, 2, 4][(seed / 3 % 3) as usize]);
        Self {
            queue: Queue::new(replicas, ranks),
            ranks,
            workers: vec![Worker::Loading; replicas * ranks],
            ends: Vec::new(),
            flights: Vec::new(),
            started: Vec::new(),
            mail: VecDeque::new(),
            stopped: false,
            random,
        }
    }

    fn roll(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % below
    }

    fn submit(&mut self) {
        let job = JobId(self.ends.len() as u64);
        self.ends.push(0);
        self.mail.push_back(Submitted(job));
    }

    /// Some worker that loads has loaded. Whether there was one.
    fn load(&mut self) -> bool {
        let first = self.roll(self.workers.len());
        let turn = (0..self.workers.len()).map(|i| (first + i) % self.workers.len());
        let Some(rank) = turn.into_iter().find(|r| self.workers[*r] == Worker::Loading) else { return false };
        // it does not come up before its loss was heard of
        if self.mail.contains(&Lost(rank)) {
            return false;
        }
        self.workers[rank] = Worker::Up;
        self.mail.push_back(Ready(rank));
        true
    }

    /// Some rank does something about the oldest of its jobs that it has not ended. Whether one could.
    fn work(&mut self, dies: bool) -> bool {
        let first = self.roll(self.workers.len());
        let turn: Vec<_> = (0..self.workers.len()).map(|i| (first + i) % self.workers.len()).collect();
        for rank in turn {
            let (replica, local) = (rank / self.ranks, rank % self.ranks);
            let mine = self.flights.iter().position(|f| f.replica == replica && !f.over[local]);
            let Some(at) = mine else { continue };
            if dies && self.workers[rank] == Worker::Up {
                self.die(rank, at);
            } else if local == 0 && !self.flights[at].is_denoised && !self.flights[at].is_orphan {
                self.flights[at].is_denoised = true;
                self.mail.push_back(Denoised(self.flights[at].job));
            } else {
                self.flights[at].over[local] = true;
                self.settle();
            }
            return true;
        }
        false
    }

    /// The rank dies of one job and takes along what it has not begun.
    fn die(&mut self, rank: usize, at: usize) {
        let (replica, local) = (rank / self.ranks, rank % self.ranks);
        let dying = self.flights[at].job;
        self.workers[rank] = Worker::Loading;
        self.flights[at].has_lost = true;
        self.mail.push_back(Lost(rank));
        for f in self.flights.iter_mut().filter(|f| f.replica == replica && !f.over[local]) {
            f.is_orphan |= f.job != dying;
            f.over[local] = true;
        }
        self.settle();
    }

    /// Tells of the jobs that have ended on all ranks.
    fn settle(&mut self) {
        let (over, rest): (Vec<_>, Vec<_>) =
            self.flights.drain(..).partition(|f: &Flight| f.over.iter().all(|o| *o));
        self.flights = rest;
        for Flight { job, has_lost, is_orphan, .. } in over {
            if is_orphan && !has_lost {
                self.mail.push_back(Orphaned(job));
            } else {
                self.ends[job.0 as usize] += 1;
                self.mail.push_back(Event::Ended { job, has_lost });
            }
        }
    }

    /// The queue hears of the oldest event. Whether there was one.
    fn hear(&mut self) -> bool {
        let Some(event) = self.mail.pop_front() else { return false };
        for action in self.queue.handle(event) {
            match action {
                Action::Start { job, replica } => self.start(job, replica),
                Fail(job) | Refuse(job) => self.ends[job.0 as usize] += 1,
                Respawn(rank) => assert!(!self.stopped && self.workers[rank] == Worker::Loading),
                Stop => self.stopped = true,
            }
        }
        true
    }

    fn start(&mut self, job: JobId, replica: usize) {
        let here = || self.flights.iter().filter(|f| f.replica == replica);
        assert!(!self.stopped && here().count() < IN_FLIGHT_MAX);
        assert!(here().all(|f| f.is_denoised && self.ranks > 1));
        assert!(self.flights.iter().all(|f| f.job != job));
        if self.started.contains(&job) {
            assert!(self.ends[job.0 as usize] == 0, "a job that has ended does not come back");
        } else {
            assert!(self.started.last().is_none_or(|last| *last < job), "first come, first served");
            self.started.push(job);
        }
        // a rank whose death the queue has not heard of never begins it
        let ranks = replica * self.ranks..(replica + 1) * self.ranks;
        let over: Vec<bool> = self.workers[ranks].iter().map(|w| *w == Worker::Loading).collect();
        let is_orphan = over.contains(&true);
        let is_denoised = false;
        self.flights.push(Flight { job, replica, over, is_denoised, has_lost: false, is_orphan });
        self.settle();
    }
}

/// Whatever the order of events: every job ends once, no replica has more than it may, and jobs start in order.
#[test]
fn every_job_ends_once() {
    let (mut all_done, mut given_up, mut overlaps) = (0, 0, 0);
    for seed in 0..3000u64 {
        let mut world = World::new(seed);
        // some runs lose many workers, some few or none
        let deaths = [0, 1, 3, 30][(seed % 4) as usize];
        for _ in 0..400 {
            match world.roll(100) {
                0..15 if world.ends.len() < 20 => world.submit(),
                15..25 => drop(world.load()),
                25..60 => drop(world.hear()),
                _ => {
                    let dies = world.roll(100) < deaths && !world.stopped;
                    world.work(dies);
                }
            }
            let both = |r| world.flights.iter().filter(|f| f.replica == r).count() == 2;
            overlaps += u32::from((0..3).any(both));
        }
        assert!(world.ends.iter().all(|n| *n <= 1), "seed {seed}: {:?}", world.ends);
        while world.hear() || world.work(false) || world.load() {}
        assert!(world.ends.iter().all(|n| *n == 1), "seed {seed}: {:?}", world.ends);
        *(if world.stopped { &mut given_up } else { &mut all_done }) += 1;
    }
    assert!(all_done > 300 && given_up > 300 && overlaps > 1000, "{all_done} {given_up} {overlaps}");
}
