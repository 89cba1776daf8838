//! Carrying out what the head has decided.

use super::actor::State;
use super::clients::Tell;
use super::events::Event;
use super::jobs::Life;
use crate::fleet::protocol::{Down, RankOrder, RankTeam};
use crate::logic::cluster::epoch::Order;
use crate::logic::cluster::head::{Action, Refusal};
use crate::logic::cluster::job::{End, Failure};
use crate::logic::cluster::{JobId, NodeId, RankId, Stamp};
use bytes::Bytes;
use dg_core::ExitCode;
use std::time::Instant;

impl State {
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Welcome(node) => {
                if let Some(event) =
                    self.node_at(node).map(|n| n.event("node_joined", format!("node {} is in", n.name)))
                {
                    self.events.push(event);
                }
            }
            Action::RefuseNode(node, incarnation) => {
                tracing::debug!(node = node.0, incarnation, "a lease is asked for before its node is in");
            }
            Action::Grant { node, seq, ttl } => self.tell(node, &Down::Granted { seq, ttl }),
            Action::Disconnect(node) => self.disconnect(node),
            Action::Spawn(rank, start) => {
                self.spawning.entry(start).or_insert_with(Instant::now);
                self.tell(rank.node, &Down::Spawn(rank.slot, start));
            }
            Action::Kill(rank, start) => self.tell(rank.node, &Down::Kill(rank.slot, start)),
            Action::Order(rank, start, epoch, order) => self.order(rank, start, epoch, &order),
            Action::Finish(job, end) => self.finish(job, end),
            Action::Refuse(job, refusal) => self.refuse(job, refusal),
            Action::Resumed(job, _, step) => self.resumed(job, step),
            Action::Kept(job, _, step) => self.kept(job, step),
            Action::Drained(node) => {
                if let Some(event) =
                    self.node_at(node).map(|n| n.event("node_drained", format!("nothing runs on {}", n.name)))
                {
                    self.events.push(event);
                }
            }
            Action::Bad(rank) => {
                let message =
                    format!("{} has failed too often and is not used any more", self.rank_name(rank));
                let event = self.rank_event("device_bad", rank, message);
                self.events.push(event);
            }
            Action::SetTimer(at) => self.set_timer(at),
        }
    }

    /// A node has not renewed its lease: the connection ends too, so that an agent that lives after all dials again.
    fn disconnect(&mut self, node: NodeId) {
        let Some(node) = self.node_at_mut(node) else { return };
        node.is_in = false;
        let event = node.event("node_lost", format!("node {} did not renew its lease", node.name));
        if let Some(link) = node.link.take() {
            link.close("the lease was not renewed");
        }
        let name = node.name.clone();
        self.events.push(event);
        // The end of this connection is old news then.
        self.see_to_agent(&name);
        self.look_again_at_probes();
    }

    /// Says something small to an agent.
    pub(super) fn tell(&self, node: NodeId, down: &Down) {
        let Some(link) = self.node_at(node).and_then(|node| node.link.as_ref()) else { return };
        if let Err(error) = link.cast(down) {
            tracing::debug!(%error, "an agent does not hear");
        }
    }

    fn order(&mut self, rank: RankId, start: Stamp, epoch: Stamp, order: &Order) {
        let (order, body) = match order {
            Order::Abort => (RankOrder::Abort, Bytes::new()),
            Order::Prepare(team) => {
                let is_new = self.begin_group(epoch, team).insert_sent(rank, 0);
                let team = self.rank_team(rank, team);
                let body = if is_new { self.job_body(epoch) } else { Bytes::new() };
                (RankOrder::Prepare(team), body)
            }
            Order::InitGroup => {
                let Some((key, members)) = self.group_members(epoch) else { return };
                (RankOrder::InitGroup { key, members }, Bytes::new())
            }
            Order::Run { from_step, .. } => {
                let is_new = self.groups.get_mut(&epoch).is_some_and(|group| group.insert_sent(rank, 2));
                let body = if is_new { self.latents(epoch, *from_step) } else { Bytes::new() };
                (RankOrder::Run { from_step: *from_step, is_again: !is_new }, body)
            }
        };
        if let Some(info) = self.node_at_mut(rank.node).and_then(|n| n.ranks.get_mut(usize::from(rank.slot)))
        {
            info.epoch = (!matches!(order, RankOrder::Abort)).then_some(epoch).or(info.epoch);
        }
        let down = Down::Order(rank.slot, start, epoch, order);
        if body.is_empty() {
            return self.tell(rank.node, &down);
        }
        let Some(link) = self.node_at(rank.node).and_then(|node| node.link.clone()) else { return };
        tokio::spawn(async move {
            if let Err(error) = link.bulk(&down, body).await {
                tracing::debug!(%error, "an order did not arrive");
            }
        });
    }

    fn rank_team(&self, rank: RankId, team: &crate::logic::cluster::epoch::Team) -> RankTeam {
        let place = team.members.iter().position(|member| *member == rank).unwrap_or(0);
        let node = |rank: &RankId| self.node_at(rank.node);
        RankTeam {
            job: team.job.0,
            me: u32::try_from(place).unwrap_or(u32::MAX),
            numbers: team.members.iter().filter_map(|r| Some(node(r)?.number(r.slot))).collect(),
            nodes: team.members.iter().filter_map(|r| Some(node(r)?.name.clone())).collect(),
            layout: team.layout,
            checkpoint_every: self.args.file.failure.checkpoint_every,
        }
    }

    fn finish(&mut self, id: JobId, end: End) {
        let Some(mut entry) = self.jobs.remove(&id) else { return };
        self.queued_bytes -= entry.bytes();
        let (kind, message) = match &end {
            End::Done => {
                for body in entry.dones() {
                    entry.sink.tell(Tell::Rank, body);
                }
                entry.sink.tell(Tell::Done, Bytes::new());
                entry.life = Life::Done;
                ("job_done", format!("job {id} is done"))
            }
            End::Cancelled => {
                entry.sink.tell(self.told_of_cancelling(), Bytes::new());
                entry.life = Life::Cancelled;
                ("job_cancelled", format!("job {id} is cancelled"))
            }
            End::Failed(failure) => {
                let (message, hint, exit) = self.explain(failure);
                entry
                    .sink
                    .tell(Tell::Failed { message: message.clone(), hint, exit: exit.code() }, Bytes::new());
                entry.life = Life::Failed(message.clone());
                ("job_failed", format!("job {id} failed: {message}"))
            }
        };
        let step = Some(entry.step);
        self.events.push(Event { kind, message, job: Some(id.to_string()), step, ..Event::default() });
        self.groups.retain(|_, group| group.job != id);
        entry.close();
        self.past.push_back(entry);
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
    }

    /// What the client of a cancelled job hears.
    fn told_of_cancelling(&self) -> Tell {
        if !self.is_going_down {
            return Tell::Cancelled;
        }
        let hint = Some("submit it again when the cluster is up".to_owned());
        Tell::Failed { message: "the cluster goes down".into(), hint, exit: ExitCode::Failed.code() }
    }

    fn explain(&self, failure: &Failure) -> (String, Option<String>, ExitCode) {
        let hint = "`dg-cluster jobs` and `dg-cluster logs` tell more".to_owned();
        match failure {
            Failure::NoProgress { cause, step, epochs } => {
                let cause = self.cause(cause);
                let attempts = if *epochs == 1 { "attempt" } else { "attempts" };
                let message = format!("given up after {epochs} {attempts} at step {step}: {cause}");
                (message, Some(hint), ExitCode::Failed)
            }
            Failure::Memory { rank, need, free } => {
                let short = crate::machine::short_of(*need, *free);
                let message = format!("{}: {short}, and no layout needs less", self.rank_name(*rank));
                let hint = "use a smaller batch, or more ulysses, ring or pipefusion".to_owned();
                (message, Some(hint), ExitCode::Infeasible)
            }
            Failure::NoRanks => {
                let hint = "`dg-cluster status` shows what is missing".to_owned();
                ("there were too few ranks for too long".into(), Some(hint), ExitCode::Infeasible)
            }
        }
    }

    fn refuse(&mut self, id: JobId, refusal: Refusal) {
        let Some(entry) = self.jobs.remove(&id) else { return };
        self.queued_bytes -= entry.bytes();
        let (message, hint, exit) = match refusal {
            Refusal::Full => {
                ("too many jobs are waiting".to_owned(), "submit it again later", ExitCode::Failed)
            }
            Refusal::NoModel(node) => {
                let name = self.node_at(node).map_or("?", |node| node.name.as_str());
                let model = entry.body.model.as_deref().or(self.args.model.as_deref()).unwrap_or("?");
                let message =
                    format!("node `{name}` does not have the model `{model}`, or another version of it");
                (
                    message,
                    "every node needs the same model; `[[node]] model_path` names its folder",
                    ExitCode::Infeasible,
                )
            }
        };
        entry.sink.tell(Tell::Failed { message, hint: Some(hint.into()), exit: exit.code() }, Bytes::new());
    }

    /// What a rank is called.
    pub(super) fn rank_name(&self, rank: RankId) -> String {
        match self.node_at(rank.node) {
            Some(node) => format!("rank {} (node {})", node.number(rank.slot), node.name),
            None => rank.to_string(),
        }
    }

    pub(super) fn rank_event(&self, kind: &'static str, rank: RankId, message: String) -> Event {
        let node = self.node_at(rank.node);
        let number = node.map(|node| node.number(rank.slot));
        Event { kind, message, node: node.map(|n| n.name.clone()), rank: number, ..Event::default() }
    }
}

/// Jobs that are over and remembered.
const PAST_MAX: usize = 1000;
