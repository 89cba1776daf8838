//! Which models nodes have.

use super::actor::State;
use super::clients::{Sink, Tell};
use super::jobs::QUEUE_BYTES_MAX;
use super::node::hash;
use crate::fleet::job::{JobBody, ModelCard};
use crate::fleet::protocol::Down;
use crate::logic::cluster::NodeId;
use crate::logic::cluster::head::Event;
use bytes::Bytes;
use dg_core::ExitCode;
use std::time::{Duration, Instant};

/// A question to all nodes, and who waits for the answer.
pub(super) struct Probe {
    until: Instant,
    jobs: Vec<Asking>,
    cards: Vec<Sink>,
}

/// A job that waits for the answer.
struct Asking {
    client: String,
    job: JobBody,
    /// Bytes that it was submitted as.
    bytes: usize,
    sink: Sink,
}

/// Whether two names stand for the same model, the first of which may be that of the file.
pub(super) fn is_same(name: Option<&str>, of_file: Option<&str>) -> bool {
    name.is_none_or(|name| Some(name) == of_file)
}

impl State {
    /// A node has looked for a model. The one of its file is the first, and with it the node is in.
    pub(super) fn has_model(&mut self, node: &str, asked: String, card: Result<String, String>) {
        let card = card.and_then(|text| serde_json::from_str::<ModelCard>(&text).map_err(|e| e.to_string()));
        let of_file = self.args.model.clone();
        let is_asked = self.probes.contains_key(&asked);
        let Some(node) = self.node_mut(node) else { return };
        // On the node it may be a folder; here it has the name of the file.
        let is_own = asked.is_empty() || node.spec.model.as_deref() == Some(asked.as_str());
        let name = if is_own { of_file.unwrap_or_default() } else { asked };
        if !is_own && !is_asked {
            return tracing::debug!(node = node.name, "it tells of a model that nobody has asked for");
        }
        // Of models that are not there, only the last are remembered.
        if node.models.len() >= MODELS_MAX {
            node.models.retain(|known, card| card.is_ok() || *known == name);
        }
        let missing = card.as_ref().err().map(|why| {
            let message = format!("node {} does not have the model `{name}`: {why}", node.name);
            node.event("model_missing", message)
        });
        let before = node.models.insert(name.clone(), card);
        // It may say so again and again: that is no news.
        let missing = missing.filter(|_| before.is_none_or(|card| card.is_ok()));
        let is_new = is_own && node.link.is_some() && !std::mem::replace(&mut node.is_in, true);
        let (id, facts) = (node.id, node.logic_facts());
        self.events.extend(missing);
        if let Some(facts) = facts.filter(|_| is_new) {
            self.logic_event(Event::Hello(id, facts));
            self.probe_newcomer(id);
        }
        self.tell_of_model(&name);
        self.ask_again(&name);
    }

    /// Nodes that are in and have this model are known to.
    fn tell_of_model(&mut self, name: &str) {
        let has = |node: &super::node::Node| {
            let card = node.models.get(name)?.as_ref().ok()?;
            node.is_in.then(|| (node.id, hash(card)))
        };
        let all: Vec<_> = self.nodes.iter().filter_map(has).collect();
        for (id, model) in all {
            self.logic_event(Event::Model(id, model));
        }
    }

    /// The model as the first node that has it knows it.
    pub(super) fn card(&self, name: &str) -> Option<&ModelCard> {
        self.nodes.iter().find_map(|node| node.models.get(name)?.as_ref().ok())
    }

    fn name_of(&self, model: Option<&String>) -> String {
        model.or(self.args.model.as_ref()).cloned().unwrap_or_default()
    }

    /// Submits a job once every node that is in has said whether it has the model.
    pub(super) fn submit_when_known(&mut self, client: &str, job: JobBody, bytes: usize, sink: Sink) {
        let name = self.name_of(job.model.as_ref());
        if self.is_known(&name) {
            return self.submit_known(client, job, sink, &name);
        }
        if self.queued_bytes + self.bytes_in_probes() + bytes > QUEUE_BYTES_MAX {
            let message = format!("jobs of more than {QUEUE_BYTES_MAX} bytes are waiting");
            let (hint, exit) = (Some("submit it again later".to_owned()), ExitCode::Failed.code());
            return sink.tell(Tell::Failed { message, hint, exit }, Bytes::new());
        }
        if !self.may_probe(&name, &sink) {
            return;
        }
        self.probe(&name).jobs.push(Asking { client: client.into(), job, bytes, sink });
    }

    /// Jobs that wait until it is known who has their model.
    pub(super) fn jobs_in_probes(&self) -> usize {
        self.probes.values().map(|probe| probe.jobs.len()).sum()
    }

    /// The same, in bytes.
    pub(super) fn bytes_in_probes(&self) -> usize {
        self.probes.values().flat_map(|probe| &probe.jobs).map(|asking| asking.bytes).sum()
    }

    /// Answers with the card of a model.
    pub(super) fn model_asked(&mut self, name: Option<String>, sink: Sink) {
        let name = self.name_of(name.as_ref());
        if self.is_known(&name) {
            return self.answer_card(&name, &sink);
        }
        if !self.may_probe(&name, &sink) {
            return;
        }
        self.probe(&name).cards.push(sink);
    }

    fn is_known(&self, name: &str) -> bool {
        let mut up = self.nodes.iter().filter(|node| node.is_in).peekable();
        up.peek().is_some() && up.all(|node| node.models.contains_key(name))
    }

    /// Nodes look for a model in folders: not for many at a time, and not for names that nobody would give one.
    fn may_probe(&self, name: &str, sink: &Sink) -> bool {
        let is_new = !self.probes.contains_key(name);
        let message = match (name.len() > NAME_BYTES_MAX, is_new && self.probes.len() >= PROBES_MAX) {
            (true, _) => format!("the name of a model has more than {NAME_BYTES_MAX} bytes"),
            (_, true) => format!("{PROBES_MAX} other models are being looked for"),
            _ => return true,
        };
        let hint = Some("`dg-cluster status` shows the nodes".to_owned());
        sink.tell(Tell::Failed { message, hint, exit: ExitCode::Infeasible.code() }, Bytes::new());
        false
    }

    /// A node that is in now is asked what others are being asked.
    fn probe_newcomer(&self, id: NodeId) {
        let Some(node) = self.node_at(id) else { return };
        for name in self.probes.keys().filter(|name| !node.models.contains_key(*name)) {
            self.tell(id, &Down::Probe(name.clone()));
        }
    }

    /// A node has left: others may have waited for its answers alone.
    pub(super) fn look_again_at_probes(&mut self) {
        let names: Vec<String> = self.probes.keys().cloned().collect();
        names.iter().for_each(|name| self.ask_again(name));
    }

    fn probe(&mut self, name: &str) -> &mut Probe {
        // Before the tick that looks at it.
        let until = Instant::now() + PROBE_MAX;
        if !self.probes.contains_key(name) {
            let asked = self.nodes.iter().filter(|node| node.is_in && !node.models.contains_key(name));
            for link in asked.filter_map(|node| node.link.as_ref()) {
                let _ = link.cast(&Down::Probe(name.to_owned()));
            }
            let me = self.me.clone();
            me.send_after(PROBE_MAX, || super::actor::Message::Tick);
        }
        self.probes.entry(name.to_owned()).or_insert(Probe { until, jobs: Vec::new(), cards: Vec::new() })
    }

    fn ask_again(&mut self, name: &str) {
        if !self.is_known(name) {
            return;
        }
        let Some(probe) = self.probes.remove(name) else { return };
        for Asking { client, job, sink, .. } in probe.jobs {
            self.submit_known(&client, job, sink, name);
        }
        for sink in probe.cards {
            self.answer_card(name, &sink);
        }
    }

    fn submit_known(&mut self, client: &str, job: JobBody, sink: Sink, name: &str) {
        match self.card(name).map(|card| (card.shape.clone(), card.id.hash.clone())) {
            Some((_, have)) if job.model_hash.as_ref().is_some_and(|wanted| *wanted != have) => {
                let wanted = job.model_hash.unwrap_or_default();
                let message = format!(
                    "the model `{name}` has the hash {have:.12}… on the nodes, and {wanted:.12}… here"
                );
                let hint = Some("use the same version of the model everywhere".to_owned());
                sink.tell(Tell::Failed { message, hint, exit: ExitCode::Infeasible.code() }, Bytes::new());
            }
            Some((shape, hash)) => {
                let job = JobBody { model_hash: Some(hash), ..job };
                self.submit(client, job, &shape, sink);
            }
            None => self.no_model(name, &sink),
        }
    }

    fn answer_card(&self, name: &str, sink: &Sink) {
        match self.card(name) {
            Some(card) => {
                sink.tell(Tell::Answer, serde_json::to_vec(card).unwrap_or_default().into());
            }
            None => self.no_model(name, sink),
        }
    }

    fn no_model(&self, name: &str, sink: &Sink) {
        let why = self.nodes.iter().find_map(|node| {
            let why = node.models.get(name)?.as_ref().err()?;
            Some(format!(" (node `{}`: {why})", node.name))
        });
        let message = format!("no node has the model `{name}`{}", why.unwrap_or_default());
        let hint = Some("every node needs the model: a folder, or the hub's cache".to_owned());
        sink.tell(Tell::Failed { message, hint, exit: ExitCode::Infeasible.code() }, Bytes::new());
    }

    /// Nobody waits for an answer for ever.
    pub(super) fn give_up_probes(&mut self) {
        let now = Instant::now();
        let late: Vec<String> = self
            .probes
            .iter()
            .filter(|(_, probe)| now >= probe.until)
            .map(|(name, _)| name.clone())
            .collect();
        for name in late {
            let Some(probe) = self.probes.remove(&name) else { continue };
            let message = match self.nodes.iter().any(|node| node.is_in) {
                true => format!("not every node has said whether it has the model `{name}`"),
                false => "no node is in".to_owned(),
            };
            let sinks = probe.jobs.into_iter().map(|asking| asking.sink).chain(probe.cards);
            for sink in sinks {
                let hint = Some("`dg-cluster status` shows the nodes".to_owned());
                sink.tell(
                    Tell::Failed { message: message.clone(), hint, exit: ExitCode::Infeasible.code() },
                    Bytes::new(),
                );
            }
        }
    }
}

/// Models that are looked for at a time.
const PROBES_MAX: usize = 64;
/// Models of a node, those that it does not have included, unless it has more.
const MODELS_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 4096;
const PROBE_MAX: Duration = Duration::from_secs(30);
