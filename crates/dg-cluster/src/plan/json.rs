//! A plan for programs; docs/cluster.md describes it.

use super::Planned;
use dg_config::{Launch, Node, NodeDevice};
use dg_plan::Class;
use dg_runtime::placed::{ByReach, is_once};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The plan as one object.
pub(super) fn object(p: &Planned) -> Value {
    let (plan, w) = (&p.plan, &p.plan.work);
    let sent = p.placed.sent(plan);
    let nodes = p.placed.nodes.iter().enumerate();
    json!({
        "schema": SCHEMA,
        "cluster": p.file.cluster.name,
        "model": {"id": p.model, "dtype": w.dtype},
        "work": {
            "size": w.size.to_string(), "text_tokens": w.text_tokens, "steps": w.steps, "images": w.images,
            "batch_images": plan.batch_images(), "true_cfg": w.true_cfg,
        },
        "layout": plan.layout.reported(plan.patches.runs().len() as u32, plan.warmup as u32),
        "passes": plan.passes,
        "is_exact": plan.is_exact(),
        "warnings": plan.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "machine": {"device": p.machine.device.name, "links": p.machine.links.to_string()},
        "simplified": p.simplified,
        "predicted": plan.predict(&p.machine),
        "nodes": nodes.map(|(i, node)| of_node(p, i, node, &sent)).collect::<Vec<_>>(),
        "ranks": (0..plan.ranks()).map(|rank| of_rank(p, rank)).collect::<Vec<_>>(),
        "sent": classes(sent.iter().map(|((_, class), bytes)| (*class, bytes))),
        "candidates": p.search.as_ref().map(|s| &s.candidates),
        "reason": p.search.as_ref().map(|s| &s.reason),
    })
}

fn of_node(p: &Planned, i: usize, node: &Node, sent: &BTreeMap<(usize, Class), ByReach>) -> Value {
    let (gpus, gpu_model) = match &node.device {
        NodeDevice::Cpu => (Vec::new(), None),
        NodeDevice::Cuda { gpus, model } => (gpus.clone(), Some(model)),
    };
    let launch = match &node.launch {
        Launch::Local => "local",
        Launch::Ssh { .. } => "ssh",
        Launch::Manual => "manual",
    };
    json!({
        "name": node.name,
        "host": node.host(),
        "address": node.address.as_ref().map(ToString::to_string),
        "launch": launch,
        "device": node.device.kind(),
        "gpus": gpus,
        "gpu_model": gpu_model,
        "labels": node.labels,
        "ranks": p.placed.ranks_of(i),
        "sent": classes(sent.iter().filter(|((n, _), _)| *n == i).map(|((_, class), bytes)| (*class, bytes))),
    })
}

/// Bytes of each class by how far they go.
fn classes<'a>(sent: impl Iterator<Item = (Class, &'a ByReach)>) -> Value {
    let mut sums: BTreeMap<Class, ByReach> = BTreeMap::new();
    sent.for_each(|(class, bytes)| sums.entry(class).or_default().merge(bytes));
    let object: Map<String, Value> = sums
        .into_iter()
        .map(|(class, b)| {
            let per = if is_once(class) { "batch" } else { "step" };
            let value = json!({
                "per": per, "inside_nodes": b.node, "between_nodes_of_a_host": b.host, "between_hosts": b.network,
            });
            (class.name().to_string(), value)
        })
        .collect();
    Value::Object(object)
}

fn of_rank(p: &Planned, rank: u32) -> Value {
    let plan = &p.plan;
    let at = plan.layout.coords(rank);
    let memory = plan.memory(rank);
    json!({
        "rank": rank,
        "node": p.placed.nodes.get(p.placed.node(rank)).map(|node| &node.name),
        "coords": at.reported(),
        "blocks": plan.stages.ranges().get(at.pp as usize),
        "memory": {"total": memory.total(), "least": memory.least()},
    })
}

/// Version of the object; grows when a field changes its meaning.
const SCHEMA: u32 = 1;
