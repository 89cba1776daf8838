//! Degrees against nodes: as many ranks as there are, and one kind of rank in each replica.

use crate::cluster::{ClusterFile, setting};
use crate::file::{FileEntry, FileError, Reader};
use crate::node::Node;
use crate::setting::Value;
use crate::table::Key;

/// A replica with ranks of two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixed<'a> {
    /// The replica, from 0.
    pub replica: u64,
    /// The node of its first rank.
    pub first: &'a Node,
    /// A node of another kind.
    pub other: &'a Node,
}

impl std::fmt::Display for Mixed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "replica {} would have {} ranks of node `{}` and {} ranks of node `{}`: they exchange tensors in every \
             step, so all would wait for the slowest kind, and no transport joins the two",
            self.replica,
            self.first.device.kind(),
            self.first.name,
            self.other.device.kind(),
            self.other.name
        )
    }
}

/// The first replica of `replica_ranks` consecutive ranks that has ranks of two kinds.
pub fn mixed(nodes: &[Node], replica_ranks: u64) -> Option<Mixed<'_>> {
    let step = replica_ranks.max(1);
    let mut begin = 0u64;
    let mut open: Option<(u64, &Node)> = None;
    for node in nodes {
        // the replica that this node's first rank falls into may have begun on a node before
        let replica = begin / step;
        if let Some((at, first)) = open.filter(|(at, _)| *at == replica)
            && first.device.kind() != node.device.kind()
        {
            return Some(Mixed { replica: at, first, other: node });
        }
        begin += u64::from(node.ranks);
        let last = (begin - 1) / step;
        if open.is_none_or(|(at, _)| at != last) {
            open = Some((last, node));
        }
    }
    None
}

/// Ranks that the settings of a file ask for: num_gpus, or the product of the degrees.
pub(crate) fn ranks_asked(entries: &[FileEntry]) -> u64 {
    integer(entries, Key::NumGpus).unwrap_or_else(|| product(entries).max(1))
}

/// See [`ClusterFile::check_layout`].
pub(crate) fn check(file: &ClusterFile, reader: &Reader<'_>) -> Result<(), FileError> {
    let (entries, have) = (&file.entries, file.ranks());
    let named = |key: &Key| entries.iter().find(|e| e.key == *key);
    let count = named(&Key::NumGpus);
    if let Some((entry, asked)) = count.zip(integer(entries, Key::NumGpus)).filter(|(_, n)| *n != have) {
        let message = format!("num_gpus = {asked}, but the nodes have {have} ranks: {}", sum(&file.nodes));
        let hint = format!("write `num_gpus = {have}` or remove it, or change `ranks` of the nodes");
        return Err(reader.error(entry.at.clone(), message, Some(hint)));
    }
    let need = product(entries);
    let degree = DEGREES.iter().rev().find_map(named);
    if let Some(entry) = degree.filter(|_| need != have) {
        let message = format!(
            "the degrees need {need} ranks, the nodes have {have}: ulysses × ring × pipefusion × data × (2 if cfg) = \
             {} = {need}, {} = {have}",
            factors(entries),
            sum(&file.nodes)
        );
        return Err(reader.error(entry.at.clone(), message, Some(product_hint(entries, need, have))));
    }
    let replica = match degree {
        Some(_) => need / degree_of(entries, Key::DataParallelDegree),
        None => 1,
    };
    let Some(found) = mixed(&file.nodes, replica) else { return Ok(()) };
    let hint = format!(
        "a replica has {replica} ranks, in the order of the nodes: keep nodes of one kind together, and make their \
         ranks a multiple of {replica}, or leave the degrees out"
    );
    Err(reader.error_in_line(found.other.line.unwrap_or(1), found.to_string(), hint))
}

fn product_hint(entries: &[FileEntry], need: u64, have: u64) -> String {
    let dp = degree_of(entries, Key::DataParallelDegree);
    let replica = need / dp;
    match have.is_multiple_of(replica) {
        true => format!("`data_parallel_degree = {}` fills the nodes", have / replica),
        false => "change the degrees, or `ranks` of the nodes; `dg-cluster plan` finds degrees where none are given".into(),
    }
}

/// `4 × 1 × 1 × 2 × 1`.
fn factors(entries: &[FileEntry]) -> String {
    let cfg = if is_cfg(entries) { 2 } else { 1 };
    let degrees = COUNTED.map(|key| degree_of(entries, key).to_string());
    format!("{} × {cfg}", degrees.join(" × "))
}

/// `4 + 4`.
fn sum(nodes: &[Node]) -> String {
    let mut terms: Vec<String> = nodes.iter().take(TERMS_SHOWN).map(|node| node.ranks.to_string()).collect();
    if nodes.len() > TERMS_SHOWN {
        terms.push("…".into());
    }
    terms.join(" + ")
}

fn product(entries: &[FileEntry]) -> u64 {
    let degrees = COUNTED.map(|key| degree_of(entries, key));
    degrees.into_iter().fold(if is_cfg(entries) { 2 } else { 1 }, u64::saturating_mul)
}

fn degree_of(entries: &[FileEntry], key: Key) -> u64 {
    integer(entries, key).unwrap_or(1).max(1)
}

fn is_cfg(entries: &[FileEntry]) -> bool {
    setting(entries, Key::UseCfgParallel) == Some(&Value::Switch(true))
}

fn integer(entries: &[FileEntry], key: Key) -> Option<u64> {
    match setting(entries, key) {
        Some(Value::Integer(n)) => Some(*n),
        _ => None,
    }
}

/// Degrees in the order in which errors write them.
const COUNTED: [Key; 4] =
    [Key::UlyssesDegree, Key::RingDegree, Key::PipefusionDegree, Key::DataParallelDegree];
/// All that say how ranks are laid out.
const DEGREES: [Key; 5] = [
    Key::UlyssesDegree,
    Key::RingDegree,
    Key::PipefusionDegree,
    Key::UseCfgParallel,
    Key::DataParallelDegree,
];
/// Terms of a sum that an error shows.
const TERMS_SHOWN: usize = 8;
