//! What the head knows of a node, beyond what it decides by.

use super::events::Event;
use crate::fleet::job::ModelCard;
use crate::fleet::protocol::{AgentFacts, GpuUse, NodeSpec, WireLease};
use crate::logic::cluster::registry::Facts;
use crate::logic::cluster::{ModelHash, NodeId, Stamp, placement};
use dg_config::{ClusterFile, NodeDevice};
use dg_net::bus::Link;
use std::collections::BTreeMap;

/// A node of the file.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) spec: NodeSpec,
    pub(super) kind: placement::Kind,
    pub(super) device: String,
    /// Bytes that the file grants to each rank.
    memory: Option<u64>,
    pub(super) link: Option<Link>,
    pub(super) incarnation: u64,
    pub(super) facts: Option<AgentFacts>,
    /// Models that it has said to have, by the names that they were asked for.
    pub(super) models: BTreeMap<String, Result<ModelCard, String>>,
    pub(super) ranks: Vec<RankInfo>,
    /// Whether the head's logic has heard of this incarnation's connection.
    pub(super) is_in: bool,
}

/// What the head knows of a rank, for those who ask.
#[derive(Clone, Debug, Default)]
pub(super) struct RankInfo {
    pub(super) pid: Option<u32>,
    pub(super) memory: u64,
    pub(super) gpu: Option<GpuUse>,
    pub(super) step: u32,
    pub(super) epoch: Option<Stamp>,
}

impl Node {
    /// The nodes of a file.
    pub(super) fn all(file: &ClusterFile, model: Option<&str>) -> Vec<Self> {
        let mut first = 0;
        let lease = lease(file);
        // Ranks of other hosts reach those beside the head where their agents reach the head.
        let is_alone = file.nodes.iter().all(|node| node.local);
        let own_host = if is_alone { LOOPBACK.to_owned() } else { file.cluster.listen.host.clone() };
        let nodes = file.nodes.iter().enumerate().map(|(index, node)| {
            let slots = u16::try_from(node.ranks).unwrap_or(u16::MAX);
            let path = node.model_path.as_ref().map(|path| path.display().to_string());
            let plane_host = match &node.address {
                Some(address) => address.host.clone(),
                None => own_host.clone(),
            };
            let spec = NodeSpec {
                slots,
                first,
                threads: node.cpu_threads,
                model: path.or_else(|| model.map(str::to_owned)),
                plane_host,
                tensor_tls: file.security.tensor_tls,
                gpus: match &node.device {
                    NodeDevice::Cpu => None,
                    NodeDevice::Cuda { gpus, .. } => Some(gpus.clone()),
                },
                env: node.env.clone(),
                lease,
            };
            first += u32::from(slots);
            let (kind, device) = match &node.device {
                NodeDevice::Cpu => (placement::Kind::Cpu, "cpu".to_owned()),
                NodeDevice::Cuda { model, .. } => (placement::Kind::Cuda, model.clone()),
            };
            Self {
                id: NodeId(u32::try_from(index).unwrap_or(u32::MAX)),
                name: node.name.clone(),
                spec,
                kind,
                device,
                memory: node.memory,
                link: None,
                incarnation: 0,
                facts: None,
                models: BTreeMap::new(),
                ranks: vec![RankInfo::default(); usize::from(slots)],
                is_in: false,
            }
        });
        nodes.collect()
    }

    /// Number of a rank among all of the cluster.
    pub(super) fn number(&self, slot: u16) -> u32 {
        self.spec.first + u32::from(slot)
    }

    /// What the logic goes by.
    pub(super) fn logic_facts(&self) -> Option<Facts> {
        let facts = self.facts.as_ref()?;
        let share = match self.kind {
            placement::Kind::Cpu => facts.memory_bytes / u64::from(self.spec.slots.max(1)),
            placement::Kind::Cuda => dg_plan::machine::device(&self.device).map_or(0, |gpu| gpu.memory_bytes),
        };
        let models = self.models.values().filter_map(|card| card.as_ref().ok()).map(hash);
        Some(Facts {
            name: self.name.clone(),
            incarnation: self.incarnation,
            kind: self.kind,
            slots: self.spec.slots,
            memory_bytes: self.memory.unwrap_or(if share > 0 { share } else { u64::MAX }),
            flops: self.rank_flops() as u64,
            models: models.collect(),
            running: facts.running.clone(),
        })
    }

    /// Operations per second that each of its ranks reaches; 0 before it has told.
    pub(super) fn rank_flops(&self) -> f64 {
        let Some(facts) = self.facts.as_ref() else { return 0.0 };
        if self.kind == placement::Kind::Cuda {
            return dg_plan::machine::device(&self.device).map_or(0.0, |device| device.flops);
        }
        cpu_flops(facts, self.spec.slots, self.spec.threads)
    }

    /// An event about it.
    pub(super) fn event(&self, kind: &'static str, message: String) -> Event {
        Event { kind, message, node: Some(self.name.clone()), ..Event::default() }
    }
}

/// How nodes are compared.
pub(super) fn hash(card: &ModelCard) -> ModelHash {
    let digits = card.id.hash.get(..16).unwrap_or_default();
    ModelHash(u64::from_str_radix(digits, 16).unwrap_or(0))
}

fn lease(file: &ClusterFile) -> WireLease {
    let ttl = file.cluster.lease_ttl;
    WireLease {
        ttl,
        renew: ttl / 5,
        margin: ttl / 5,
        grace: file.failure.abort_grace,
        alone_max: file.failure.orphan_exit,
    }
}

/// Of a rank on a host whose processors `slots` ranks share.
fn cpu_flops(facts: &AgentFacts, slots: u16, threads: Option<u32>) -> f64 {
    let share = f64::from(facts.cores) / f64::from(slots.max(1));
    // Threads that share a core are no faster than one.
    let flops = facts.core_flops * threads.map_or(share, |threads| share.min(f64::from(threads)));
    if flops.is_finite() { flops.clamp(0.0, FLOPS_MAX) } else { 0.0 }
}

/// No rank is faster.
const FLOPS_MAX: f64 = 1e18;
const LOOPBACK: &str = "127.0.0.1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_the_processors_of_their_host() {
        let of = |core_flops: f64, slots, threads| {
            let (memory_bytes, running) = (0, Vec::new());
            let facts = AgentFacts { pid: 1, memory_bytes, cores: 8, core_flops, running, spec: None };
            cpu_flops(&facts, slots, threads)
        };
        assert_eq!((of(10.0, 2, None), of(10.0, 16, None)), (40.0, 5.0));
        assert_eq!((of(10.0, 2, Some(3)), of(10.0, 2, Some(64))), (30.0, 40.0));
        assert_eq!((of(f64::NAN, 1, None), of(f64::INFINITY, 1, None), of(-1.0, 1, None)), (0.0, 0.0, 0.0));
    }
}
