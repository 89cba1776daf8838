//! What there is, for those who ask.

use super::actor::State;
use super::jobs::{JobEntry, Life};
use crate::logic::cluster::registry::Process;
use crate::logic::cluster::{JobId, RankId, Stamp};
use serde::{Deserialize, Serialize};

/// The state of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this form.
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Its head.
    pub head: HeadStatus,
    /// Its nodes, in the order of the file.
    pub nodes: Vec<NodeStatus>,
    /// Its ranks.
    pub ranks: Vec<RankStatus>,
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs that run.
    pub running: usize,
}

/// The head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadStatus {
    /// Its process.
    pub pid: u32,
    /// Its incarnation.
    pub term: u64,
    /// Where it listens.
    pub address: String,
    /// Since its start.
    pub uptime_s: f64,
    /// Resident bytes.
    pub memory: u64,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// `up`, `draining`, `down`.
    pub state: String,
    /// Process of its agent.
    pub pid: Option<u32>,
    /// Its ranks.
    pub ranks: u16,
    /// What they compute on.
    pub device: String,
    /// Bytes of memory of its host.
    pub memory: u64,
    /// Processors of its host that it may use.
    pub cores: u32,
    /// Operations per second that each of its ranks is taken to reach; 0 if it is not there.
    pub rank_flops: f64,
}

/// A rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Number among all of the cluster.
    pub rank: u32,
    /// Its node.
    pub node: String,
    /// Its process.
    pub pid: Option<u32>,
    /// `absent`, `starting`, `idle`, `busy`, `stopping`, `ending`, `bad`.
    pub state: String,
    /// The job that it works for.
    pub job: Option<String>,
    /// The attempt that it heard of last.
    pub epoch: Option<String>,
    /// Steps of it that it has done.
    pub step: u32,
    /// What it computes on.
    pub device: String,
    /// Resident bytes, mapped weights included.
    pub memory: u64,
    /// Share of the last moments in which something ran on its GPU, in percent.
    #[serde(default)]
    pub gpu_utilisation: Option<u32>,
    /// Bytes of its GPU that are in use, whoever uses them.
    #[serde(default)]
    pub gpu_memory: Option<u64>,
    /// Bytes of its GPU.
    #[serde(default)]
    pub gpu_memory_total: Option<u64>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its number.
    pub job: String,
    /// Who submitted it.
    pub client: String,
    /// Higher ones begin first.
    #[serde(default)]
    pub priority: u8,
    /// `waiting`, `running`, `done`, `cancelled`, `failed`.
    pub state: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Pictures.
    pub images: usize,
    /// The first prompt, cut short.
    pub prompt: String,
    /// Steps that are done.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Steps that were made, those of lost attempts included.
    pub steps_made: u32,
    /// Attempts.
    pub epochs: u32,
    /// Degrees of the present or last attempt.
    pub layout: String,
    /// Ranks of the present or last attempt.
    pub ranks: Vec<u32>,
    /// Seconds since 1970.
    pub submitted: f64,
    /// Seconds from then to its end, or until now.
    pub seconds: f64,
}

impl State {
    pub(super) fn status(&self) -> Status {
        let is_running = |entry: &&JobEntry| entry.life == Life::Running;
        let running = self.jobs.values().filter(is_running).count();
        Status {
            schema: 1,
            cluster: self.args.file.cluster.name.clone(),
            head: HeadStatus {
                pid: std::process::id(),
                term: self.logic.term(),
                address: self.address.clone(),
                uptime_s: self.begin.elapsed().as_secs_f64(),
                memory: crate::memory::ProcessMemory::of(None).rss,
            },
            nodes: self.nodes.iter().map(|node| self.node_status(node)).collect(),
            ranks: self.nodes.iter().flat_map(|node| self.rank_statuses(node)).collect(),
            waiting: self.jobs.len() - running,
            running,
        }
    }

    fn node_status(&self, node: &super::node::Node) -> NodeStatus {
        let known = self.logic.registry().node(node.id).filter(|known| known.is_up);
        let state = match known {
            Some(known) if known.is_draining => "draining",
            Some(_) => "up",
            None => "down",
        };
        let facts = node.facts.as_ref().filter(|_| node.link.is_some());
        NodeStatus {
            node: node.name.clone(),
            state: state.into(),
            pid: facts.map(|facts| facts.pid),
            ranks: node.spec.slots,
            device: node.device.clone(),
            memory: facts.map_or(0, |facts| facts.memory_bytes),
            cores: facts.map_or(0, |facts| facts.cores),
            rank_flops: if facts.is_some() { node.rank_flops() } else { 0.0 },
        }
    }

    fn rank_statuses<'a>(&'a self, node: &'a super::node::Node) -> impl Iterator<Item = RankStatus> + 'a {
        node.ranks.iter().enumerate().map(|(slot, info)| {
            let slot = u16::try_from(slot).unwrap_or(u16::MAX);
            let process = self.logic.registry().process(RankId { node: node.id, slot });
            let (state, job) = match process {
                Process::Absent => ("absent", None),
                Process::Spawning(_) => ("starting", None),
                Process::Idle(_) => ("idle", None),
                Process::Busy(_, job) => ("busy", Some(job)),
                Process::Stopping(..) => ("stopping", None),
                Process::Dying(_) => ("ending", None),
                Process::Bad => ("bad", None),
            };
            RankStatus {
                rank: node.number(slot),
                node: node.name.clone(),
                pid: info.pid.filter(|_| !matches!(process, Process::Absent | Process::Bad)),
                state: state.into(),
                job: job.map(|job: JobId| job.to_string()),
                epoch: info.epoch.map(|epoch: Stamp| format!("{}-{}", epoch.term, epoch.number)),
                step: info.step,
                device: node.device.clone(),
                memory: info.memory,
                gpu_utilisation: info.gpu.and_then(|gpu| gpu.busy_percent).map(|busy| busy.min(100)),
                gpu_memory: info.gpu.map(|gpu| gpu.used_bytes),
                gpu_memory_total: info.gpu.map(|gpu| gpu.total_bytes),
            }
        })
    }

    /// The jobs that wait or run, then those that are over, the latest first.
    pub(super) fn job_list(&self) -> Vec<JobStatus> {
        let all = self.jobs.values().rev().chain(self.past.iter().rev());
        all.take(LIST_MAX).map(job_status).collect()
    }
}

fn job_status(entry: &JobEntry) -> JobStatus {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (state, error) = match &entry.life {
        Life::Waiting => ("waiting", None),
        Life::Running => ("running", None),
        Life::Done => ("done", None),
        Life::Cancelled => ("cancelled", None),
        Life::Failed(error) => ("failed", Some(error.clone())),
    };
    JobStatus {
        job: entry.id.to_string(),
        client: entry.client.clone(),
        priority: entry.body.priority.min(crate::PRIORITY_MAX),
        state: state.into(),
        error,
        images: entry.images,
        prompt: entry.prompt.clone(),
        step: entry.step,
        steps: entry.steps,
        steps_made: entry.steps_made,
        epochs: entry.epochs,
        layout: entry.layout.to_string(),
        ranks: entry.ranks.clone(),
        submitted: entry.submitted,
        seconds: entry.ended.unwrap_or(now.as_secs_f64()) - entry.submitted,
    }
}

/// Jobs of a list.
const LIST_MAX: usize = 2000;
