//! `--cluster`: pictures are made by the nodes of a cluster, and written here.

use crate::args::{ClusterArgs, Launch};
use crate::failure::Failure;
use crate::{layout, setup};
use dg_config::{ClusterFile, Key, Layers, Node, NodeDevice, Settings, Value, state_folder};
use dg_core::ExitCode;
use dg_plan::Machine;
use dg_runtime::fleet::client::{AskError, HeadClient, NodeStatus, Status};
use dg_runtime::fleet::job::ModelCard;
use dg_runtime::fleet::{head, places};
use dg_runtime::placed::Placed;
use dg_runtime::{DeviceKind, asked};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The cluster that a run was given.
pub(crate) struct Remote {
    /// Its head.
    pub(crate) head: HeadClient,
    /// Name of the model; absent, that of the cluster's file.
    pub(crate) name: Option<String>,
    /// What the nodes know of it.
    pub(crate) card: ModelCard,
    /// What makes the pictures: what is asked for, else GPUs if the cluster has any.
    pub(crate) device: DeviceKind,
    /// Its ranks of that kind.
    pub(crate) ranks: u64,
    /// What they compute on, and what joins them.
    pub(crate) machine: Machine,
    /// What each of them reaches that is there, in operations per second, the fastest first.
    pub(crate) speeds: Vec<f64>,
}

impl Remote {
    /// Nobody has said how many ranks: all of them, but for slow ones that would only hold up a single picture.
    pub(crate) fn fill(&mut self, layers: &mut Layers) {
        let settings = layers.resolve();
        if asked::has_degrees(&settings) || settings.is_asked(Key::NumGpus) {
            return;
        }
        let has_one_row = !settings.is_asked(Key::PromptsFile);
        let (ranks, flops) = match fastest_together(&self.speeds) {
            Some((ranks, flops)) if has_one_row => (ranks, Some(flops)),
            _ => (self.ranks, self.speeds.last().copied()),
        };
        if let Some(flops) = flops {
            self.machine.device.flops = flops;
        }
        layers.add_flags([(Key::NumGpus, Value::Integer(ranks))]);
    }
}

/// How many of the fastest ranks compute most when all of them wait for the slowest, and its speed. `speeds` is in
/// falling order.
fn fastest_together(speeds: &[f64]) -> Option<(u64, f64)> {
    let together = (1..=speeds.len() as u64).zip(speeds).map(|(ranks, slowest)| (ranks, *slowest));
    together.max_by(|(m, a), (n, b)| (*m as f64 * a).total_cmp(&(*n as f64 * b)).then(m.cmp(n)))
}

/// What makes the pictures: what is asked for, else GPUs if the cluster has any, whether they are there now or not: the
/// same command means the same format on another day.
fn device(settings: &Settings, status: &Status) -> DeviceKind {
    let has_gpus = status.nodes.iter().any(|node| kind(node) == DeviceKind::Cuda);
    let usual = if has_gpus { DeviceKind::Cuda } else { DeviceKind::Cpu };
    asked::asked_device(settings).unwrap_or(usual)
}

/// What a node computes on.
fn kind(node: &NodeStatus) -> DeviceKind {
    if node.device == "cpu" { DeviceKind::Cpu } else { DeviceKind::Cuda }
}

/// Speeds of the ranks of such nodes that are up, in falling order; nothing if one of them is not known.
fn speeds(status: &Status, device: DeviceKind) -> Vec<f64> {
    let up = status.nodes.iter().filter(|node| node.state == "up" && kind(node) == device);
    let mut speeds: Vec<f64> =
        up.flat_map(|node| std::iter::repeat_n(node.rank_flops, usize::from(node.ranks))).collect();
    speeds.sort_by(|a, b| b.total_cmp(a));
    if speeds.last().is_some_and(|slowest| *slowest > 0.0) { speeds } else { Vec::new() }
}

/// The file of `--cluster`, unless it is an address.
pub(crate) fn file(args: &ClusterArgs) -> Result<Option<ClusterFile>, Failure> {
    let Some(name) = args.cluster.as_deref().filter(|name| !is_address(name)) else { return Ok(None) };
    let path = Path::new(name);
    Ok(Some(ClusterFile::read(path, &setup::config_text(path, "--cluster")?)?))
}

/// Whether a head that listens there is on this host. Without a note of its address it is not up then.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// What is no file and has a port.
fn is_address(name: &str) -> bool {
    let port = name.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| port.parse::<u16>().is_ok()) && !Path::new(name).exists()
}

/// Connects, and asks what the nodes know of the model.
pub(crate) async fn connect(
    args: &ClusterArgs,
    file: Option<&ClusterFile>,
    settings: &Settings,
) -> Result<Option<Remote>, Failure> {
    let is_away = args.cluster.is_some() || args.launch == Launch::Processes;
    if is_away && settings.text(Key::Trace).is_some() {
        return Err(Failure::usage("--trace shows ranks that are threads of this process")
            .hint("leave --trace out, or --cluster and --launch; --report tells what every rank sent"));
    }
    let Some(name) = args.cluster.as_deref() else { return Ok(None) };
    let head = match file {
        Some(file) => {
            let folder = args.state_dir.clone().unwrap_or_else(|| state_folder(file));
            let options = head::options(file);
            let listed = folder.join("head.addr").exists();
            if listed || is_here(&file.cluster.listen.host) {
                HeadClient::of_state(&folder, &args.client, options).await?
            } else {
                // The head is on another host: here is only a certificate.
                let address = file.cluster.listen.to_string();
                HeadClient::connect(&address, &folder, &args.client, options).await?
            }
        }
        None => {
            let folder = folder(args)?;
            HeadClient::connect(name, &folder, &args.client, head_options()).await?
        }
    };
    let model =
        settings.text(Key::ModelName).filter(|_| settings.is_asked(Key::ModelName)).map(str::to_owned);
    let card = head.model(model.as_deref()).await?;
    let status = head.status().await?;
    let device = device(settings, &status);
    let nodes = status.nodes.iter().filter(|node| kind(node) == device);
    let ranks = nodes.map(|node| u64::from(node.ranks)).sum();
    if ranks == 0 {
        let what = if device == DeviceKind::Cuda { "GPUs" } else { "CPUs" };
        return Err(Failure::infeasible(format!("the cluster has no ranks on {what}"))
            .hint("leave --device out, or add nodes"));
    }
    let machine = match file {
        Some(file) => {
            let is_cuda = |node: &&Node| matches!(node.device, NodeDevice::Cuda { .. });
            let like = |node: &&Node| is_cuda(node) == (device == DeviceKind::Cuda);
            let nodes: Vec<Node> = file.nodes.iter().filter(like).cloned().collect();
            Placed::new(&nodes, ranks).machine(&file.cluster.links, None)
        }
        None => layout::this_machine(),
    };
    let speeds = speeds(&status, device);
    Ok(Some(Remote { head, name: model, card, device, ranks, machine, speeds }))
}

fn head_options() -> dg_runtime::fleet::client::Options {
    dg_runtime::fleet::client::Options::dialer()
}

/// The state folder with the certificate for an address.
fn folder(args: &ClusterArgs) -> Result<PathBuf, Failure> {
    if let Some(folder) = &args.state_dir {
        return Ok(folder.clone());
    }
    match places::running().as_slice() {
        [(_, folder)] => Ok(folder.clone()),
        _ => Err(Failure::usage("--cluster names an address, and no certificate to ask it with").hint(
            "name the folder that has client.pem with --state_dir, or the cluster's file with --cluster",
        )),
    }
}

impl From<AskError> for Failure {
    fn from(e: AskError) -> Self {
        let exit = match &e {
            AskError::NotUp { .. } => ExitCode::Unreachable,
            _ => e.exit(),
        };
        Self { exit, message: e.to_string(), hint: e.hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_this_host_are_told_apart() {
        assert!(is_here("127.0.0.1") && is_here("::1") && is_here("localhost"));
        assert!(!is_here("10.0.0.1") && !is_here("0.0.0.0") && !is_here("rig.local"));
    }

    #[test]
    fn slow_ranks_are_left_out_where_they_would_hold_up_the_others() {
        assert_eq!(fastest_together(&[4.0, 4.0, 1.0, 1.0]), Some((2, 4.0)));
        assert_eq!(fastest_together(&[4.0, 4.0, 3.0, 3.0]), Some((4, 3.0)));
        assert_eq!(fastest_together(&[2.0, 1.0]), Some((2, 1.0)), "as fast, but with the memory of both");
        assert_eq!(fastest_together(&[]), None);
    }

    #[test]
    fn what_is_no_file_and_has_a_port_is_an_address() {
        assert!(is_address("10.0.0.1:7443") && is_address("rig.local:7443") && is_address("[::1]:7443"));
        assert!(!is_address("rig.toml") && !is_address("a:b") && !is_address("configs/rig:x.toml"));
    }
}
