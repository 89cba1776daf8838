//! Which rank is on which node, what joins them, and what they compute on. Pure.
//!
//! Ranks follow the order of the nodes. The planner knows one device and links in equal blocks, so nodes that differ
//! are planned as the slowest of them, and hosts of different sizes as blocks of the greatest size that divides all.

use dg_config::{Node, NodeDevice};
use dg_plan::{Class, Device, Dim, Layout, LinkKind, Links, Machine, Plan, links, machine};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes and the ranks on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The nodes that have ranks, in order.
    pub nodes: Vec<Node>,
    /// Index of each rank's node.
    of_rank: Vec<usize>,
}

/// How far a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// To a rank of the same node.
    Node,
    /// To another node of the same host.
    Host,
    /// To another host.
    Network,
}

impl Reach {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Node => "inside nodes",
            Self::Host => "between nodes of a host",
            Self::Network => "between hosts",
        }
    }
}

/// Bytes by how far they go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByReach {
    /// Within nodes.
    pub node: u64,
    /// Between nodes of a host.
    pub host: u64,
    /// Between hosts.
    pub network: u64,
}

impl ByReach {
    /// Adds bytes.
    pub fn add(&mut self, reach: Reach, bytes: u64) {
        match reach {
            Reach::Node => self.node += bytes,
            Reach::Host => self.host += bytes,
            Reach::Network => self.network += bytes,
        }
    }

    /// Adds what another has.
    pub fn merge(&mut self, other: &Self) {
        self.add(Reach::Node, other.node);
        self.add(Reach::Host, other.host);
        self.add(Reach::Network, other.network);
    }
}

impl Placed {
    /// The first `ranks` ranks of these nodes.
    pub fn new(nodes: &[Node], ranks: u64) -> Self {
        let mut left = u32::try_from(ranks).unwrap_or(u32::MAX);
        let mut placed = Self { nodes: Vec::new(), of_rank: Vec::new() };
        for node in nodes {
            let taken = node.ranks.min(left);
            if taken == 0 {
                break;
            }
            left -= taken;
            placed.of_rank.extend(std::iter::repeat_n(placed.nodes.len(), taken as usize));
            placed.nodes.push(Node { ranks: taken, ..node.clone() });
        }
        placed
    }

    /// The node of a rank, by index.
    pub fn node(&self, rank: u32) -> usize {
        self.of_rank.get(rank as usize).copied().unwrap_or(0)
    }

    /// The ranks of a node.
    pub fn ranks_of(&self, node: usize) -> Vec<u32> {
        (0..self.of_rank.len() as u32).filter(|rank| self.node(*rank) == node).collect()
    }

    /// Hosts of these nodes.
    pub fn hosts(&self) -> usize {
        let hosts: BTreeSet<&str> = self.nodes.iter().map(Node::host).collect();
        hosts.len()
    }

    /// How far it is from one rank to another.
    pub fn reach(&self, a: u32, b: u32) -> Reach {
        let (a, b) = (self.node(a), self.node(b));
        match (self.nodes.get(a), self.nodes.get(b)) {
            _ if a == b => Reach::Node,
            (Some(a), Some(b)) if a.host() == b.host() => Reach::Host,
            _ => Reach::Network,
        }
    }

    /// How far the groups of a dimension reach; nothing for a degree of 1.
    pub fn reach_of(&self, layout: &Layout, dim: Dim) -> Option<Reach> {
        if layout.degree(dim) == 1 {
            return None;
        }
        let next = |rank: u32| {
            let at = layout.coords(rank);
            let place = layout.group(rank, dim).iter().position(|other| *other == rank)? as u32;
            let other = (place + 1 < layout.degree(dim)).then(|| layout.rank(at.with(dim, place + 1)))?;
            Some(self.reach(rank, other))
        };
        (0..self.of_rank.len() as u32).filter_map(next).max()
    }

    /// How far the groups of each dimension reach, in words; nothing where all degrees are 1.
    pub fn groups(&self, layout: &Layout) -> Option<String> {
        let reach = |(dim, name): &(Dim, &str)| {
            self.reach_of(layout, *dim).map(|reach| format!("{name} {}", reach.text()))
        };
        let all: Vec<String> = DIMS.iter().filter_map(reach).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// How ranks are joined, for predictions: inside hosts the slowest link of any node, between hosts `network`.
    pub fn links(&self, network: &str) -> Links {
        let inside = self.nodes.iter().filter_map(|node| links::kind(&node.links));
        let inside = inside.min_by(|a, b| a.bandwidth.total_cmp(&b.bandwidth)).unwrap_or(links::KINDS[0]);
        let blocks = self.host_blocks();
        let Some(between) = links::kind(network).filter(|_| blocks.len() > 1) else {
            return Links::flat(inside);
        };
        let block = blocks.into_iter().fold(0, gcd);
        let text = |kind: LinkKind| kind.name;
        match block {
            0 | 1 => Links::flat(between),
            _ => Links::parse(&format!("{}:{block},{}", text(inside), text(between)))
                .unwrap_or_else(|_| Links::flat(between)),
        }
    }

    /// Ranks of each run of nodes that are on one host.
    fn host_blocks(&self) -> Vec<u32> {
        let mut blocks: Vec<(&str, u32)> = Vec::new();
        for node in &self.nodes {
            match blocks.last_mut() {
                Some((host, ranks)) if *host == node.host() => *ranks += node.ranks,
                _ => blocks.push((node.host(), node.ranks)),
            }
        }
        blocks.into_iter().map(|(_, ranks)| ranks).collect()
    }

    /// The slowest device of all ranks, under `network`.
    pub fn machine(&self, network: &str, device: Option<Device>) -> Machine {
        let slowest = self.nodes.iter().map(device_of).min_by(|a, b| a.flops.total_cmp(&b.flops));
        let device = device.or(slowest).unwrap_or(machine::DEVICES[0]);
        Machine::new(device, self.links(network))
    }

    /// Bytes that every rank may use: of the node with the least, if any node bounds it.
    pub fn memory(&self, device: Option<Device>) -> Option<u64> {
        let of = |node: &Node| {
            let gpu = match (&node.device, device) {
                (_, Some(device)) => (device.name != CPU).then_some(device),
                (NodeDevice::Cuda { model, .. }, None) => machine::device(model),
                (NodeDevice::Cpu, None) => None,
            };
            node.memory.or_else(|| gpu.map(|gpu| gpu.memory_bytes))
        };
        self.nodes.iter().filter_map(of).min()
    }

    /// What was simplified to predict times, in words.
    pub fn simplified(&self, given: Option<Device>) -> Vec<String> {
        let mut said = Vec::new();
        let mut devices: Vec<Device> = self.nodes.iter().map(device_of).collect();
        devices.dedup();
        if let (true, None) = (devices.len() > 1, given) {
            said.push("nodes compute at different speeds: times are those of the slowest".to_string());
        }
        let blocks = self.host_blocks();
        let block = blocks.iter().copied().fold(0, gcd);
        if blocks.iter().any(|ranks| *ranks != block) {
            said.push(format!(
                "hosts have different numbers of ranks: times are those of hosts with {block} ranks each"
            ));
        }
        said
    }

    /// What the ranks of each node send: in a usual step, and of the classes of [`is_once`] in a batch.
    pub fn sent(&self, plan: &Plan) -> BTreeMap<(usize, Class), ByReach> {
        let images = plan.batch_images();
        // the first step may warm up
        let step = plan.warmup.min(plan.work.steps.saturating_sub(1));
        let mut sums: BTreeMap<(usize, Class), ByReach> = BTreeMap::new();
        for rank in 0..plan.ranks() {
            let mut traffic = plan.sent_in_step(rank, images, step);
            traffic.add(&plan.sent_before(rank, images), 1);
            traffic.add(&plan.sent_after(rank, images), 1);
            for (class, sent) in &traffic.0 {
                let sum = sums.entry((self.node(rank), *class)).or_default();
                sent.to.iter().for_each(|(to, bytes)| sum.add(self.reach(rank, *to), *bytes));
            }
        }
        sums
    }
}

/// Whether messages of a class are sent once per batch rather than in every step.
pub fn is_once(class: Class) -> bool {
    matches!(class, Class::Embeds | Class::Gather)
}

/// What a node's ranks compute on, as the planner knows it: of a CPU, as many cores as a rank has threads.
fn device_of(node: &Node) -> Device {
    let name = match &node.device {
        NodeDevice::Cpu => CPU,
        NodeDevice::Cuda { model, .. } => model,
    };
    let device = machine::device(name).unwrap_or(machine::DEVICES[0]);
    let cores = if name == CPU { f64::from(node.cpu_threads.unwrap_or(1)) } else { 1.0 };
    Device { flops: device.flops * cores, ..device }
}

/// `cpu`, or `cuda` with its GPUs and what they are.
pub fn device_text(node: &Node) -> String {
    match &node.device {
        NodeDevice::Cpu => CPU.into(),
        NodeDevice::Cuda { gpus, model } => format!("cuda {} {model}", ranges(gpus)),
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

const CPU: &str = "cpu";
/// Dimensions as they are called.
const DIMS: [(Dim, &str); 5] = [
    (Dim::Ulysses, "ulysses"),
    (Dim::Ring, "ring"),
    (Dim::Pp, "pipefusion"),
    (Dim::Cfg, "cfg"),
    (Dim::Dp, "data"),
];

/// `0-3`, or `0` alone, or `2,5` where there are gaps.
pub fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if n.checked_sub(1) == Some(*last) => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let text = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::ClusterFile;
    use std::path::Path;

    /// `host:ranks` for each node.
    fn placed(nodes: &str) -> Placed {
        let node = |(i, part): (usize, &str)| {
            let (host, ranks) = part.split_once(':').unwrap();
            let place = if host == "local" {
                "local = true".into()
            } else {
                format!("address = \"{host}:{}\"", i + 1)
            };
            format!("[[node]]\nname = \"n{i}\"\n{place}\nranks = {ranks}\n")
        };
        let text: String = nodes.split(' ').enumerate().map(node).collect();
        let text = format!("[cluster]\nlisten = \"10.0.0.1:7443\"\n{text}");
        let file = ClusterFile::read(Path::new("x.toml"), &text).unwrap();
        Placed::new(&file.nodes, file.ranks())
    }

    #[test]
    fn links_follow_hosts() {
        for (nodes, expect) in [
            ("local:2 local:2", "shm"),
            ("local:4", "shm"),
            ("local:2 far:2", "shm:2,eth10"),
            ("local:2 local:2 far:4", "shm:4,eth10"),
            ("a:4 b:6", "shm:2,eth10"),
            ("a:3 b:2", "eth10"),
            ("a:1 b:1", "eth10"),
        ] {
            assert_eq!(placed(nodes).links("eth10").to_string(), expect, "{nodes}");
        }
        assert_eq!(placed("a:3 b:2").simplified(None).len(), 1);
        assert_eq!(placed("a:3 b:3").simplified(None).len(), 0);
    }

    #[test]
    fn groups_reach_as_far_as_their_ranks() {
        let placed = placed("local:2 local:2 far:4");
        let layout = Layout { ulysses: 2, ring: 2, dp: 2, ..Layout::SERIAL };
        let reach = |dim| placed.reach_of(&layout, dim);
        assert_eq!(reach(Dim::Ulysses), Some(Reach::Node));
        assert_eq!(reach(Dim::Ring), Some(Reach::Host));
        assert_eq!((reach(Dim::Dp), reach(Dim::Pp)), (Some(Reach::Network), None));
        assert_eq!((placed.ranks_of(2), placed.hosts()), (vec![4, 5, 6, 7], 2));
        let fewer = Placed::new(&placed.nodes, 3);
        assert_eq!((fewer.nodes.len(), fewer.nodes[1].ranks), (2, 1));
    }
}
