//! `[[node]]`: a host, or a part of one, and the ranks on it.

use crate::cluster::setting;
use crate::fields::{NODES_MAX, RANKS_MAX};
use crate::file::{FileEntry, FileError, Reader};
use crate::mesh;
use crate::section::Section;
use crate::setting::Value;
use crate::table::Key;
use crate::units::Address;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, different for each.
    pub name: String,
    /// Line of its header; absent for the node of a file without nodes.
    pub line: Option<usize>,
    /// Whether it is on the host of the head.
    pub local: bool,
    /// Where other nodes reach it; there unless it is local.
    pub address: Option<Address>,
    /// Who starts it.
    pub launch: Launch,
    /// What its ranks compute on.
    pub device: NodeDevice,
    /// Number of its ranks.
    pub ranks: u32,
    /// Threads of each rank, if they are not shared out.
    pub cpu_threads: Option<u32>,
    /// Bytes that each rank may use, if that is bounded by hand.
    pub memory: Option<u64>,
    /// What joins its ranks: a kind of link.
    pub links: String,
    /// Folder of the model on the node, in place of the model's name.
    pub model_path: Option<PathBuf>,
    /// Words of the user's own.
    pub labels: Vec<String>,
    /// Environment of its ranks.
    pub env: BTreeMap<String, String>,
}

/// Who starts a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launch {
    /// The head, on its own host.
    Local,
    /// The head, by the system's ssh.
    Ssh {
        /// Destination.
        target: String,
    },
    /// Somebody, by hand.
    Manual,
}

/// What ranks compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeDevice {
    /// Threads of the CPU.
    Cpu,
    /// GPUs.
    Cuda {
        /// Index of each rank's GPU.
        gpus: Vec<u32>,
        /// What they are.
        model: String,
    },
}

impl NodeDevice {
    /// `cpu` or `cuda`: ranks of a replica have one kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda { .. } => "cuda",
        }
    }
}

impl Node {
    /// The host that it is on; nodes with the same one share memory.
    pub fn host(&self) -> &str {
        match &self.address {
            Some(address) if !self.local => &address.host,
            _ => LOCAL_HOST,
        }
    }
}

/// The nodes of a file.
pub(crate) fn build(
    reader: &Reader<'_>,
    sections: &[Section<'_, '_>],
    entries: &[FileEntry],
) -> Result<Vec<Node>, FileError> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut ranks = 0;
    for section in sections {
        let node = one(reader, section, entries)?;
        refuse_clash(section, &nodes, &node)?;
        ranks += u64::from(node.ranks);
        if nodes.len() == NODES_MAX || ranks > RANKS_MAX {
            let message = format!("node `{}`: more than {NODES_MAX} nodes or {RANKS_MAX} ranks", node.name);
            return Err(section.error(&["name"], message, "use fewer nodes, or fewer ranks on each"));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

/// The only node of a file that names none: this host, with as many ranks as the degrees need.
pub(crate) fn implied(entries: &[FileEntry]) -> Node {
    let ranks = mesh::ranks_asked(entries).min(RANKS_MAX) as u32;
    let is_cuda = is_cuda(entries);
    Node {
        name: LOCAL_HOST.into(),
        line: None,
        local: true,
        address: None,
        launch: Launch::Local,
        device: if is_cuda { cuda((0..ranks).collect(), None) } else { NodeDevice::Cpu },
        ranks,
        cpu_threads: threads(entries),
        memory: None,
        links: usual_links(is_cuda),
        model_path: None,
        labels: Vec::new(),
        env: BTreeMap::new(),
    }
}

fn one(reader: &Reader<'_>, s: &Section<'_, '_>, entries: &[FileEntry]) -> Result<Node, FileError> {
    let Some(name) = s.text("name") else {
        let message = "a node has no name".to_string();
        return Err(s.error(&[], message, "add for instance `name = \"node-1\"`"));
    };
    if name == HEAD {
        let message = format!("name `{HEAD}` is the head's own");
        return Err(s.error(&["name"], message, "give the node another name"));
    }
    let (local, address, launch) = place(s, &name)?;
    let (device, ranks) = device(s, &name, entries)?;
    let links = s.text("links").unwrap_or_else(|| usual_links(device != NodeDevice::Cpu));
    Ok(Node {
        line: Some(s.line()),
        cpu_threads: s.integer("cpu_threads").or_else(|| threads(entries)),
        memory: s.bytes("memory"),
        model_path: model_path(reader, s, &name, local)?,
        labels: s.words("labels"),
        env: s.env("env"),
        name,
        local,
        address,
        launch,
        device,
        ranks,
        links,
    })
}

/// Where a node is and who starts it.
fn place(s: &Section<'_, '_>, name: &str) -> Result<(bool, Option<Address>, Launch), FileError> {
    let (asked, address, target) = (s.text("launch"), s.address("address"), s.text("ssh"));
    let is_asked = |launch: &str| asked.as_deref() == Some(launch);
    let local = s.switch("local") || is_asked("local");
    if is_asked("local") && s.has("local") && !s.switch("local") {
        let message = format!("node `{name}` is not local, but launch is `local`");
        return Err(s.error(&["launch"], message, "remove `local = false`, or launch it by ssh or by hand"));
    }
    if let Some(address) = address.as_ref().filter(|a| a.is_unspecified() || !local && a.is_loopback()) {
        let message = format!("address `{address}` of node `{name}` leads nowhere from another host");
        let hint = "write `local = true` for a node on the head's host, or an address that other hosts reach";
        return Err(s.error(&["address"], message, hint));
    }
    if !local && address.is_none() {
        let message = format!("node `{name}` has neither an address nor `local = true`");
        return Err(s.error(&["name"], message, "add `address = \"10.0.0.7\"` or `local = true`"));
    }
    let launch = match (target, asked.as_deref()) {
        (Some(target), None | Some("ssh")) => Launch::Ssh { target },
        (Some(target), Some(other)) => {
            let message =
                format!("node `{name}` has the ssh destination `{target}`, but launch is `{other}`");
            return Err(s.error(&["launch"], message, "write `launch = \"ssh\"`, or remove `ssh`"));
        }
        (None, Some("ssh")) => {
            let message = format!("node `{name}` is launched by ssh, but has no `ssh`");
            return Err(s.error(&["launch"], message, "add `ssh = \"user@host\"`"));
        }
        (None, Some("manual")) => Launch::Manual,
        (None, _) if local => Launch::Local,
        (None, _) => Launch::Manual,
    };
    Ok((local, address, launch))
}

fn device(s: &Section<'_, '_>, name: &str, entries: &[FileEntry]) -> Result<(NodeDevice, u32), FileError> {
    let gpus = s.indices("gpus");
    let has_gpus = gpus.is_some() || s.has("gpu_model");
    let asked = s.text("device");
    if asked.as_deref() == Some("cpu") && has_gpus {
        let message = format!("node `{name}` has GPUs, but its device is `cpu`");
        return Err(s.error(
            &["device"],
            message,
            "write `device = \"cuda\"`, or remove `gpus` and `gpu_model`",
        ));
    }
    let is_cuda = match asked.as_deref() {
        Some(device) => device == "cuda",
        None => has_gpus || is_cuda(entries),
    };
    let given = gpus.as_ref().map(|gpus| gpus.len() as u32);
    let ranks = s.integer("ranks").or(given).unwrap_or(1);
    if let Some(given) = given.filter(|given| *given != ranks) {
        let message =
            format!("node `{name}` has {ranks} ranks for {given} GPUs: every rank has one of its own");
        return Err(s.error(&["ranks"], message, "remove `ranks`, or list as many GPUs"));
    }
    if !is_cuda {
        return Ok((NodeDevice::Cpu, ranks));
    }
    let gpus = gpus.unwrap_or_else(|| (0..ranks).collect());
    Ok((cuda(gpus, s.text("gpu_model")), ranks))
}

/// The model's folder on the node. Only the head's own host has the file beside it.
fn model_path(
    reader: &Reader<'_>,
    s: &Section<'_, '_>,
    name: &str,
    local: bool,
) -> Result<Option<PathBuf>, FileError> {
    let Some(text) = s.text("model_path") else { return Ok(None) };
    let is_fixed = Path::new(&text).is_absolute() || text.starts_with("~/");
    if !local && !is_fixed {
        let message =
            format!("model_path `{text}` of node `{name}` is relative, and the file is not on that host");
        return Err(s.error(&["model_path"], message, "write an absolute path, or one below `~/`"));
    }
    Ok(Some(reader.beside(&text)))
}

/// Refuses what two nodes cannot both have.
fn refuse_clash(s: &Section<'_, '_>, before: &[Node], node: &Node) -> Result<(), FileError> {
    let line = |other: &Node| other.line.unwrap_or(0);
    if let Some(other) = before.iter().find(|other| other.name == node.name) {
        let message = format!("two nodes are called `{}`, the first in line {}", node.name, line(other));
        return Err(s.error(&["name"], message, "give each node a name of its own"));
    }
    let same = |other: &&Node| node.address.is_some() && other.address == node.address && !node.local;
    if let (Some(other), Some(address)) = (before.iter().find(same), &node.address) {
        let message = format!("nodes `{}` and `{}` have the same address `{address}`", other.name, node.name);
        return Err(s.error(&["address"], message, "give one of them another host or port"));
    }
    let NodeDevice::Cuda { gpus, .. } = &node.device else { return Ok(()) };
    for other in before.iter().filter(|other| other.host() == node.host()) {
        let NodeDevice::Cuda { gpus: taken, .. } = &other.device else { continue };
        if let Some(gpu) = gpus.iter().find(|gpu| taken.contains(gpu)) {
            let message = format!("GPU {gpu} of host {} has node `{}` already", node.host(), other.name);
            return Err(s.error(&["gpus", "name"], message, "list different GPUs: `gpus = [2, 3]`"));
        }
    }
    Ok(())
}

fn cuda(gpus: Vec<u32>, model: Option<String>) -> NodeDevice {
    NodeDevice::Cuda { gpus, model: model.unwrap_or_else(|| USUAL_GPU.into()) }
}

fn usual_links(is_cuda: bool) -> String {
    if is_cuda { "nvlink" } else { "shm" }.into()
}

fn is_cuda(entries: &[FileEntry]) -> bool {
    matches!(setting(entries, Key::Device), Some(Value::Text(device)) if device == "cuda")
}

fn threads(entries: &[FileEntry]) -> Option<u32> {
    match setting(entries, Key::Threads) {
        Some(Value::Integer(n)) => u32::try_from(*n).ok(),
        _ => None,
    }
}

/// The host of the head, and the name of the node of a file without nodes.
const LOCAL_HOST: &str = "local";
/// What the head's own certificate is for.
const HEAD: &str = "head";
const USUAL_GPU: &str = "h100";
