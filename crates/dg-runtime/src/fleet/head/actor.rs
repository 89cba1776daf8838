//! The actor of a head.

use super::clients::{Ask, Sink};
use super::events::EventLog;
use super::guests::Admission;
use super::jobs::{Group, JobEntry};
use super::launch::Launcher;
use super::models::Probe;
use super::node::Node;
use super::{HeadArgs, HeadError};
use crate::fleet::protocol::{AgentFacts, Down};
use crate::logic::cluster::head::{Event, Head, HeadTimes};
use crate::logic::cluster::planner::AskPlanner;
use crate::logic::cluster::{JobId, NodeId, Stamp};
use crate::placed::Placed;
use bytes::Bytes;
use dg_config::ClusterFile;
use dg_net::bus::Link;
use dg_net::quiet::Quiet;
use dg_plan::Machine;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What the actor hears.
pub(super) enum Message {
    /// A node knocks.
    Guest(String, u64, oneshot::Sender<Admission>),
    /// Its actors have joined.
    Joined(String, u64, Box<AgentFacts>, Link),
    /// The agent of this incarnation says something.
    Said(String, u64, Vec<u8>, Bytes),
    /// The connection to it is gone.
    Closed(String, u64, String),
    /// A client asks something.
    Ask(String, Ask, Bytes, Sink),
    /// A client does not wait for its job any more.
    Gone(JobId),
    /// An agent that the head launched, or the ssh to it, has ended: which process, and how.
    AgentEnded(String, Option<u32>, String),
    /// An agent is to be launched again.
    Launch(String),
    /// Time has passed.
    Tick,
    /// The cluster is to end.
    Down,
    /// Now.
    Stop,
}

impl ractor::Message for Message {}

/// Whether somebody has asked the cluster to end: an actor that ends without is dead.
pub(super) type IsAsked = Arc<AtomicBool>;

pub(super) async fn start(
    args: HeadArgs,
    term: u64,
    address: String,
    is_asked: IsAsked,
) -> Result<(ActorRef<Message>, JoinHandle<()>), HeadError> {
    let started = Actor::spawn(None, HeadActor, (args, term, address, is_asked)).await;
    started.map_err(|e| HeadError::Bus(dg_net::bus::BusError::Start(e.to_string())))
}

struct HeadActor;

/// Everything that a head has.
pub(super) struct State {
    pub(super) me: ActorRef<Message>,
    pub(super) args: HeadArgs,
    pub(super) address: String,
    pub(super) begin: Instant,
    pub(super) logic: Head<AskPlanner>,
    pub(super) nodes: Vec<Node>,
    pub(super) jobs: BTreeMap<JobId, JobEntry>,
    /// Jobs that are over, the latest last.
    pub(super) past: VecDeque<JobEntry>,
    pub(super) groups: HashMap<Stamp, Group>,
    pub(super) next_job: u64,
    /// Of the jobs that wait or run.
    pub(super) queued_bytes: usize,
    pub(super) next_part: u64,
    /// When processes were told to start.
    pub(super) spawning: HashMap<Stamp, Instant>,
    pub(super) probes: BTreeMap<String, Probe>,
    pub(super) events: EventLog,
    pub(super) launcher: Launcher,
    pub(super) quiet: Quiet,
    timer: Option<JoinHandle<()>>,
    pub(super) is_going_down: bool,
    is_asked: IsAsked,
}

impl Actor for HeadActor {
    type Msg = Message;
    type State = State;
    type Arguments = (HeadArgs, u64, String, IsAsked);

    async fn pre_start(
        &self,
        me: ActorRef<Message>,
        (args, term, address, is_asked): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let nodes = Node::all(&args.file, args.model.as_deref());
        let planner = AskPlanner { machine: machine(&args.file) };
        let mut state = State {
            logic: Head::new(term, times(&args.file), planner),
            nodes,
            jobs: BTreeMap::new(),
            past: VecDeque::new(),
            groups: HashMap::new(),
            next_job: term << 32,
            next_part: 0,
            queued_bytes: 0,
            spawning: HashMap::new(),
            probes: BTreeMap::new(),
            events: EventLog::open(&args.state_dir),
            launcher: Launcher::new(&args, &address),
            quiet: Quiet::default(),
            timer: None,
            is_going_down: false,
            is_asked,
            begin: Instant::now(),
            me,
            args,
            address,
        };
        let event = super::LogEvent {
            kind: "head_started",
            message: format!("the head listens on {}", state.address),
            ..super::LogEvent::default()
        };
        state.events.push(event);
        state.launch_all();
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Guest(name, incarnation, answer) => {
                let _ = answer.send(state.admit(&name, incarnation));
            }
            Message::Joined(name, incarnation, facts, link) => state.joined(&name, incarnation, *facts, link),
            Message::Said(name, incarnation, bytes, body) => state.said(&name, incarnation, &bytes, body),
            Message::Closed(name, incarnation, reason) => state.closed(&name, incarnation, &reason),
            Message::Ask(client, ask, body, sink) => state.asked(&client, ask, &body, sink),
            Message::Gone(job) => state.client_gone(job),
            Message::AgentEnded(name, pid, how) => state.agent_ended(&name, pid, &how),
            Message::Launch(name) => state.launch(&name),
            Message::Tick => {
                state.timer = None;
                state.logic_event(Event::Tick);
                state.give_up_probes();
            }
            Message::Down => state.go_down(),
            Message::Stop => me.stop(None),
        }
        Ok(())
    }
}

impl State {
    /// The clock of all decisions.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Decides, and carries out.
    pub(super) fn logic_event(&mut self, event: Event) {
        let actions = self.logic.handle(event, self.now());
        for action in actions {
            self.carry_out(action);
        }
    }

    /// There is one timer: an earlier one takes its place.
    pub(super) fn set_timer(&mut self, at: Duration) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let wait = at.saturating_sub(self.now()) + Duration::from_millis(1);
        let me = self.me.clone();
        self.timer = Some(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = me.cast(Message::Tick);
        }));
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub(super) fn node_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    pub(super) fn node_at(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    pub(super) fn node_at_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)
    }

    /// Tells every agent to end, and ends when they are gone or have had their time.
    fn go_down(&mut self) {
        if std::mem::replace(&mut self.is_going_down, true) {
            return;
        }
        self.is_asked.store(true, Ordering::Release);
        let running: Vec<JobId> = self.jobs.keys().copied().collect();
        for job in running {
            self.logic_event(Event::Cancel(job));
        }
        for link in self.nodes.iter().filter_map(|node| node.link.as_ref()) {
            let _ = link.cast(&Down::Exit);
        }
        self.events.push(super::LogEvent {
            kind: "head_stopped",
            message: "the cluster goes down".into(),
            ..super::LogEvent::default()
        });
        let me = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DOWN_MAX).await;
            let _ = me.cast(Message::Stop);
        });
        self.end_if_alone();
    }

    /// Ends if the cluster goes down and no agent is left.
    pub(super) fn end_if_alone(&self) {
        if self.is_going_down && self.nodes.iter().all(|node| node.link.is_none()) {
            let me = self.me.clone();
            tokio::spawn(async move {
                // What clients were told is on its way.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let _ = me.cast(Message::Stop);
            });
        }
    }
}

/// The times of the file.
fn times(file: &ClusterFile) -> HeadTimes {
    let mut times = HeadTimes::default();
    let failure = &file.failure;
    times.lease.ttl = file.cluster.lease_ttl;
    times.epoch.quiet_min = failure.hang_min;
    times.epoch.quiet_first = failure.hang_first;
    times.epoch.quiet_steps = (failure.hang_factor.ceil() as u32).max(1);
    times.epoch.abort_grace = failure.abort_grace;
    times.process.deaths_max = failure.rank_deaths as usize;
    times.process.deaths_window = failure.rank_deaths_within;
    times.epoch.barren_max = failure.epochs_without_progress;
    times.respawn = RESPAWN_AT_FIRST;
    times
}

/// What ranks compute on, and what joins them.
fn machine(file: &ClusterFile) -> Machine {
    Placed::new(&file.nodes, file.ranks()).machine(&file.cluster.links, None)
}

/// How long agents have to end.
const DOWN_MAX: Duration = Duration::from_secs(5);
/// What starting a rank is taken to last until one was seen.
const RESPAWN_AT_FIRST: Duration = Duration::from_secs(3);
