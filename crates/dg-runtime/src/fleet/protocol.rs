//! What head, agents and ranks say to each other.

use crate::logic::cluster::Stamp;
use crate::logic::cluster::epoch::Trouble;
use dg_net::plane::{EpochKey, Member};
use dg_net::wire::Message;
use dg_plan::Layout;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

// === Head and agent ===

/// What an agent says of itself when it greets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Its process.
    pub pid: u32,
    /// Bytes of memory of the host.
    pub memory_bytes: u64,
    /// Processors that it may use.
    pub cores: u32,
    /// Operations per second that FLUX reaches on one of them, as a short measurement has it.
    pub core_flops: f64,
    /// Ranks that run already: slot and start.
    pub running: Vec<(u16, Stamp)>,
    /// What they were started for, if a head has ever taken the node.
    pub spec: Option<NodeSpec>,
}

impl Message for AgentFacts {}

/// What the head tells an agent that it has taken: the node as its file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Ranks of the node.
    pub slots: u16,
    /// Number of its first rank among all of the cluster.
    pub first: u32,
    /// Threads of each rank, if they are not shared out.
    pub threads: Option<u32>,
    /// The model of the file, by the name or folder that it has on this node.
    pub model: Option<String>,
    /// Where ranks of other nodes reach its ranks.
    pub plane_host: String,
    /// Whether tensors between nodes are encrypted.
    pub tensor_tls: bool,
    /// The GPU of each rank, as `nvidia-smi` numbers those of the host; none if its ranks compute on the processor.
    pub gpus: Option<Vec<u32>>,
    /// Environment of its ranks.
    pub env: BTreeMap<String, String>,
    /// How often the lease is asked for, when it ends, and when ranks without one do.
    pub lease: WireLease,
}

impl Message for NodeSpec {}

impl NodeSpec {
    /// Whether ranks that were started for `other` are as they are to be. The lease is their agent's business.
    pub fn suits_ranks_of(&self, other: &Self) -> bool {
        Self { lease: other.lease, ..self.clone() } == *other
    }
}

/// Times of a lease, see [`LeaseTimes`](crate::logic::cluster::lease::LeaseTimes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireLease {
    /// How long a grant holds.
    pub ttl: Duration,
    /// How often it is asked for.
    pub renew: Duration,
    /// How much before its end the node gives it up.
    pub margin: Duration,
    /// Time to stop before ranks are killed.
    pub grace: Duration,
    /// How long an agent lives without one.
    pub alone_max: Duration,
}

/// From the head to an agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Down {
    /// The lease is granted.
    Granted {
        /// Of the question.
        seq: u64,
        /// From when it was answered.
        ttl: Duration,
    },
    /// Start a rank.
    Spawn(u16, Stamp),
    /// Kill a rank.
    Kill(u16, Stamp),
    /// For the rank of this start; may have a body.
    Order(u16, Stamp, Stamp, RankOrder),
    /// Which model is this here?
    Probe(String),
    /// The cluster goes down: stop everything and end.
    Exit,
}

impl Message for Down {}

/// From an agent to the head.
#[derive(Debug, Serialize, Deserialize)]
pub enum Up {
    /// Asks for the lease, and tells what ranks use.
    Renew(u64, Vec<RankUse>),
    /// A rank runs, as this process.
    Spawned(u16, Stamp, u32),
    /// A rank has ended: how, and its last log lines.
    Exited(u16, Stamp, String, Vec<String>),
    /// From the rank of this start, about this epoch; may have a body.
    Said(u16, Stamp, Stamp, RankSay),
    /// The model of this name: its card as JSON, or why there is none.
    Model(String, Result<String, String>),
}

impl Message for Up {}

/// What a rank uses of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankUse {
    /// Its slot.
    pub slot: u16,
    /// Resident bytes of its process.
    pub memory: u64,
    /// Its GPU, if it has one and that tells.
    pub gpu: Option<GpuUse>,
}

/// How busy a GPU is, whoever uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuUse {
    /// Share of the last moments in which something ran on it, in percent; some do not tell.
    pub busy_percent: Option<u32>,
    /// Bytes in use.
    pub used_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// A question to an agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum AgentAsk {
    /// Log lines of a rank, or of the agent, after this number.
    Logs(Option<u16>, u64),
}

impl Message for AgentAsk {}

/// Log lines and the number of the last one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LogLines {
    /// Number of the last line.
    pub last: u64,
    /// Lines.
    pub lines: Vec<String>,
}

impl Message for LogLines {}

// === Head and rank, by way of the agent ===

/// What a rank is to do for an epoch.
#[derive(Debug, Serialize, Deserialize)]
pub enum RankOrder {
    /// Get ready. The body is the job; without one, say again whether it is.
    Prepare(RankTeam),
    /// Find the others.
    InitGroup {
        /// The epoch's secret.
        key: EpochKey,
        /// Where they are.
        members: Vec<Member>,
    },
    /// Compute. The body is the latents after `from_step` steps.
    Run {
        /// Steps that are done.
        from_step: u32,
        /// Whether it was said before, then without the body.
        is_again: bool,
    },
    /// Stop, and take nothing of this epoch or an older one any more.
    Abort,
}

/// The ranks of an epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RankTeam {
    /// Number of the job.
    pub job: u64,
    /// This rank among those of the job.
    pub me: u32,
    /// Numbers of all ranks of the job, in their order, among those of the cluster.
    pub numbers: Vec<u32>,
    /// Nodes of all ranks of the job.
    pub nodes: Vec<String>,
    /// Degrees.
    pub layout: Layout,
    /// Steps between checkpoints.
    pub checkpoint_every: u32,
}

/// What a rank says about an epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RankSay {
    /// It is ready and waits at these addresses.
    Prepared {
        /// Where the others find it.
        member: Member,
        /// Bytes of its weights.
        mapped_bytes: u64,
    },
    /// The group stands.
    Grouped,
    /// So many steps are done.
    Progress(u32),
    /// It computes: layers are done since it last said something. Said once a second at most.
    Alive,
    /// The body is its part of the latents after this step.
    Checkpoint(u32),
    /// Something that the client hears, as JSON.
    Event(String),
    /// It is done. The body is what it did and made.
    Done,
    /// It has stopped.
    Stopped,
    /// It cannot go on.
    Failed(Trouble),
}

/// The first thing that a rank hears of its agent.
#[derive(Debug, Serialize, Deserialize)]
pub struct RankSetup {
    /// Its number among all of the cluster.
    pub number: u32,
    /// Name of its node.
    pub node: String,
    /// Folder with the node's certificate.
    pub state_dir: String,
    /// The model of jobs that name none.
    pub model: Option<String>,
    /// Its GPU among those of its host, the only one that its process sees; none if it computes on the processor.
    pub gpu: Option<u32>,
    /// Threads that it computes with.
    pub threads: u32,
    /// Ranks of its node, this one among them: they share its memory.
    pub ranks: u16,
    /// Where ranks of other nodes reach it.
    pub plane_host: String,
    /// Whether tensors between nodes are encrypted.
    pub tensor_tls: bool,
    /// Process of its agent.
    pub agent: u32,
}

/// From agent to rank.
#[derive(Debug, Serialize, Deserialize)]
pub enum RankIn {
    /// Said once.
    Setup(RankSetup),
    /// Of the head.
    Order(Stamp, RankOrder),
    /// The lease of the node is over: whatever runs stops.
    Fence,
}

impl Message for RankIn {}

/// From rank to agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum RankOut {
    /// It is there.
    Ready,
    /// For the head.
    Said(Stamp, RankSay),
}

impl Message for RankOut {}
