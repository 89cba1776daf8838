//! The actor of an agent.

use super::super::protocol::{
    AgentAsk, Down, LogLines, NodeSpec, RankIn, RankOrder, RankOut, RankSay, RankUse, Up,
};
use super::dial::{self, Running};
use super::gpus::Gauge;
use super::ranks::Rank;
use super::{AgentArgs, AgentError};
use crate::fleet::job::ModelCard;
use crate::logic::cluster::Stamp;
use crate::logic::cluster::lease::{Keeper, LeaseTimes, NodeAction, NodeEvent};
use bytes::Bytes;
use dg_net::bus::{Link, Received};
use dg_net::endpoint::Endpoint;
use dg_net::identity::{Admitted, Identity};
use dg_net::wire;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What the actor hears.
pub(super) enum Message {
    /// A head has taken the node.
    Connected(Link, Box<NodeSpec>, u64),
    /// The connection to it is gone.
    Lost(String),
    /// It says something.
    Heard(Received),
    /// A rank says something.
    FromRank(u16, Stamp, RankOut, Bytes),
    /// A rank has ended, for this reason.
    Gone(u16, Stamp, String),
    /// A model was looked for.
    Model(String, Result<String, String>),
    /// Time has passed.
    Tick,
    /// The agent is to end: nicely.
    Stop,
}

impl ractor::Message for Message {}

pub(super) async fn run(
    args: AgentArgs,
    identity: Identity,
    incarnation: u64,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    let local = if args.head.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let local = local.parse().map_err(|_| AgentError::System("no local address".into()))?;
    let endpoint = Endpoint::dialer(local, &identity, Admitted::everyone(), args.options.clone())?;
    let (ended, end) = oneshot::channel::<Ended>();
    let running = Running::default();
    let arguments = (args.clone(), running.clone(), ended);
    let (actor, joined) =
        Actor::spawn(None, AgentActor, arguments).await.map_err(|e| AgentError::System(e.to_string()))?;
    let dialling = tokio::spawn(dial::dial(args, endpoint.clone(), incarnation, running, actor.clone()));
    let result = tokio::select! {
        biased;
        ended = end => ended.unwrap_or_else(|_| Err(AgentError::System(GONE.into()))),
        dialled = dialling => Err(dialled.unwrap_or_else(|e| AgentError::System(e.to_string()))),
        () = stop => {
            let _ = actor.cast(Message::Stop);
            Ok(())
        }
    };
    actor.stop(None);
    let _ = tokio::time::timeout(Duration::from_secs(3), joined).await;
    // So that the head need not wait for silence.
    endpoint.close("the agent ends").await;
    result
}

/// How the agent ends: told to, or with a reason.
type Ended = Result<(), AgentError>;

struct AgentActor;

struct State {
    args: AgentArgs,
    begin: Instant,
    link: Option<Link>,
    spec: Option<NodeSpec>,
    term: u64,
    keeper: Keeper,
    ranks: BTreeMap<u16, Rank>,
    /// Slots that had a process before.
    had: BTreeSet<u16>,
    /// From the first lease of a node with GPUs on.
    gauge: Option<Gauge>,
    running: Running,
    timer: Option<tokio::task::JoinHandle<()>>,
    ended: Option<oneshot::Sender<Ended>>,
}

impl Actor for AgentActor {
    type Msg = Message;
    type State = State;
    type Arguments = (AgentArgs, Running, oneshot::Sender<Ended>);

    async fn pre_start(
        &self,
        me: ActorRef<Message>,
        (args, running, ended): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let keeper = Keeper::new(LeaseTimes::default(), Duration::ZERO);
        let _ = me.cast(Message::Tick);
        let begin = Instant::now();
        let (ranks, had) = (BTreeMap::new(), BTreeSet::new());
        let ended = Some(ended);
        Ok(State {
            args,
            begin,
            link: None,
            spec: None,
            term: 0,
            keeper,
            ranks,
            had,
            gauge: None,
            running,
            timer: None,
            ended,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Connected(link, spec, term) => state.connected(link, *spec, term, &me),
            Message::Lost(reason) => {
                tracing::warn!(reason, "the connection to the head is lost");
                state.link = None;
            }
            Message::Heard(Received::Cast(bytes)) => state.heard(&bytes, Bytes::new(), &me),
            Message::Heard(Received::Bulk(bytes, body)) => state.heard(&bytes, body, &me),
            Message::Heard(Received::Call(bytes, reply)) => {
                let lines = match wire::decode::<AgentAsk>(&bytes) {
                    Ok(AgentAsk::Logs(Some(slot), after)) => state.lines(slot, after),
                    Ok(AgentAsk::Logs(None, _)) | Err(_) => LogLines::default(),
                };
                let _ = reply.send(&lines);
            }
            Message::FromRank(slot, start, RankOut::Ready, _) => {
                if let Some(rank) = state.rank(slot, start) {
                    let spawned = Up::Spawned(slot, start, rank.pid);
                    state.say(&spawned);
                }
            }
            Message::FromRank(slot, start, RankOut::Said(epoch, say), body) => {
                state.said(slot, start, epoch, say, body);
            }
            Message::Gone(slot, start, how) => state.gone(slot, start, how),
            Message::Model(name, result) => {
                state.say(&Up::Model(name, result));
                // A head that has just taken the node knows which ranks run, not which processes they are.
                for (slot, rank) in &state.ranks {
                    state.say(&Up::Spawned(*slot, rank.start, rank.pid));
                }
            }
            Message::Tick => state.keep(NodeEvent::Tick, &me),
            Message::Stop => state.end(Ok(())),
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.ranks.values_mut().for_each(Rank::kill);
        // Processes that are dying are waited for by their watchers; give them a moment.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    }
}

impl State {
    fn connected(&mut self, link: Link, spec: NodeSpec, term: u64, me: &ActorRef<Message>) {
        tracing::info!(term, slots = spec.slots, "the head has taken this node");
        let lease = spec.lease;
        let times = LeaseTimes {
            ttl: lease.ttl,
            renew: lease.renew,
            margin: lease.margin,
            grace: lease.grace,
            alone_max: lease.alone_max,
        };
        self.keeper.set_times(times, self.begin.elapsed());
        if self.spec.as_ref().is_some_and(|old| !spec.suits_ranks_of(old)) && !self.ranks.is_empty() {
            tracing::info!("the head has other settings: its ranks are started anew");
            // It does not count on them: it was told what they were started for. Their watchers see to their end.
            self.ranks.values_mut().for_each(Rank::kill);
            self.ranks.clear();
        }
        (self.link, self.term) = (Some(link), term);
        if let Some(model) = spec.model.clone() {
            self.probe(model, me);
        } else {
            self.say(&Up::Model(String::new(), Err("the file names no model".into())));
        }
        self.spec = Some(spec);
        self.tell_running();
        self.keep(NodeEvent::Head { term }, me);
    }

    fn probe(&self, name: String, me: &ActorRef<Message>) {
        let (open, me) = (self.args.open.clone(), me.clone());
        tokio::task::spawn_blocking(move || {
            let card = open(&name).map(|repo| ModelCard::of(&repo));
            let card = card.and_then(|card| serde_json::to_string(&card).map_err(|e| e.to_string()));
            let _ = me.cast(Message::Model(name, card));
        });
    }

    fn heard(&mut self, bytes: &[u8], body: Bytes, me: &ActorRef<Message>) {
        let down = match wire::decode::<Down>(bytes) {
            Ok(down) => down,
            Err(error) => return tracing::warn!(%error, "the head says something that is not understood"),
        };
        match down {
            Down::Granted { seq, ttl } => {
                let term = self.term;
                self.keep(NodeEvent::Granted { term, seq, ttl }, me);
            }
            Down::Spawn(slot, start) => self.spawn(slot, start, me),
            Down::Kill(slot, start) => match self.rank(slot, start) {
                Some(rank) => rank.kill(),
                None => self.say(&Up::Exited(slot, start, "it does not run".into(), Vec::new())),
            },
            Down::Order(slot, start, epoch, order) => {
                if let Some(rank) = self.rank(slot, start) {
                    rank.is_busy |= !matches!(order, RankOrder::Abort);
                    rank.send(RankIn::Order(epoch, order), body);
                }
            }
            Down::Probe(name) => self.probe(name, me),
            Down::Exit => self.end(Ok(())),
        }
    }

    fn spawn(&mut self, slot: u16, start: Stamp, me: &ActorRef<Message>) {
        let is_ending = self.ended.is_none();
        let Some(spec) = self.spec.as_ref().filter(|spec| slot < spec.slots && !is_ending) else { return };
        match self.ranks.get_mut(&slot) {
            // Asked again: it says that it is there when it is.
            Some(rank) if rank.start == start => {
                let spawned = Up::Spawned(slot, start, rank.pid);
                return self.say(&spawned);
            }
            Some(rank) if rank.start > start => return,
            Some(rank) => rank.kill(),
            None => {}
        }
        let is_first = !self.had.contains(&slot);
        match Rank::spawn(&self.args, spec, (slot, start), is_first, me) {
            Ok(rank) => {
                tracing::info!(slot, pid = rank.pid, "a rank is started");
                self.had.insert(slot);
                self.ranks.insert(slot, rank);
                self.tell_running();
            }
            Err(error) => {
                let how = format!("it cannot be started: {error}");
                self.say(&Up::Exited(slot, start, how, Vec::new()));
            }
        }
    }

    fn said(&mut self, slot: u16, start: Stamp, epoch: Stamp, say: RankSay, body: Bytes) {
        let Some(rank) = self.rank(slot, start) else { return };
        if matches!(say, RankSay::Done | RankSay::Stopped | RankSay::Failed(_)) {
            (rank.is_busy, rank.must_stop) = (false, false);
        }
        let up = Up::Said(slot, start, epoch, say);
        if body.is_empty() {
            return self.say(&up);
        }
        if let Some(link) = self.link.clone() {
            tokio::spawn(async move {
                if let Err(error) = link.bulk(&up, body).await {
                    tracing::warn!(%error, "a result did not reach the head");
                }
            });
        }
    }

    fn gone(&mut self, slot: u16, start: Stamp, how: String) {
        let Some(rank) = self.rank(slot, start) else { return };
        let tail = rank.tail();
        tracing::warn!(slot, pid = rank.pid, how, "a rank has ended");
        self.ranks.remove(&slot);
        self.tell_running();
        let mut tail: Vec<String> = tail.into_iter().map(|line| line.chars().take(300).collect()).collect();
        tail.retain(|line: &String| !line.trim().is_empty());
        self.say(&Up::Exited(slot, start, how, tail));
    }

    fn rank(&mut self, slot: u16, start: Stamp) -> Option<&mut Rank> {
        self.ranks.get_mut(&slot).filter(|rank| rank.start == start)
    }

    fn lines(&self, slot: u16, after: u64) -> LogLines {
        let log = self.ranks.get(&slot).map(|rank| rank.log.clone());
        log.map(|log| log.lock().unwrap_or_else(PoisonError::into_inner).after(after)).unwrap_or_default()
    }

    fn tell_running(&self) {
        let all = self.ranks.iter().map(|(slot, rank)| (*slot, rank.start)).collect();
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = (all, self.spec.clone());
    }

    /// What does not reach the head is said again, or was said by a connection that is over.
    fn say(&self, up: &Up) {
        if let Some(link) = &self.link
            && let Err(error) = link.cast(up)
        {
            tracing::debug!(%error, "the head does not hear");
        }
    }

    /// The lease of the node.
    fn keep(&mut self, event: NodeEvent, me: &ActorRef<Message>) {
        if self.spec.is_none() {
            // Until a head has said how long leases are, there is none to lose; but nobody waits for ever.
            if self.begin.elapsed() > ALONE_AT_START_MAX {
                return self.end(Err(self.alone(ALONE_AT_START_MAX)));
            }
            return self.set_timer(Duration::from_secs(1), me);
        }
        let now = self.begin.elapsed();
        for action in self.keeper.handle(event, now) {
            match action {
                NodeAction::Renew { seq } => {
                    let uses = self.uses();
                    self.say(&Up::Renew(seq, uses));
                }
                NodeAction::Fence => {
                    tracing::warn!("the lease of this node is over: its ranks stop");
                    for rank in self.ranks.values_mut() {
                        rank.must_stop = rank.is_busy;
                        rank.send(RankIn::Fence, Bytes::new());
                    }
                }
                NodeAction::Kill => {
                    self.ranks.values_mut().filter(|rank| rank.must_stop).for_each(Rank::kill);
                }
                NodeAction::Exit => {
                    let max = self.spec.as_ref().map_or(ALONE_AT_START_MAX, |spec| spec.lease.alone_max);
                    self.end(Err(self.alone(max)));
                }
                NodeAction::SetTimer(at) => {
                    self.set_timer(at.saturating_sub(now) + Duration::from_millis(1), me);
                }
            }
        }
    }

    /// What the ranks use of this host. GPUs are read between one lease and the next.
    fn uses(&mut self) -> Vec<RankUse> {
        let gpus = self.spec.as_ref().and_then(|spec| spec.gpus.as_deref()).unwrap_or_default();
        let reading = match gpus {
            [] => BTreeMap::new(),
            gpus => self.gauge.get_or_insert_with(Gauge::start).next(gpus),
        };
        let used = |(slot, rank): (&u16, &Rank)| RankUse {
            slot: *slot,
            memory: crate::memory::ProcessMemory::of(Some(rank.pid)).rss,
            gpu: gpus.get(usize::from(*slot)).and_then(|gpu| reading.get(gpu)).copied(),
        };
        self.ranks.iter().map(used).collect()
    }

    /// There is one timer: a new one takes its place.
    fn set_timer(&mut self, wait: Duration, me: &ActorRef<Message>) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let me = me.clone();
        self.timer = Some(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = me.cast(Message::Tick);
        }));
    }

    fn alone(&self, max: Duration) -> AgentError {
        AgentError::Alone { node: self.args.name.clone(), head: self.args.head.clone(), max }
    }

    fn end(&mut self, how: Ended) {
        self.ranks.values_mut().for_each(Rank::kill);
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(how);
        }
    }
}

/// The actor ends by itself only if it has panicked.
pub(super) const GONE: &str = "the agent has failed: its log has the reason";
/// How long an agent that has never had a head looks for one.
const ALONE_AT_START_MAX: Duration = Duration::from_secs(600);
