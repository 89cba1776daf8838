//! `dg-cluster validate`: is a file right, and what does it describe. Flags and the environment have no say.

use crate::failure::{Failure, print};
use crate::load::load;
use crate::model;
use crate::table::{bytes, columns, count, ranges};
use dg_config::units::duration_text;
use dg_config::{ClusterFile, Key, Launch, Layers, Node, Settings};
use dg_runtime::asked;
use dg_runtime::placed::{Placed, device_text};
use std::fmt::Write as _;
use std::path::Path;

/// Checks a file and prints what it describes.
pub(crate) fn validate(path: &Path) -> Result<(), Failure> {
    let loaded = load(path)?;
    loaded.file.check_layout(&loaded.text)?;
    print(page(&loaded.file).trim_end())
}

fn page(file: &ClusterFile) -> String {
    let placed = Placed::new(&file.nodes, file.ranks());
    format!(
        "OK  {}: cluster `{}`, {} on {}, {}\n\n{}\n{}{}",
        file.path.display(),
        file.cluster.name,
        count(file.nodes.len(), "node"),
        count(placed.hosts(), "host"),
        count(file.ranks() as usize, "rank"),
        nodes(file, &placed),
        layout(file, &placed),
        rules(file)
    )
}

fn nodes(file: &ClusterFile, placed: &Placed) -> String {
    let settings = settings(file);
    let heading = ["node", "host", "launch", "device", "ranks", "threads", "memory", "links", "model"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (i, node) in file.nodes.iter().enumerate().take(NODES_SHOWN) {
        let launch = match &node.launch {
            Launch::Local => "local".to_string(),
            Launch::Ssh { target } => format!("ssh {target}"),
            Launch::Manual => "manual".into(),
        };
        let or = |text: Option<String>, other: &str| text.unwrap_or_else(|| other.to_string());
        rows.push(vec![
            node.name.clone(),
            node.host().to_string(),
            launch,
            device_text(node),
            ranges(&placed.ranks_of(i)),
            or(node.cpu_threads.map(|n| n.to_string()), "auto"),
            or(node.memory.map(bytes), "auto"),
            node.links.clone(),
            model(&settings, node),
        ]);
    }
    let mut out = columns(&rows, &[5, 6]);
    if file.nodes.len() > NODES_SHOWN {
        let _ = writeln!(out, " … {} more", file.nodes.len() - NODES_SHOWN);
    }
    out
}

/// The settings of the file alone.
fn settings(file: &ClusterFile) -> Settings {
    let mut layers = Layers::default();
    layers.add_cluster_file(file);
    layers.resolve()
}

fn model(settings: &Settings, node: &Node) -> String {
    let named = settings.text(Key::ModelName).unwrap_or(model::DEMO);
    node.model_path.as_ref().map_or_else(|| named.to_string(), |path| path.display().to_string())
}

fn layout(file: &ClusterFile, placed: &Placed) -> String {
    let settings = settings(file);
    if !asked::has_degrees(&settings) {
        return "layout     looked for when a job is planned: no degrees are given\n".into();
    }
    let layout = asked::degrees(&settings);
    let groups = placed.groups(&layout).map(|text| format!("groups     {text}\n"));
    format!("layout     {layout}\n{}", groups.unwrap_or_default())
}

fn rules(file: &ClusterFile) -> String {
    let (c, f, s) = (&file.cluster, &file.failure, &file.security);
    let t = duration_text;
    let usual = || "the usual place".to_string();
    let state = c.state_dir.as_ref().map_or_else(usual, |dir| dir.display().to_string());
    format!(
        "head       listens on {}, state in {state}, hosts joined by {}\n\
         silence    sign of life each {}, connection lost after {}, lease {}\n\
         failure    a rank hangs after {} median steps and {}, or {} at the ends; {} deaths in {} are too many; {} starts without a new \
         step fail a job; checkpoint each {} steps; abort {}, orphans {}\n\
         security   tensors between hosts {}, join tokens live {}\n",
        c.listen,
        c.links,
        t(c.keep_alive),
        t(c.idle_timeout),
        t(c.lease_ttl),
        f.hang_factor,
        t(f.hang_min),
        t(f.hang_first),
        f.rank_deaths,
        t(f.rank_deaths_within),
        f.epochs_without_progress,
        f.checkpoint_every,
        t(f.abort_grace),
        t(f.orphan_exit),
        if s.tensor_tls { "encrypted" } else { "in the clear" },
        t(s.token_lifetime),
    )
}

/// Nodes that fit on a screen.
const NODES_SHOWN: usize = 16;
