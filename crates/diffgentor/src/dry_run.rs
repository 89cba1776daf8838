//! `--dry_run`: what would be done.

use crate::failure::Failure;
use crate::output::printer::try_print;
use crate::prepare::Prepared;
use crate::ranks::Planned;
use crate::{layout, machine, plan};
use dg_config::Key;
use dg_plan::{Passes, Plan};
use serde_json::json;

/// Prints the plan.
pub(crate) fn show(p: &Prepared) -> Result<(), Failure> {
    let todo = p.todo();
    let batches = plan::batches(&p.plan.pictures, &todo, p.batch_size()).len();
    let (need, have) = (p.need, machine::memory());
    let id = &p.model;
    if p.settings.switch(Key::Json) {
        let files = (0..p.plan.pictures.len()).map(|i| {
            let picture = &p.plan.pictures[i];
            let request = &picture.request;
            // a seed drawn now is not the one that a run will draw
            let planned = (!picture.any_seed).then_some(request.seed);
            let seed = p.finished[i].as_ref().and_then(|f| f.seed).or(planned);
            json!({
                "path": p.path(i), "seed": seed, "size": request.size.to_string(),
                "skipped": p.finished[i].is_some(),
            })
        });
        let files: Vec<_> = files.collect();
        let run = json!({
            "model": id.id, "hash": id.hash, "dtype": p.options.dtype, "threads": p.options.threads,
            "batches": batches, "weight_bytes": need.weights, "activation_bytes": need.activations,
            "available_bytes": have.map(|m| m.available), "files": files,
            "plans": planned(p).iter().map(Planned::object).collect::<Vec<_>>(),
        });
        return try_print(&run.to_string()).map(|_| ());
    }
    let each = if p.spread.ranks() > 1 { " per rank" } else { "" };
    let have = have.map_or_else(|| "unknown".into(), |m| machine::bytes(m.available));
    let mut lines = vec![
        format!("model      {} ({:.12})", id.id, id.hash),
        format!("dtype      {}, {} threads{each}", p.options.dtype, p.options.threads),
        format!(
            "memory     {} needed ({} weights + {} activations), {have} free",
            machine::bytes(need.total()),
            machine::bytes(need.weights),
            machine::bytes(need.activations)
        ),
        format!(
            "pictures   {} to make in {batches} batches, {} finished",
            todo.len(),
            p.finished.len() - todo.len()
        ),
    ];
    lines.extend(p.plan.pictures.iter().enumerate().map(|(i, picture)| {
        let r = &picture.request;
        let skipped = if p.finished[i].is_some() { ", finished" } else { "" };
        let seed = if picture.any_seed { "random".into() } else { r.seed.0.to_string() };
        format!("{}  {}, {} steps, seed {seed}{skipped}", p.path(i).display(), r.size, r.steps())
    }));
    // one rank has no layout to show, unless it works as a pipeline of several would
    for planned in planned(p).iter().filter(|p| p.plan.ranks() > 1 || p.plan.passes == Passes::Patches) {
        lines.push(format!("\n{}", planned.page()));
    }
    try_print(&lines.join("\n")).map(|_| ())
}

/// The plans of all kinds of batches.
pub(crate) fn planned(p: &Prepared) -> Vec<Planned> {
    let of = |plan: &Plan| Planned {
        model: p.model.id.clone(),
        plan: plan.clone(),
        machine: layout::this_machine(),
        search: p.spread.search.clone(),
        scaling: None,
    };
    p.spread.plans.iter().map(of).collect()
}
