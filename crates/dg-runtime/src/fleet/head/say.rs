//! What agents and ranks say.

use super::actor::State;
use super::clients::Tell;
use super::guests::Admission;
use super::node::RankInfo;
use crate::fleet::protocol::{AgentFacts, RankSay, Up};
use crate::logic::cluster::epoch::{Say, State as Member, Trouble};
use crate::logic::cluster::head::{Event, LOG_LINES_MAX};
use crate::logic::cluster::registry::Process;
use crate::logic::cluster::{JobId, RankId, Stamp};
use bytes::Bytes;
use dg_net::bus::Link;
use dg_net::wire;
use std::time::Instant;

impl State {
    /// Whether a node that knocks is let in.
    pub(super) fn admit(&self, name: &str, incarnation: u64) -> Admission {
        let Some(node) = self.node(name) else {
            return Err(format!("the cluster's file has no node `{name}`"));
        };
        if self.is_going_down {
            return Err("the cluster goes down".into());
        }
        if node.incarnation > incarnation {
            return Err(format!("a newer agent of node `{name}` is known"));
        }
        Ok(node.spec.clone())
    }

    pub(super) fn joined(&mut self, name: &str, incarnation: u64, mut facts: AgentFacts, link: Link) {
        let Some(node) = self.node_mut(name) else { return };
        if node.incarnation > incarnation {
            return;
        }
        let is_new = node.incarnation != incarnation;
        // Others hold the older link too.
        if let Some(old) = node.link.replace(link) {
            old.close("the node has connected anew");
        }
        let before = std::mem::replace(&mut node.incarnation, incarnation);
        let was_in = std::mem::take(&mut node.is_in);
        // Ranks that a head with other settings has started: their agent kills them when it hears of these.
        if facts.spec.as_ref().is_some_and(|spec| !node.spec.suits_ranks_of(spec)) {
            facts.running.clear();
        }
        node.facts = Some(facts);
        if is_new {
            node.models.clear();
            node.ranks.fill(RankInfo::default());
        }
        let id = node.id;
        self.launcher.joined(name);
        if was_in {
            self.logic_event(Event::Closed(id, before));
            self.look_again_at_probes();
        }
    }

    pub(super) fn closed(&mut self, name: &str, incarnation: u64, reason: &str) {
        let Some(node) = self.node_mut(name).filter(|node| node.incarnation == incarnation) else { return };
        let is_over = node.link.as_ref().is_none_or(|link| link.close_reason().is_some());
        // Otherwise it was an older connection.
        if is_over {
            self.lost(name, incarnation, reason);
        }
    }

    /// This incarnation of a node is not connected any more.
    pub(super) fn lost(&mut self, name: &str, incarnation: u64, reason: &str) {
        let Some(node) = self.node_mut(name).filter(|node| node.incarnation == incarnation) else { return };
        let was_in = std::mem::take(&mut node.is_in);
        let (id, had_link) = (node.id, node.link.take().is_some());
        if had_link && !self.is_going_down {
            let event = self
                .node(name)
                .map(|n| n.event("node_lost", format!("the connection to {name} ended: {reason}")));
            self.events.extend(event);
            self.see_to_agent(name);
        }
        if was_in {
            self.logic_event(Event::Closed(id, incarnation));
            self.look_again_at_probes();
        }
        self.end_if_alone();
    }

    pub(super) fn said(&mut self, name: &str, incarnation: u64, bytes: &[u8], body: Bytes) {
        let up = match wire::decode::<Up>(bytes) {
            Ok(up) => up,
            Err(error) => {
                if self.quiet.allows(Instant::now()) {
                    tracing::warn!(node = name, %error, "a message that is not understood");
                }
                return;
            }
        };
        let Some(node) = self.node_mut(name).filter(|node| node.incarnation == incarnation) else { return };
        let id = node.id;
        let is_slot = |slot: u16| slot < node.spec.slots;
        match up {
            Up::Renew(seq, uses) => {
                for rank in uses {
                    if let Some(info) = node.ranks.get_mut(usize::from(rank.slot)) {
                        (info.memory, info.gpu) = (rank.memory, rank.gpu);
                    }
                }
                self.logic_event(Event::Renew(id, incarnation, seq));
            }
            Up::Spawned(slot, start, pid) if is_slot(slot) => {
                self.spawned(RankId { node: id, slot }, start, pid);
            }
            Up::Exited(slot, start, how, lines) if is_slot(slot) => {
                self.exited(RankId { node: id, slot }, start, &how, lines);
            }
            Up::Said(slot, start, epoch, say) if is_slot(slot) => {
                self.rank_said(RankId { node: id, slot }, start, epoch, say, body);
            }
            Up::Model(model, card) => self.has_model(name, model, card),
            Up::Spawned(..) | Up::Exited(..) | Up::Said(..) => {}
        }
    }

    fn spawned(&mut self, rank: RankId, start: Stamp, pid: u32) {
        if self.logic.registry().start(rank) == Some(start)
            && let Some(info) = self.info(rank)
            && info.pid != Some(pid)
        {
            *info = RankInfo { pid: Some(pid), ..RankInfo::default() };
            let message = format!("{} runs as process {pid}", self.rank_name(rank));
            let event = self.rank_event("rank_started", rank, message);
            self.events.push(event);
            if let Some(since) = self.spawning.remove(&start) {
                self.logic.set_respawn(since.elapsed() + LOADING_GUESS);
            }
        }
        self.logic_event(Event::Spawned(rank, start));
    }

    fn exited(&mut self, rank: RankId, start: Stamp, how: &str, mut lines: Vec<String>) {
        let how = short(how, LINE_CHARS_MAX);
        lines.drain(..lines.len().saturating_sub(LOG_LINES_MAX));
        lines.iter_mut().for_each(|line| *line = short(line, LINE_CHARS_MAX));
        if self.logic.registry().start(rank) == Some(start) {
            let process = self.logic.registry().process(rank);
            if let Some(info) = self.info(rank) {
                *info = RankInfo::default();
            }
            let message = format!("the process of {} ended: {how}", self.rank_name(rank));
            let mut event = self.rank_event("rank_lost", rank, message.clone());
            if let Process::Busy(_, job) = process {
                event.job = Some(job.to_string());
                self.tell_client(job, "rank_lost", &message);
            }
            self.events.push(event);
        }
        self.spawning.remove(&start);
        lines.push(format!("({how})"));
        self.logic_event(Event::Exited(rank, start, lines));
    }

    fn rank_said(&mut self, rank: RankId, start: Stamp, epoch: Stamp, say: RankSay, body: Bytes) {
        if self.logic.registry().start(rank) != Some(start) {
            return;
        }
        let is_member = self.groups.get(&epoch).is_some_and(|group| group.has(rank));
        if !is_member && !matches!(say, RankSay::Stopped | RankSay::Failed(_)) {
            return tracing::debug!(?rank, ?epoch, "a rank speaks of an attempt that it has no part in");
        }
        let say = match say {
            RankSay::Prepared { member, .. } => {
                self.prepared(rank, epoch, member);
                Say::Prepared
            }
            RankSay::Grouped => Say::Grouped,
            RankSay::Progress(step) => {
                let step = step.min(self.steps_of(epoch));
                self.progress(rank, epoch, step);
                if let Some(info) = self.info(rank) {
                    info.step = step;
                }
                Say::Progress(step)
            }
            RankSay::Alive => Say::Alive,
            RankSay::Checkpoint(step) => match self.part(epoch, step, &body) {
                Some(at) => Say::Checkpoint(step, at),
                None => return,
            },
            RankSay::Event(text) => {
                if text.len() <= EVENT_BYTES_MAX
                    && let Some(entry) = self.job_of(epoch).and_then(|job| self.jobs.get(&job))
                {
                    entry.sink.tell(Tell::Event(text), Bytes::new());
                }
                return;
            }
            RankSay::Done => {
                self.done(rank, epoch, body);
                Say::Done
            }
            RankSay::Stopped => Say::Stopped,
            RankSay::Failed(trouble) => {
                let trouble = match trouble {
                    Trouble::Error(text) => Trouble::Error(short(&text, LINES_CHARS_MAX)),
                    other => other,
                };
                if let (Some(job), Trouble::Error(text)) = (self.job_of_member(rank, epoch), &trouble) {
                    let message = format!("{}: {text}", self.rank_name(rank));
                    self.job_notice(job, "rank_failed", &message, None);
                }
                Say::Failed(trouble)
            }
        };
        self.logic_event(Event::Said(rank, start, epoch, say));
    }

    /// The job of an attempt that this rank works for, and has not left.
    fn job_of_member(&self, rank: RankId, epoch: Stamp) -> Option<JobId> {
        let job = self.job_of(epoch)?;
        let attempt = self.logic.job(job)?.epoch().filter(|attempt| attempt.stamp == epoch)?;
        matches!(attempt.state(rank)?, Member::Working | Member::Answered).then_some(job)
    }

    fn info(&mut self, rank: RankId) -> Option<&mut RankInfo> {
        self.node_at_mut(rank.node)?.ranks.get_mut(usize::from(rank.slot))
    }
}

/// So much of a text from elsewhere.
fn short(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

/// A step event as JSON.
const EVENT_BYTES_MAX: usize = 4 << 10;
const LINE_CHARS_MAX: usize = 300;
const LINES_CHARS_MAX: usize = 6000;
/// What loading is taken to last, on top of starting a process.
const LOADING_GUESS: std::time::Duration = std::time::Duration::from_millis(300);
