//! The head, agents and ranks over a bad network, on one clock.

use crate::agent::Agent;
use crate::check::{Checker, Truth};
use crate::faults::{self, Counts, Planned};
use crate::rng::Rng;
use dg_plan::Layout;
use dg_runtime::logic::cluster::epoch::{EpochTimes, Order};
use dg_runtime::logic::cluster::head::{Action, Event, Head, HeadTimes};
use dg_runtime::logic::cluster::job::{End, Failure, JobSpec};
use dg_runtime::logic::cluster::lease::{LeaseTimes, NodeAction, NodeEvent};
use dg_runtime::logic::cluster::planner::{Choice, Planner, Supply};
use dg_runtime::logic::cluster::{ClientId, JobId, ModelHash, NodeId, RankId, Stamp};
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

mod compute;
mod network;

/// Rules that can be taken out, to see whether that is found out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The head drops what is said of another attempt, or by another process.
    pub(crate) epochs: bool,
    /// Ranks refuse what belongs to an older attempt than the newest they know.
    pub(crate) fences: bool,
    /// Ranks stop when the lease of their node is over.
    pub(crate) leases: bool,
}

/// Ranks side by side; a job's memory is shared out.
#[derive(Debug)]
pub(crate) struct Simple;

impl Planner for Simple {
    fn choose(&self, spec: &JobSpec, supply: Supply) -> Option<Choice> {
        let ranks = supply.ranks.min(spec.ranks_max) as u32;
        let memory_bytes = 500 + 8000 / u64::from(ranks.max(1));
        let fits = ranks as usize >= spec.ranks_min && ranks > 0 && memory_bytes <= supply.memory_bytes;
        let run = Duration::from_millis(u64::from(spec.steps) * 200) / ranks.max(1);
        fits.then_some(Choice {
            layout: Layout { ulysses: ranks, ..Layout::SERIAL },
            run,
            memory_bytes,
            is_streamed: false,
        })
    }
}

/// What is on its way.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Welcome,
    Refused(u64),
    Granted(u64, u64, Duration),
    Spawn(RankId, Stamp),
    Kill(RankId, Stamp),
    Order(RankId, Stamp, Stamp, Order),
}

#[derive(Clone, Debug)]
enum Happens {
    HeadTimer,
    ToHead(NodeId, Event),
    ToNode(NodeId, Message),
    AgentTimer(NodeId, u64),
    Hello(NodeId, u64),
    Idle,
    Spawned(RankId, u64),
    Loaded(RankId, u64),
    Step(RankId, u64),
    Submit(JobId),
    Cancel(JobId),
    Fault(Planned),
    Heal(Planned),
}

/// Something that is going to happen: in the order of time, then of being planned.
#[derive(Debug)]
struct Entry {
    at: Duration,
    order: u64,
    what: Happens,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One seed.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Duration,
    rng: Rng,
    rules: Rules,
    head: Head<Simple>,
    agents: Vec<Agent>,
    network: network::Network,
    /// When the head last heard each node.
    heard: Vec<Duration>,
    agenda: BinaryHeap<Reverse<Entry>>,
    next: u64,
    jobs: BTreeMap<JobId, JobSpec>,
    /// Jobs that clients have submitted.
    submitted: BTreeSet<JobId>,
    /// How many reasons there are for the head not to run.
    head_down: u32,
    faults_until: Duration,
    pub(crate) checker: Checker,
    pub(crate) counts: Counts,
    pub(crate) log: Option<Vec<String>>,
}

pub(crate) fn times() -> HeadTimes {
    HeadTimes {
        epoch: EpochTimes {
            prepare_max: Duration::from_secs(10),
            group_max: Duration::from_secs(5),
            quiet_first: Duration::from_secs(6),
            quiet_min: Duration::from_secs(4),
            ..EpochTimes::default()
        },
        respawn: Duration::from_millis(400),
        patience: Duration::from_secs(60),
        ..HeadTimes::default()
    }
}

impl World {
    pub(crate) fn new(seed: u64, rules: Rules, has_log: bool) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = rng.range(1, 5) as usize;
        let slots = rng.range(1, 4) as u16;
        let times = times();
        let agent = |rng: &mut Rng| {
            Agent::new(slots, rng.range(950, 1050), Duration::from_millis(rng.range(0, 100_000)), times.lease)
        };
        let agents = (0..nodes).map(|_| agent(&mut rng)).collect();
        let mut world = Self {
            now: Duration::ZERO,
            rules,
            head: Head::new(1, times, Simple),
            agents,
            network: network::Network::new(&mut rng, nodes),
            heard: vec![Duration::ZERO; nodes],
            agenda: BinaryHeap::new(),
            next: 0,
            jobs: BTreeMap::new(),
            submitted: BTreeSet::new(),
            head_down: 0,
            faults_until: Duration::ZERO,
            checker: Checker::default(),
            counts: Counts::default(),
            log: has_log.then(Vec::new),
            rng,
        };
        world.populate(nodes, slots);
        world
    }

    fn populate(&mut self, nodes: usize, slots: u16) {
        for node in (0..nodes as u32).map(NodeId) {
            let at = Duration::from_millis(self.rng.range(0, 300));
            self.at(at, Happens::AgentTimer(node, 1));
            self.at(at, Happens::Hello(node, 1));
        }
        self.at(Duration::from_millis(500), Happens::Idle);
        let all = nodes as u64 * u64::from(slots);
        for number in 1..=self.rng.range(1, 6) {
            let spec = JobSpec {
                client: ClientId(self.rng.range(0, 2) as u32),
                priority: self.rng.range(0, 2) as u8,
                model: ModelHash(1),
                kind: None,
                steps: self.steps(),
                ranks_min: self.rng.range(1, 1 + all.min(3)) as usize,
                ranks_max: self.rng.range(3, 7) as usize,
                work: None,
                ask: None,
            };
            let (job, at) =
                (JobId(number), Duration::from_millis(1000 + 1500 * (number - 1) + self.rng.range(0, 1400)));
            let truth = Truth::new(spec.steps, spec.ranks_min);
            self.checker.jobs.insert(job, truth);
            self.jobs.insert(job, spec);
            self.at(at, Happens::Submit(job));
            if self.rng.percent(20) {
                self.at(at + Duration::from_millis(7), Happens::Submit(job));
            }
        }
        for planned in faults::plan(&mut self.rng, nodes, slots, 12_000) {
            self.checker.has_faults = true;
            self.faults_until = self.faults_until.max(planned.at + planned.lasts * 8);
            self.at(planned.at, Happens::Fault(planned));
        }
    }

    /// Some jobs outlast a lease.
    fn steps(&mut self) -> u32 {
        let most = if self.rng.percent(25) { 300 } else { 60 };
        self.rng.range(5, most) as u32
    }

    fn at(&mut self, at: Duration, what: Happens) {
        self.next += 1;
        let (at, order) = (at.max(self.now), self.next);
        self.agenda.push(Reverse(Entry { at, order, what }));
    }

    fn after_ms(&mut self, low: u64, high: u64, what: Happens) {
        let wait = Duration::from_micros(self.rng.range(low * 1000, high * 1000));
        self.at(self.now + wait, what);
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(Reverse(Entry { at, what, .. })) = self.agenda.pop() {
            self.now = at;
            if at > HORIZON || (self.checker.is_finished() && at > self.faults_until.min(LONG_ENOUGH)) {
                break;
            }
            self.counts.events += 1;
            if let Some(log) = &mut self.log {
                log.push(format!("{at:>12.3?} {what:?}"));
            }
            self.happens(what)?;
        }
        self.counts.epochs = self.checker.epochs;
        self.checker.finished()
    }

    fn happens(&mut self, what: Happens) -> Result<(), String> {
        match what {
            Happens::HeadTimer => self.tell_head(Event::Tick),
            Happens::ToHead(node, event) => self.arrive_at_head(node, event),
            Happens::ToNode(node, message) => self.arrive_at_node(node, message),
            Happens::AgentTimer(node, incarnation) => {
                if self.agents[node.0 as usize].incarnation == incarnation {
                    self.keep(node, NodeEvent::Tick);
                }
                Ok(())
            }
            Happens::Hello(node, incarnation) => {
                self.hello(node, incarnation);
                Ok(())
            }
            Happens::Idle => self.idle(),
            Happens::Spawned(rank, version) => {
                let there = self.rank(rank);
                if let (true, Some(start)) = (there.version == version, there.process) {
                    self.send_up(rank.node, Event::Spawned(rank, start));
                }
                Ok(())
            }
            Happens::Loaded(rank, version) => {
                self.loaded(rank, version);
                Ok(())
            }
            Happens::Step(rank, version) => self.step(rank, version),
            Happens::Submit(job) if self.checker.is_over(job) => Ok(()),
            Happens::Submit(job) => {
                self.submitted.insert(job);
                self.tell_head(Event::Submit(job, self.jobs[&job].clone()))
            }
            Happens::Cancel(job) => self.tell_head(Event::Cancel(job)),
            Happens::Fault(planned) => {
                self.fault(planned);
                Ok(())
            }
            Happens::Heal(planned) => self.heal(planned),
        }
    }

    /// The head decides, and what it decides is done.
    fn tell_head(&mut self, event: Event) -> Result<(), String> {
        if self.head_down > 0 {
            return Ok(());
        }
        for action in self.head.handle(event, self.now) {
            if let Some(log) = &mut self.log {
                log.push(format!("{:>12} → {action:?}", ""));
            }
            self.checker.action(&self.head, &action, self.now)?;
            match action {
                Action::SetTimer(at) => self.at(at, Happens::HeadTimer),
                Action::Welcome(node) => self.send_down(node, Message::Welcome),
                Action::RefuseNode(node, incarnation) => self.send_down(node, Message::Refused(incarnation)),
                Action::Grant { node, seq, ttl } => {
                    self.send_down(node, Message::Granted(self.head.term(), seq, ttl));
                }
                Action::Spawn(rank, start) => self.send_down(rank.node, Message::Spawn(rank, start)),
                Action::Kill(rank, start) => self.send_down(rank.node, Message::Kill(rank, start)),
                Action::Order(rank, start, epoch, order) => {
                    self.send_down(rank.node, Message::Order(rank, start, epoch, order));
                }
                Action::Finish(_, end) => match end {
                    End::Done => self.counts.done += 1,
                    End::Cancelled => self.counts.cancelled += 1,
                    End::Failed(failure) => {
                        self.counts.failed += 1;
                        *self.counts.failures.entry(kind(&failure)).or_default() += 1;
                    }
                },
                Action::Resumed(..) => self.counts.resumed += 1,
                Action::Disconnect(_)
                | Action::Refuse(..)
                | Action::Kept(..)
                | Action::Drained(_)
                | Action::Bad(_) => {}
            }
        }
        Ok(())
    }

    /// The head hears an event; without the rule of epochs, as if all that is said were of the present one.
    fn arrive_at_head(&mut self, node: NodeId, event: Event) -> Result<(), String> {
        self.heard[node.0 as usize] = self.now;
        let Event::Said(rank, start, epoch, say) = event else { return self.tell_head(event) };
        let job = match self.head.registry().process(rank) {
            dg_runtime::logic::cluster::registry::Process::Busy(_, job) => Some(job),
            _ => None,
        };
        let current = job.and_then(|job| self.head.job(job)).and_then(|job| job.epoch());
        let (current, before) =
            (current.map(|epoch| epoch.stamp), current.map(|epoch| (epoch.phase, epoch.step)));
        let is_stale = current.is_some_and(|current| current != epoch);
        self.counts.stale += u64::from(is_stale);
        if self.rules.epochs {
            self.tell_head(Event::Said(rank, start, epoch, say))?;
        } else {
            let start = self.head.registry().start(rank).unwrap_or(start);
            self.tell_head(Event::Said(rank, start, current.unwrap_or(epoch), say))?;
        }
        let after = job.and_then(|job| self.head.job(job)).and_then(|job| job.epoch());
        let after = after.map(|epoch| (epoch.phase, epoch.step));
        if is_stale && before != after {
            return Err(format!(
                "{rank} moves {job:?} from {before:?} to {after:?} by what it says of {epoch:?}"
            ));
        }
        Ok(())
    }

    /// The head starts again and knows nothing; clients submit again what is not over.
    fn restart_head(&mut self) -> Result<(), String> {
        self.head_down -= 1;
        if self.head_down > 0 {
            return Ok(());
        }
        self.head = Head::new(self.head.term() + 1, times(), Simple);
        self.heard.fill(self.now);
        self.checker.forget();
        for job in self.submitted.clone() {
            if !self.checker.is_over(job) {
                self.tell_head(Event::Submit(job, self.jobs[&job].clone()))?;
            }
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), String> {
        for node in (0..self.agents.len() as u32).map(NodeId) {
            let index = node.0 as usize;
            let facts = self.head.registry().node(node).filter(|node| node.is_up);
            if let Some(incarnation) = facts.map(|node| node.facts.incarnation)
                && self.now > self.heard[index] + IDLE
            {
                self.tell_head(Event::Closed(node, incarnation))?;
            }
        }
        self.at(self.now + Duration::from_millis(500), Happens::Idle);
        Ok(())
    }

    /// The lease of a node at the node.
    fn keep(&mut self, node: NodeId, event: NodeEvent) {
        let index = node.0 as usize;
        let agent = &mut self.agents[index];
        if !agent.is_alive {
            return;
        }
        let clock = agent.clock(self.now);
        for action in agent.keeper.handle(event, clock) {
            let agent = &mut self.agents[index];
            let incarnation = agent.incarnation;
            match action {
                NodeAction::Renew { seq } => self.send_up(node, Event::Renew(node, incarnation, seq)),
                NodeAction::Fence if self.rules.leases => {
                    agent.ranks.iter_mut().for_each(|rank| rank.close());
                }
                NodeAction::Kill if self.rules.leases => self.kill_busy(node),
                NodeAction::Fence | NodeAction::Kill => {}
                NodeAction::Exit => {
                    agent.kill();
                    self.after_ms(500, 1500, Happens::Heal(restart(index)));
                }
                NodeAction::SetTimer(clock) => {
                    let at = agent.when(clock);
                    self.at(at, Happens::AgentTimer(node, incarnation));
                }
            }
        }
    }
}

fn kind(failure: &Failure) -> &'static str {
    match failure {
        Failure::NoProgress { .. } => "no progress",
        Failure::Memory { .. } => "memory",
        Failure::NoRanks => "no ranks",
    }
}

/// An agent that starts again.
fn restart(node: usize) -> Planned {
    Planned { at: Duration::ZERO, fault: faults::Fault::AgentCrash, node, slot: 0, lasts: Duration::ZERO }
}

pub(crate) fn lease() -> LeaseTimes {
    times().lease
}

/// Connections end after so much silence.
const IDLE: Duration = Duration::from_millis(2500);
/// All has to be over by then.
const HORIZON: Duration = Duration::from_secs(400);
/// What runs on when all jobs are over is watched for so long.
const LONG_ENOUGH: Duration = Duration::from_secs(12);
