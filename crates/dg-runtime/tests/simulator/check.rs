//! What has to hold, by what really happened.

use crate::agent::Agent;
use dg_runtime::logic::cluster::epoch::Order;
use dg_runtime::logic::cluster::head::{Action, Head};
use dg_runtime::logic::cluster::job::{End, Failure};
use dg_runtime::logic::cluster::planner::Planner;
use dg_runtime::logic::cluster::registry::Process;
use dg_runtime::logic::cluster::{JobId, NodeId, RankId, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What really happened to one job.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) steps: u32,
    pub(crate) ranks_min: usize,
    /// The attempt that the head began last, and its ranks.
    epoch: Option<(Stamp, Vec<RankId>)>,
    /// The newest step whose latents are there.
    kept: u32,
    /// What was there when the present attempt began.
    kept_before: u32,
    /// Attempts in a row that kept nothing.
    barren: u32,
    ends: u32,
    pub(crate) was_short: bool,
}

impl Truth {
    pub(crate) fn new(steps: u32, ranks_min: usize) -> Self {
        Self { steps, ranks_min, ..Self::default() }
    }
}

/// Watches.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) jobs: BTreeMap<JobId, Truth>,
    /// Steps that a rank has really done in an attempt; all of the job's once it is done.
    done: BTreeMap<(Stamp, RankId), u32>,
    /// The newest attempt that each process has taken up.
    begun: BTreeMap<(Stamp, RankId), Stamp>,
    /// Until when the head has allowed a node to compute.
    leases: BTreeMap<NodeId, Duration>,
    pub(crate) has_faults: bool,
    pub(crate) epochs: u64,
}

impl Checker {
    /// The head is gone, and with it all that it knew of jobs: those that it has to be told again.
    pub(crate) fn forget(&mut self) {
        for truth in self.jobs.values_mut() {
            (truth.kept, truth.kept_before, truth.barren, truth.was_short) = (0, 0, 0, false);
        }
    }

    /// Whether the job is over.
    pub(crate) fn is_over(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|truth| truth.ends > 0)
    }

    /// The latest attempt of a job.
    pub(crate) fn epoch(&self, job: JobId) -> Option<Stamp> {
        self.jobs.get(&job)?.epoch.as_ref().map(|(stamp, _)| *stamp)
    }

    /// What the head has decided.
    pub(crate) fn action<P: Planner>(
        &mut self,
        head: &Head<P>,
        action: &Action,
        now: Duration,
    ) -> Result<(), String> {
        match action {
            Action::Grant { node, ttl, .. } => {
                self.leases.insert(*node, now + *ttl);
            }
            Action::Order(_, _, epoch, Order::Prepare(team)) => {
                let truth = self.jobs.entry(team.job).or_default();
                if truth.ends > 0 {
                    return Err(format!("{:?} is over and begins {epoch:?}", team.job));
                }
                match &truth.epoch {
                    Some((have, _)) if have == epoch => {}
                    Some((have, _)) if have > epoch => {
                        return Err(format!("{:?} goes back from {have:?} to {epoch:?}", team.job));
                    }
                    _ => {
                        truth.barren = if truth.kept > truth.kept_before { 1 } else { truth.barren + 1 };
                        truth.kept_before = truth.kept;
                        truth.epoch = Some((*epoch, team.members.clone()));
                        self.epochs += 1;
                    }
                }
            }
            Action::Kept(job, epoch, step) => {
                self.all_reached(*job, *epoch, *step, "keeps latents")?;
                let truth = self.jobs.entry(*job).or_default();
                truth.kept = truth.kept.max(*step);
            }
            Action::Resumed(job, epoch, step) => {
                let kept = self.jobs.get(job).map_or(0, |truth| truth.kept);
                if *step != kept {
                    return Err(format!(
                        "{job:?} resumes {epoch:?} from {step}, latents of {kept} are there"
                    ));
                }
            }
            Action::Refuse(job, _) => self.end(*job)?,
            Action::Finish(job, end) => self.finish(head, *job, end)?,
            _ => {}
        }
        Ok(())
    }

    fn all_reached(&self, job: JobId, epoch: Stamp, step: u32, what: &str) -> Result<(), String> {
        let Some((have, members)) = self.jobs.get(&job).and_then(|truth| truth.epoch.as_ref()) else {
            return Err(format!("{job:?} {what} before it began"));
        };
        if *have != epoch {
            return Err(format!("{job:?} {what} of {epoch:?}, it is at {have:?}"));
        }
        for rank in members {
            let done = self.done.get(&(epoch, *rank)).copied().unwrap_or(0);
            if done < step {
                return Err(format!("{job:?} {what} of step {step} of {epoch:?}, {rank} has done {done}"));
            }
        }
        Ok(())
    }

    fn end(&mut self, job: JobId) -> Result<(), String> {
        let truth = self.jobs.entry(job).or_default();
        truth.ends += 1;
        if truth.ends > 1 { Err(format!("{job:?} ends twice")) } else { Ok(()) }
    }

    fn finish<P: Planner>(&mut self, head: &Head<P>, job: JobId, end: &End) -> Result<(), String> {
        self.end(job)?;
        let truth = &self.jobs[&job];
        let capacity = head.registry().capacity(dg_runtime::logic::cluster::placement::Kind::Cpu);
        match end {
            End::Done => {
                let epoch = self.epoch(job).ok_or_else(|| format!("{job:?} is done and never began"))?;
                self.all_reached(job, epoch, truth.steps, "is done")?;
                self.done.retain(|(other, _), _| *other != epoch);
            }
            End::Cancelled => {}
            _ if !self.has_faults => {
                return Err(format!("{job:?} ends with {end:?} though nothing went wrong"));
            }
            End::Failed(Failure::NoProgress { .. }) if truth.barren < 3 || truth.kept > truth.kept_before => {
                return Err(format!("{job:?} fails after {} attempts that kept nothing", truth.barren));
            }
            End::Failed(Failure::Memory { .. }) if !truth.was_short => {
                return Err(format!("{job:?} fails for memory that was enough"));
            }
            End::Failed(Failure::NoRanks) if capacity >= truth.ranks_min => {
                return Err(format!("{job:?} fails for want of ranks, there are {capacity}"));
            }
            End::Failed(_) => {}
        }
        Ok(())
    }

    /// A process takes up an attempt: never one that is older than what it had before.
    pub(crate) fn begins(&mut self, rank: RankId, start: Stamp, epoch: Stamp) -> Result<(), String> {
        let newest = self.begun.entry((start, rank)).or_insert(epoch);
        if epoch < *newest {
            return Err(format!("{rank} takes up {epoch:?} after {newest:?}"));
        }
        *newest = epoch;
        Ok(())
    }

    /// A rank has done a step.
    pub(crate) fn step<P: Planner>(
        &mut self,
        head: &Head<P>,
        agents: &[Agent],
        rank: RankId,
        step: u32,
        now: Duration,
    ) -> Result<(), String> {
        let there = &agents[rank.node.0 as usize].ranks[usize::from(rank.slot)];
        let Some(work) = &there.work else { return Ok(()) };
        let end = self.leases.get(&rank.node).copied().unwrap_or_default();
        if now > end + STOP_MARGIN {
            return Err(format!("{rank} computes at {now:?}, the lease of its node ended at {end:?}"));
        }
        self.done.insert((work.epoch, rank), step);
        let current = self.epoch(work.team.job);
        if current == Some(work.epoch) && self.jobs[&work.team.job].ends == 0 {
            return Ok(());
        }
        let process = head.registry().process(rank);
        let is_trusted = match process {
            Process::Idle(start) => Some(start) == there.process,
            Process::Busy(start, job) => {
                // Its new orders may be on their way: those of the same job would be a second attempt in the group.
                let epoch = head.job(job).and_then(|job| job.epoch());
                let is_member = epoch.is_some_and(|epoch| epoch.phase > PREPARING && epoch.phase < ABORTING);
                Some(start) == there.process && is_member
            }
            _ => false,
        };
        if is_trusted {
            return Err(format!("{rank} computes {:?} of old, the head has it as {process:?}", work.epoch));
        }
        Ok(())
    }

    /// All is over.
    pub(crate) fn finished(&self) -> Result<(), String> {
        let open: BTreeSet<_> = self.jobs.iter().filter(|(_, t)| t.ends != 1).map(|(job, _)| *job).collect();
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?} never end")) }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.jobs.values().all(|truth| truth.ends > 0)
    }
}

/// Lease and fence leave room for the step that was begun.
const STOP_MARGIN: Duration = Duration::from_millis(50);
const PREPARING: dg_runtime::logic::cluster::epoch::Phase =
    dg_runtime::logic::cluster::epoch::Phase::Preparing;
const ABORTING: dg_runtime::logic::cluster::epoch::Phase = dg_runtime::logic::cluster::epoch::Phase::Aborting;
