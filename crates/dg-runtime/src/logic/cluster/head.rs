//! All that the head decides: leases, processes, jobs and which ranks they get.

use super::checkpoint::Checkpoint;
use super::epoch::{self, EpochTimes, Order, Say};
use super::job::{End, Job, JobSpec};
use super::lease::{self, LeaseTimes, Leases};
use super::planner::Planner;
use super::queue::Queue;
use super::registry::{Facts, ProcessTimes, Registry};
use super::timers::Timers;
use super::{JobId, ModelHash, NodeId, RankId, Stamp};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

mod jobs;
mod nodes;

/// Times of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadTimes {
    /// Of leases.
    pub lease: LeaseTimes,
    /// Of attempts.
    pub epoch: EpochTimes,
    /// Of processes.
    pub process: ProcessTimes,
    /// What starting a process and loading weights is taken to last, when that is weighed against other ranks.
    pub respawn: Duration,
    /// A job for which there are too few ranks for so long fails.
    pub patience: Duration,
}

impl Default for HeadTimes {
    fn default() -> Self {
        Self {
            lease: LeaseTimes::default(),
            epoch: EpochTimes::default(),
            process: ProcessTimes::default(),
            respawn: Duration::from_secs(10),
            patience: Duration::from_secs(600),
        }
    }
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client wants a job. Jobs are numbered as they come; one that came before is not taken twice.
    Submit(JobId, JobSpec),
    /// A client does not want it any more.
    Cancel(JobId),
    /// A node says that it is there.
    Hello(NodeId, Facts),
    /// A node that is in has this model too.
    Model(NodeId, ModelHash),
    /// The agent of this incarnation asks for its lease.
    Renew(NodeId, u64, u64),
    /// The connection to the agent of this incarnation is gone.
    Closed(NodeId, u64),
    /// Somebody wants a node to take no new work, or to take it again.
    Drain(NodeId, bool),
    /// A process runs.
    Spawned(RankId, Stamp),
    /// A process has ended, with its last log lines.
    Exited(RankId, Stamp, Vec<String>),
    /// The rank of this start says something about this epoch.
    Said(RankId, Stamp, Stamp, Say),
    /// Time has passed.
    Tick,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many are there.
    Full,
    /// This node does not have the model.
    NoModel(NodeId),
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell a node that it is in.
    Welcome(NodeId),
    /// Tell whoever says to be the node, with this incarnation, that it is not, or has to say hello first.
    RefuseNode(NodeId, u64),
    /// Answer the node's question for its lease.
    Grant {
        /// Which.
        node: NodeId,
        /// Of the question.
        seq: u64,
        /// For how long.
        ttl: Duration,
    },
    /// Close the connection of a node.
    Disconnect(NodeId),
    /// Start a process.
    Spawn(RankId, Stamp),
    /// Kill a process.
    Kill(RankId, Stamp),
    /// Tell the rank of this start to do this for this epoch.
    Order(RankId, Stamp, Stamp, Order),
    /// Tell the client how its job ended.
    Finish(JobId, End),
    /// Tell the client that its job is not taken.
    Refuse(JobId, Refusal),
    /// The job goes on in this epoch after so many steps.
    Resumed(JobId, Stamp, u32),
    /// All latents of the job after this step are there.
    Kept(JobId, Stamp, u32),
    /// Nothing runs on a node that takes no new work.
    Drained(NodeId),
    /// A device has failed too often.
    Bad(RankId),
    /// Look again at this time.
    SetTimer(Duration),
}

/// The head.
#[derive(Debug)]
pub struct Head<P> {
    term: u64,
    times: HeadTimes,
    planner: P,
    leases: Leases,
    registry: Registry,
    queue: Queue,
    jobs: HashMap<JobId, Job>,
    job_timers: Timers<JobId>,
    /// Ranks that jobs wait for.
    awaited: BTreeMap<RankId, JobId>,
    /// The latest job that was submitted.
    latest: Option<JobId>,
    /// What the shell was told last.
    timer: Option<Duration>,
    /// Whether jobs may be placed that could not before.
    may_place: bool,
}

impl<P: Planner> Head<P> {
    /// A head with nothing; `term` is larger after each of its starts.
    pub fn new(term: u64, times: HeadTimes, planner: P) -> Self {
        Self {
            term,
            times,
            planner,
            leases: Leases::new(times.lease.ttl),
            registry: Registry::new(term, times.process),
            queue: Queue::default(),
            jobs: HashMap::new(),
            job_timers: Timers::default(),
            awaited: BTreeMap::new(),
            latest: None,
            timer: None,
            may_place: false,
        }
    }

    /// What starting a process and loading weights was seen to last.
    pub fn set_respawn(&mut self, took: Duration) {
        self.times.respawn = took;
    }

    /// Its incarnation.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Nodes and processes.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Leases of nodes.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// A job that is not over.
    pub fn job(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    /// Jobs that are not over.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// The latest complete latents of a job that is not over.
    pub fn checkpoint(&self, job: JobId) -> Option<&Checkpoint> {
        self.jobs.get(&job).and_then(|job| job.checkpoints().newest())
    }

    /// Takes an event and says what to do, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Submit(job, spec) => self.submit(job, spec, now, &mut out),
            Event::Cancel(job) => self.on_job(job, super::job::Event::Cancel, now, &mut out),
            Event::Hello(node, facts) => self.hello(node, facts, now, &mut out),
            Event::Model(node, model) => {
                self.on_registry(super::registry::Event::Model(node, model), now, &mut out);
            }
            Event::Renew(node, incarnation, seq) => {
                let event = lease::HeadEvent::Renew { node, incarnation, seq };
                self.on_leases(event, now, &mut out);
            }
            Event::Closed(node, incarnation) => {
                if self.leases.is_present(node, incarnation) {
                    self.on_leases(lease::HeadEvent::Closed(node), now, &mut out);
                    self.on_registry(super::registry::Event::Down(node), now, &mut out);
                }
            }
            Event::Drain(node, is_draining) => {
                self.on_registry(super::registry::Event::Drain(node, is_draining), now, &mut out);
            }
            Event::Spawned(rank, start) => {
                self.on_registry(super::registry::Event::Spawned(rank, start), now, &mut out);
            }
            Event::Exited(rank, start, mut log) => {
                log.drain(..log.len().saturating_sub(LOG_LINES_MAX));
                self.on_registry(super::registry::Event::Exited(rank, start, log), now, &mut out);
            }
            Event::Said(rank, start, epoch, say) => self.said(rank, start, epoch, say, now, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        if std::mem::take(&mut self.may_place) {
            self.place(now, &mut out);
        }
        self.set_timer(&mut out);
        out
    }

    fn said(
        &mut self,
        rank: RankId,
        start: Stamp,
        epoch: Stamp,
        say: Say,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        if self.registry.start(rank) != Some(start) {
            return;
        }
        let is_stopped = say == Say::Stopped;
        if let super::registry::Process::Busy(_, job) = self.registry.process(rank) {
            let event = super::job::Event::Epoch(epoch, epoch::Event::Said(rank, say));
            self.on_job(job, event, now, out);
        } else if is_stopped {
            self.on_registry(super::registry::Event::Stopped(rank, start, epoch), now, out);
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.on_leases(lease::HeadEvent::Tick, now, out);
        self.on_registry(super::registry::Event::Tick, now, out);
        while let Some(job) = self.job_timers.pop(now) {
            self.on_job(job, super::job::Event::Tick, now, out);
        }
        self.timer = None;
    }

    fn set_timer(&mut self, out: &mut Vec<Action>) {
        let times = [self.leases.next(), self.registry.next(), self.job_timers.next()];
        let next = times.into_iter().flatten().min();
        if let Some(at) = next
            && self.timer.is_none_or(|before| at < before)
        {
            // A timer that is set too early does no harm, and most are moved to later only.
            self.timer = next;
            out.push(Action::SetTimer(at));
        }
    }
}

/// Log lines of a dead process that are kept.
pub const LOG_LINES_MAX: usize = 20;

#[cfg(test)]
mod tests;
