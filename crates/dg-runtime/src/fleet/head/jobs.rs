//! Jobs as the head has them: who wants them, what they go on from, what has come of them.

use super::actor::State;
use super::clients::{Sink, Tell};
use super::events::Event;
use super::models::is_same;
use super::node::{Node, hash};
use crate::fleet::job::{JobBody, floats_to_bytes, unpack_part};
use crate::logic::cluster::checkpoint::Reference;
use crate::logic::cluster::epoch::{Cause, Team};
use crate::logic::cluster::head;
use crate::logic::cluster::job::JobSpec;
use crate::logic::cluster::placement::Kind;
use crate::logic::cluster::{ClientId, JobId, RankId, Stamp};
use crate::{DeviceKind, PRIORITY_MAX};
use bytes::Bytes;
use dg_core::report::EventReport;
use dg_core::{ExitCode, ModelShape};
use dg_flux::parallel::{LatentsPart, Resume};
use dg_net::plane::{EpochKey, Member};
use dg_plan::{Ask, Layout, Plan};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Waiting,
    Running,
    Done,
    Cancelled,
    Failed(String),
}

/// A job.
pub(super) struct JobEntry {
    pub(super) id: JobId,
    pub(super) client: String,
    pub(super) body: JobBody,
    /// Pictures.
    pub(super) images: usize,
    /// The first prompt, cut short.
    pub(super) prompt: String,
    pub(super) sink: Sink,
    pub(super) life: Life,
    pub(super) step: u32,
    pub(super) steps: u32,
    pub(super) layout: Layout,
    pub(super) ranks: Vec<u32>,
    pub(super) epochs: u32,
    pub(super) submitted: f64,
    pub(super) ended: Option<f64>,
    /// Steps that ranks have made, those of lost attempts included.
    pub(super) steps_made: u32,
    epoch: Option<Stamp>,
    packed: Bytes,
    /// Pictures, image tokens, channels of the latents.
    dims: [usize; 3],
    parts: BTreeMap<u32, Vec<LatentsPart>>,
    resume: Option<(u32, Bytes)>,
    dones: BTreeMap<u32, Bytes>,
}

/// The ranks of an epoch, while it lasts.
pub(super) struct Group {
    pub(super) job: JobId,
    key: EpochKey,
    team: Arc<Team>,
    members: HashMap<RankId, Member>,
    /// What has been said once, with its body.
    sent: HashSet<(RankId, u8)>,
}

impl Group {
    /// Whether a rank has part in it.
    pub(super) fn has(&self, rank: RankId) -> bool {
        self.team.members.contains(&rank)
    }

    /// Whether a rank is told this for the first time.
    pub(super) fn insert_sent(&mut self, rank: RankId, what: u8) -> bool {
        self.sent.insert((rank, what))
    }
}

impl JobEntry {
    /// Bytes that it was submitted as.
    pub(super) fn bytes(&self) -> usize {
        self.packed.len()
    }

    /// What ranks did and made.
    pub(super) fn dones(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.dones).into_values().collect()
    }

    /// It is over: only what is shown of it is kept.
    pub(super) fn close(&mut self) {
        self.sink = Sink::nobody();
        self.body.batch = Vec::new();
        self.ended = Some(seconds());
        (self.packed, self.resume) = (Bytes::new(), None);
        (self.parts, self.dones) = (BTreeMap::new(), BTreeMap::new());
    }
}

impl State {
    /// Takes a job whose model every node has been asked for.
    pub(super) fn submit(&mut self, client: &str, mut body: JobBody, shape: &ModelShape, mut sink: Sink) {
        let fail = |message: String, hint: Option<String>, exit: ExitCode| Tell::Failed {
            message,
            hint,
            exit: exit.code(),
        };
        if sink.is_closed() {
            // The client went while nodes looked for the model, or while it waited for its turn here.
            return;
        }
        if let Some(fault) = body.fault() {
            return sink.tell(fail(fault.to_string(), fault.hint(), fault.exit()), Bytes::new());
        }
        let needed = Layout { dp: 1, ..body.ask.layout }.ranks();
        if let Err((message, hint)) = has_ranks(&self.nodes, body.ranks_on, needed) {
            return sink.tell(fail(message, Some(hint), ExitCode::Infeasible), Bytes::new());
        }
        if self.queued_bytes + self.bytes_in_probes() > QUEUE_BYTES_MAX {
            let message = format!("jobs of more than {QUEUE_BYTES_MAX} bytes are waiting");
            let hint = Some("submit it again later".to_owned());
            return sink.tell(fail(message, hint, ExitCode::Failed), Bytes::new());
        }
        let plan = match body.plan(shape, Layout { dp: 1, ..body.ask.layout }) {
            Ok(plan) => plan,
            Err(refusal) => {
                return sink
                    .tell(fail(refusal.to_string(), Some(refusal.hint()), refusal.exit()), Bytes::new());
            }
        };
        let model = body.model.clone().or_else(|| self.args.model.clone()).unwrap_or_default();
        if is_same(Some(&model), self.args.model.as_deref()) {
            body.model = None;
        }
        let hash = match self.card(&model) {
            Some(card) => hash(card),
            None => {
                return sink.tell(
                    fail(format!("no node has the model `{model}`"), None, ExitCode::Infeasible),
                    Bytes::new(),
                );
            }
        };
        self.next_job += 1;
        let id = JobId(self.next_job);
        sink.of_job(id);
        let spec = self.spec(client, &body, shape, &plan, hash);
        let entry = entry(id, client, body, shape, &plan, sink);
        entry.sink.tell(Tell::Accepted { job: id.to_string() }, Bytes::new());
        let pictures = match entry.images {
            1 => "1 picture".to_owned(),
            more => format!("{more} pictures"),
        };
        let message = format!("job {id} of {client}: {pictures}, layout {}", entry.layout);
        self.events.push(Event {
            kind: "job_submitted",
            message,
            job: Some(id.to_string()),
            ..Event::default()
        });
        self.queued_bytes += entry.packed.len();
        self.jobs.insert(id, entry);
        self.logic_event(head::Event::Submit(id, spec));
        if self.jobs.get(&id).is_some_and(|entry| entry.sink.is_closed()) {
            self.client_gone(id);
        }
    }

    fn spec(
        &self,
        client: &str,
        body: &JobBody,
        shape: &ModelShape,
        plan: &Plan,
        model: crate::logic::cluster::ModelHash,
    ) -> JobSpec {
        let layout = Layout { dp: 1, ..body.ask.layout };
        JobSpec {
            client: ClientId(number_of(client)),
            priority: body.priority.min(PRIORITY_MAX),
            model,
            kind: body.ranks_on.map(kind),
            steps: u32::try_from(plan.work.steps).unwrap_or(u32::MAX),
            ranks_min: 1,
            ranks_max: usize::try_from(plan.layout.ranks()).unwrap_or(usize::MAX),
            work: body.work(shape).map(Arc::new),
            ask: Some(Arc::new(Ask { layout, num_gpus: None, memory_bytes: None, ..body.ask.clone() })),
        }
    }

    /// A new epoch, or one that is known.
    pub(super) fn begin_group(&mut self, epoch: Stamp, team: &Arc<Team>) -> &mut Group {
        if !self.groups.contains_key(&epoch) {
            let id = team.job;
            self.groups.retain(|_, group| group.job != id);
            let numbers = team.members.iter().filter_map(|r| Some(self.node_at(r.node)?.number(r.slot)));
            let numbers: Vec<u32> = numbers.collect();
            if let Some(entry) = self.jobs.get_mut(&id) {
                entry.epochs += 1;
                (entry.life, entry.layout, entry.ranks) = (Life::Running, team.layout, numbers);
                (entry.epoch, entry.parts, entry.dones) = (Some(epoch), BTreeMap::new(), BTreeMap::new());
                let message = format!(
                    "attempt {} of job {id} on ranks {:?}, layout {}",
                    entry.epochs, entry.ranks, team.layout
                );
                self.events.push(Event {
                    kind: "epoch_started",
                    message,
                    job: Some(id.to_string()),
                    ..Event::default()
                });
            }
        }
        self.groups.entry(epoch).or_insert_with(|| Group {
            job: team.job,
            key: EpochKey::generate(),
            team: team.clone(),
            members: HashMap::new(),
            sent: HashSet::new(),
        })
    }

    pub(super) fn job_body(&self, epoch: Stamp) -> Bytes {
        let entry = self.groups.get(&epoch).and_then(|group| self.jobs.get(&group.job));
        entry.map(|entry| entry.packed.clone()).unwrap_or_default()
    }

    /// Latents after `step` steps.
    pub(super) fn latents(&self, epoch: Stamp, step: u32) -> Bytes {
        let entry = self.groups.get(&epoch).and_then(|group| self.jobs.get(&group.job));
        let resume = entry.and_then(|entry| entry.resume.as_ref()).filter(|(have, _)| *have == step);
        resume.map(|(_, latents)| latents.clone()).unwrap_or_default()
    }

    /// A rank is ready and waits there.
    pub(super) fn prepared(&mut self, rank: RankId, epoch: Stamp, member: Member) {
        if let Some(group) = self.groups.get_mut(&epoch) {
            group.members.insert(rank, member);
        }
    }

    /// The secret and the places of an epoch whose ranks are all ready.
    pub(super) fn group_members(&self, epoch: Stamp) -> Option<(EpochKey, Vec<Member>)> {
        let group = self.groups.get(&epoch)?;
        let members: Vec<Member> =
            group.team.members.iter().filter_map(|rank| group.members.get(rank).cloned()).collect();
        (members.len() == group.team.members.len()).then(|| (group.key.clone(), members))
    }

    /// A part of the latents of the present epoch.
    pub(super) fn part(&mut self, epoch: Stamp, step: u32, body: &Bytes) -> Option<Reference> {
        let job = self.groups.get(&epoch)?.job;
        let entry = self.jobs.get_mut(&job).filter(|entry| entry.epoch == Some(epoch))?;
        let most: usize = entry.dims.iter().fold(1, |n, dim| n.saturating_mul(*dim));
        if body.len() > most.saturating_mul(4).saturating_add(PART_CARD_BYTES_MAX) {
            return None;
        }
        let part = unpack_part(body).filter(|part| u32::try_from(part.step) == Ok(step))?;
        let parts = entry.parts.entry(step).or_default();
        // More than there are, in whatever parts, fit nowhere: they are not kept.
        let (values, rows) = parts
            .iter()
            .chain([&part])
            .fold((0, 0), |(values, rows), part| (values + part.values.len(), rows + part.rows.len().max(1)));
        if values > most || rows > most {
            return None;
        }
        parts.push(part);
        while entry.parts.len() > PARTS_MAX {
            entry.parts.pop_first();
        }
        self.next_part += 1;
        Some(Reference(self.next_part))
    }

    /// All parts of the latents after this step are there.
    pub(super) fn kept(&mut self, job: JobId, step: u32) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Some(parts) = entry.parts.remove(&step) else { return };
        match Resume::from_parts(&parts, entry.dims) {
            Ok(resume) => entry.resume = Some((step, floats_to_bytes(&resume.latents).into())),
            Err(error) => tracing::error!(%error, step, "latents that do not fit together"),
        }
        entry.parts.retain(|other, _| *other > step);
    }

    /// A job goes on after so many steps.
    pub(super) fn resumed(&mut self, job: JobId, step: u32) {
        let message = format!("job {job} goes on after step {step}");
        self.job_notice(job, "resumed_from_step", &message, Some(step));
    }

    /// Why a rank or an attempt is lost: to the log, and to the client of the job.
    pub(super) fn job_notice(&mut self, job: JobId, kind: &'static str, message: &str, step: Option<u32>) {
        let event =
            Event { kind, message: message.into(), job: Some(job.to_string()), step, ..Event::default() };
        self.events.push(event);
        self.tell_client(job, kind, message);
    }

    /// The same, to the client alone.
    pub(super) fn tell_client(&self, job: JobId, kind: &str, message: &str) {
        if let Some(entry) = self.jobs.get(&job) {
            let report = EventReport { t: 0.0, kind: kind.into(), message: message.into() };
            let text = serde_json::to_string(&report).unwrap_or_default();
            entry.sink.tell(Tell::Notice(text), Bytes::new());
        }
    }

    /// What a rank did and made.
    pub(super) fn done(&mut self, rank: RankId, epoch: Stamp, body: Bytes) {
        let Some(job) = self.groups.get(&epoch).map(|group| group.job) else { return };
        let number = self.node_at(rank.node).map_or(u32::MAX, |node| node.number(rank.slot));
        if let Some(entry) = self.jobs.get_mut(&job).filter(|entry| entry.epoch == Some(epoch)) {
            let pixels: usize = entry.body.batch.iter().map(|request| pixels(request.size)).sum();
            let body = if body.len() > pixels + DONE_CARD_BYTES_MAX { Bytes::new() } else { body };
            entry.dones.insert(number, body);
        }
    }

    /// A step of the job is done on the slowest rank that has spoken.
    pub(super) fn progress(&mut self, rank: RankId, epoch: Stamp, step: u32) {
        let Some(group) = self.groups.get(&epoch) else { return };
        let (job, is_first) = (group.job, group.team.members.first() == Some(&rank));
        if let Some(entry) = self.jobs.get_mut(&job).filter(|entry| entry.epoch == Some(epoch)) {
            entry.step = step;
            entry.steps_made += u32::from(is_first);
        }
    }

    /// Steps of the job of an epoch.
    pub(super) fn steps_of(&self, epoch: Stamp) -> u32 {
        self.job_of(epoch).and_then(|job| self.jobs.get(&job)).map_or(0, |entry| entry.steps)
    }

    /// The job of an epoch.
    pub(super) fn job_of(&self, epoch: Stamp) -> Option<JobId> {
        self.groups.get(&epoch).map(|group| group.job)
    }

    /// Nobody waits for this job any more.
    pub(super) fn client_gone(&mut self, job: JobId) {
        if self.jobs.contains_key(&job) {
            self.logic_event(head::Event::Cancel(job));
        }
    }

    /// Why an attempt ended, for reading.
    pub(super) fn cause(&self, cause: &Cause) -> String {
        let name = |rank: &RankId| self.rank_name(*rank);
        match cause {
            Cause::Cancelled => "it was cancelled".into(),
            Cause::Oom(rank, need, free) => {
                format!("{} ran out of memory: {}", name(rank), crate::machine::short_of(*need, *free))
            }
            Cause::Exited(rank, lines) => {
                let said = match lines.is_empty() {
                    true => String::new(),
                    false => format!("; its last lines:\n  {}", lines.join("\n  ")),
                };
                format!("the process of {} ended{said}", name(rank))
            }
            Cause::DeviceLost(rank) => format!("the device of {} is gone", name(rank)),
            Cause::Error(rank, text) => format!("{}: {text}", name(rank)),
            Cause::NodeLost(rank) => format!("the node of {} is gone", name(rank)),
            Cause::Hung(rank) => format!("{} makes no progress", name(rank)),
            Cause::Silent(rank) => format!("{} does not answer", name(rank)),
            Cause::PeerLost(rank) => format!("{} lost the connection to another rank", name(rank)),
        }
    }
}

fn entry(id: JobId, client: &str, body: JobBody, shape: &ModelShape, plan: &Plan, sink: Sink) -> JobEntry {
    JobEntry {
        id,
        client: client.into(),
        images: body.batch.len(),
        prompt: body.batch.first().map_or_else(String::new, |r| r.prompt.chars().take(60).collect()),
        packed: serde_json::to_vec(&body).unwrap_or_default().into(),
        sink,
        life: Life::Waiting,
        step: 0,
        steps: u32::try_from(plan.work.steps).unwrap_or(u32::MAX),
        layout: plan.layout,
        ranks: Vec::new(),
        epochs: 0,
        submitted: seconds(),
        ended: None,
        steps_made: 0,
        epoch: None,
        dims: [body.batch.len(), plan.work.size.image_tokens(), shape.transformer.in_channels],
        parts: BTreeMap::new(),
        resume: None,
        dones: BTreeMap::new(),
        body,
    }
}

/// Whether there could ever be so many ranks for one replica, which are of one kind; else what to say, and a hint.
fn has_ranks(nodes: &[Node], asked: Option<DeviceKind>, needed: u64) -> Result<(), (String, String)> {
    let of = |kind: Kind| -> u64 {
        nodes.iter().filter(|node| node.kind == kind).map(|node| u64::from(node.spec.slots)).sum()
    };
    let (cpu, cuda) = (of(Kind::Cpu), of(Kind::Cuda));
    let (there, kind) = match asked.map(kind) {
        Some(Kind::Cpu) => (cpu, " on CPUs"),
        Some(Kind::Cuda) => (cuda, " on GPUs"),
        // Without GPUs, its CPUs take the job.
        None => (cpu.max(cuda), ""),
    };
    if there == 0 && needed > 0 {
        let hint = "leave --device out, or add nodes".to_owned();
        return Err((format!("the cluster has no ranks{kind}"), hint));
    }
    if needed > there {
        let message = format!("the layout needs {needed} ranks, the cluster has {there}{kind}");
        return Err((message, "use smaller degrees, or add nodes".into()));
    }
    Ok(())
}

fn kind(of: DeviceKind) -> Kind {
    match of {
        DeviceKind::Cpu => Kind::Cpu,
        DeviceKind::Cuda => Kind::Cuda,
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A number for a client's name.
fn number_of(name: &str) -> u32 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish() as u32
}

/// Bytes of a picture.
fn pixels(size: dg_core::ImageSize) -> usize {
    size.width() as usize * size.height() as usize * 3
}

/// A part of the latents, without its values.
const PART_CARD_BYTES_MAX: usize = 1 << 20;
/// What a rank did, without its pictures.
const DONE_CARD_BYTES_MAX: usize = 4 << 20;
/// Bytes of all jobs that wait or run.
pub(super) const QUEUE_BYTES_MAX: usize = 128 << 20;
/// Steps whose parts are waited for.
const PARTS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::ClusterFile;
    use std::path::Path;

    #[test]
    fn a_replica_has_the_ranks_of_one_kind() {
        let text = "[cluster]\nname = \"mixed\"\nlisten = \"127.0.0.1:1\"\n\
                    [[node]]\nname = \"a\"\nlocal = true\nranks = 3\n\
                    [[node]]\nname = \"b\"\nlocal = true\ngpus = [0, 1]\n";
        let nodes = |text: &str| Node::all(&ClusterFile::read(Path::new("mixed.toml"), text).unwrap(), None);
        let mixed = nodes(text);
        let refused = |asked, needed| has_ranks(&mixed, asked, needed).err().map(|(message, _)| message);
        let (cpu, cuda) = (Some(DeviceKind::Cpu), Some(DeviceKind::Cuda));
        assert_eq!((refused(cpu, 3), refused(cuda, 2), refused(None, 3)), (None, None, None));
        let message = "the layout needs 3 ranks, the cluster has 2 on GPUs";
        assert_eq!(refused(cuda, 3).as_deref(), Some(message));
        assert_eq!(refused(None, 5).as_deref(), Some("the layout needs 5 ranks, the cluster has 3"));
        let (cpus, _) = text.split_at(text.rfind("[[node]]").unwrap());
        let (message, hint) = has_ranks(&nodes(cpus), cuda, 1).unwrap_err();
        assert!(message == "the cluster has no ranks on GPUs" && hint.contains("--device"), "{message}");
    }
}
