//! A plan for reading.

use super::Planned;
use crate::table::{bytes, columns, count, ranges};
use dg_plan::{Class, Coords, Passes};
use dg_runtime::placed::{ByReach, device_text, is_once};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The whole page.
pub(super) fn page(p: &Planned) -> String {
    let sent = p.placed.sent(&p.plan);
    head(p) + "\n" + &nodes(p, &sent) + &traffic(&sent) + &choice(p)
}

fn head(p: &Planned) -> String {
    let (plan, w) = (&p.plan, &p.plan.work);
    let time = plan.predict(&p.machine);
    let exact = if plan.is_exact() { "the serial picture" } else { "drifts from the serial picture" };
    let passes = match plan.passes {
        Passes::Whole => "the whole sequence at once".to_string(),
        Passes::Streams => "exact pipeline".into(),
        Passes::Patches => format!("{} patches, warm-up {}", plan.patches.runs().len(), plan.warmup),
    };
    let mut out = format!(
        "cluster    {}: {} on {}\n\
         model      {}, {}\n\
         work       {} of {}, {} steps{}\n\
         ranks      {}: {}\n\
         passes     {passes}; {exact}\n",
        p.file.cluster.name,
        count(p.placed.nodes.len(), "node"),
        count(p.placed.hosts(), "host"),
        p.model,
        w.dtype,
        count(w.images, "picture"),
        w.size,
        w.steps,
        if w.true_cfg { ", true CFG" } else { "" },
        plan.ranks(),
        plan.layout,
    );
    if let Some(groups) = p.placed.groups(&plan.layout) {
        let _ = writeln!(out, "groups     {groups}");
    }
    let _ = writeln!(
        out,
        "predicted  {:.2} s of denoising on {} with {}; a step {:.1} ms, of which {:.1} ms are not computing",
        time.run_s,
        p.machine.device.name,
        p.machine.links,
        1e3 * time.step_s,
        1e3 * time.exposed_s,
    );
    p.simplified.iter().for_each(|note| {
        let _ = writeln!(out, "           {note}");
    });
    out
}

fn nodes(p: &Planned, sent: &BTreeMap<(usize, Class), ByReach>) -> String {
    let heading = [
        "node",
        "host",
        "device",
        "ranks",
        "replicas",
        "stages",
        "memory/rank",
        "inside/step",
        "to nodes/step",
        "to hosts/step",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (i, node) in p.placed.nodes.iter().enumerate().take(NODES_SHOWN) {
        let ranks = p.placed.ranks_of(i);
        let coords = ranks.iter().map(|rank| p.plan.layout.coords(*rank));
        let distinct = |of: fn(Coords) -> u32| {
            let all: BTreeSet<u32> = coords.clone().map(of).collect();
            ranges(&all.into_iter().collect::<Vec<_>>())
        };
        let memory = ranks.iter().map(|rank| p.plan.memory(*rank).total()).max().unwrap_or(0);
        let mut out = ByReach::default();
        sent.iter()
            .filter(|((node, class), _)| *node == i && !is_once(*class))
            .for_each(|(_, b)| out.merge(b));
        rows.push(vec![
            node.name.clone(),
            node.host().to_string(),
            device_text(node),
            ranges(&ranks),
            distinct(|at| at.dp),
            distinct(|at| at.pp),
            bytes(memory),
            bytes(out.node),
            bytes(out.host),
            bytes(out.network),
        ]);
    }
    let mut out = columns(&rows, &[6, 7, 8, 9]);
    if p.placed.nodes.len() > NODES_SHOWN {
        let _ = writeln!(out, " … {} more; -o json has them all", p.placed.nodes.len() - NODES_SHOWN);
    }
    out
}

/// Bytes of all ranks by class, and how far they go.
fn traffic(sent: &BTreeMap<(usize, Class), ByReach>) -> String {
    let mut of_class: BTreeMap<Class, ByReach> = BTreeMap::new();
    sent.iter().for_each(|((_, class), bytes)| of_class.entry(*class).or_default().merge(bytes));
    if of_class.is_empty() {
        return "\nNothing is sent: no rank shares a picture with another.\n".into();
    }
    let heading = ["sent by all ranks", "inside nodes", "between nodes of a host", "between hosts", ""];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(of_class.iter().map(|(class, b)| {
        let when = if is_once(*class) { "once per batch" } else { "per step" };
        vec![class.name().into(), bytes(b.node), bytes(b.host), bytes(b.network), when.into()]
    }));
    format!("\n{}", columns(&rows, &[1, 2, 3]))
}

fn choice(p: &Planned) -> String {
    let Some(search) = &p.search else { return String::new() };
    let heading = ["", "run s", "step ms", "memory/rank", "layout"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    let shown = search.candidates.iter().enumerate();
    for (i, c) in shown.filter(|(i, _)| *i < LAYOUTS_SHOWN || search.chosen == Some(*i)) {
        let exact = if c.is_exact { "" } else { " (changes the picture)" };
        let fits = if c.fits { "" } else { " (does not fit)" };
        rows.push(vec![
            if search.chosen == Some(i) { ">" } else { "" }.into(),
            format!("{:.2}", c.time.run_s),
            format!("{:.1}", 1e3 * c.time.step_s),
            bytes(c.memory),
            format!("{}{exact}{fits}", c.layout),
        ]);
    }
    format!("\n{}chosen     {}\n", columns(&rows, &[1, 2, 3]), search.reason)
}

const NODES_SHOWN: usize = 32;
const LAYOUTS_SHOWN: usize = 5;
