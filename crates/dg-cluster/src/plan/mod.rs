//! `dg-cluster plan`: which ranks are on which node, and what they would send one another. Nothing is started.

mod json;
mod text;

use crate::args::{Form, PlanArgs};
use crate::failure::{Failure, print, warn};
use crate::load::load;
use crate::model;
use dg_config::mesh::mixed;
use dg_config::{ClusterFile, Key, Layers, Settings};
use dg_core::{ExitCode, ImageSize};
use dg_plan::{Ask, Bounds, Candidate, Layout, Machine, Pipeline, Plan, Search, Work};
use dg_runtime::asked;
use dg_runtime::placed::Placed;

/// A plan with all that is told about it.
struct Planned {
    file: ClusterFile,
    model: String,
    placed: Placed,
    plan: Plan,
    machine: Machine,
    search: Option<Search>,
    /// What was simplified to predict times.
    simplified: Vec<String>,
}

/// Plans and prints.
pub(crate) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let file = load(&args.file)?.file;
    let mut layers = Layers::default();
    layers.add_cluster_file(&file);
    layers.add_env(std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("DG_"))?;
        Some((name, value.to_string_lossy().into_owned()))
    }))?;
    layers.add_flags(args.flags.0.iter().cloned());
    layers.warnings().iter().for_each(|warning| warn(warning));
    let model = layers.resolve().text(Key::ModelName).unwrap_or(model::DEMO).to_string();
    let (shape, defaults) = model::shape(&model)?;
    layers.add_model(shape.transformer.guidance_embeds, &defaults).map_err(|e| {
        let message = format!("model {model}: {e}");
        Failure::new(ExitCode::Config, message, "correct the file, or remove it")
    })?;
    let settings = layers.resolve();
    let (size, rounded) =
        ImageSize::fit(settings.integer(Key::Width) as u32, settings.integer(Key::Height) as u32)
            .map_err(|e| Failure::new(ExitCode::Config, e.to_string(), "change height and width"))?;
    rounded.iter().for_each(|note| warn(&note.to_string()));
    let planned = planned(file, model, Work::one(shape, size), &settings, args)?;
    planned.plan.warnings.iter().for_each(|warning| warn(&warning.to_string()));
    match args.output {
        Form::Json => print(&json::object(&planned).to_string()),
        Form::Text => print(text::page(&planned).trim_end()),
    }
}

fn planned(
    file: ClusterFile,
    model: String,
    one: Work,
    settings: &Settings,
    args: &PlanArgs,
) -> Result<Planned, Failure> {
    let (nodes, ranks) = ranks(&file, settings)?;
    let placed = Placed::new(&nodes, ranks);
    let machine = placed.machine(&file.cluster.links, args.rank_device);
    let is_cpu = machine.device.name == "cpu";
    let work = asked::work(settings, one, args.images.map(|n| n as usize), is_cpu);
    let mut ask = asked::ask(settings)?;
    ask.num_gpus = Some(ranks);
    ask.memory_bytes = placed.memory(args.rank_device);
    ask.streams = is_cpu;
    let mut search = None;
    if ranks > 1 && !asked::has_degrees(settings) {
        let (layout, found) = find(&work, &ask, &placed, &machine)?;
        ask.layout = layout;
        search = Some(found);
    }
    let plan = Plan::new(&work, &ask)?;
    if let Some(found) = mixed(&placed.nodes, plan.layout.replica_ranks()) {
        let hint =
            "make replicas smaller (data_parallel_degree), or give each kind of node a whole number of them";
        return Err(Failure::new(ExitCode::Infeasible, found.to_string(), hint));
    }
    let simplified = placed.simplified(args.rank_device);
    Ok(Planned { file, model, placed, plan, machine, search, simplified })
}

/// The nodes, and how many of their ranks are planned: all, or as many as `num_gpus` says. A file without nodes has as
/// many as the settings ask for, flags included.
fn ranks(file: &ClusterFile, settings: &Settings) -> Result<(Vec<dg_config::Node>, u64), Failure> {
    let mut nodes = file.nodes.clone();
    let asked = settings.integer_if_any(Key::NumGpus);
    if !file.has_nodes() {
        let ranks = asked.unwrap_or_else(|| asked::degrees(settings).ranks());
        let is_too_many = || {
            Failure::new(ExitCode::Infeasible, format!("{ranks} ranks are too many"), "use smaller degrees")
        };
        let count = u32::try_from(ranks).ok().filter(|n| u64::from(*n) <= dg_config::fields::RANKS_MAX);
        let count = count.ok_or_else(is_too_many)?;
        nodes.iter_mut().for_each(|node| node.ranks = count);
        return Ok((nodes, ranks));
    }
    let have = file.ranks();
    match asked.filter(|asked| *asked > have) {
        Some(asked) => {
            let origin = settings.origin(Key::NumGpus).map(|o| format!(" ({o})")).unwrap_or_default();
            let message = format!("num_gpus = {asked}{origin}, but the nodes have {have} ranks");
            let hint = format!("use at most {have}, or add nodes or ranks to the file");
            Err(Failure::new(ExitCode::Infeasible, message, hint))
        }
        None => Ok((nodes, asked.unwrap_or(have))),
    }
}

/// The fastest layout that fits, keeps the picture unless a stale pipeline was asked for, and mixes no kinds of ranks.
fn find(work: &Work, ask: &Ask, placed: &Placed, machine: &Machine) -> Result<(Layout, Search), Failure> {
    let ranks = ask.num_gpus.unwrap_or(1);
    let bounds = Bounds { pipeline: ask.pipeline, memory_bytes: ask.memory_bytes, streams: false };
    let mut found = dg_plan::search(work, ranks, machine, &bounds);
    if ask.streams && found.candidates.iter().all(|c| !c.fits) {
        found = dg_plan::search(work, ranks, machine, &Bounds { streams: true, ..bounds });
    }
    let is_pure = |c: &Candidate| mixed(&placed.nodes, c.layout.replica_ranks()).is_none();
    let is_allowed = |c: &Candidate| c.fits && (c.is_exact || ask.pipeline == Pipeline::Stale) && is_pure(c);
    let Some(at) = found.candidates.iter().position(is_allowed) else {
        // the refusal of the thriftiest says what would need less
        let thriftiest = found.candidates.iter().filter(|c| is_pure(c)).min_by_key(|c| c.memory);
        if let Some(layout) = thriftiest.filter(|c| !c.fits).map(|c| c.layout) {
            Plan::new(work, &Ask { layout, ..ask.clone() })?;
        }
        let hint = "add pictures (--images) if kinds of nodes are mixed, or give degrees";
        return Err(Failure::new(ExitCode::Infeasible, format!("{ranks} ranks: {}", found.reason), hint));
    };
    if found.chosen != Some(at) {
        found.chosen = Some(at);
        found.reason = "the fastest of which no replica has ranks of two kinds".into();
    }
    Ok((found.candidates[at].layout, found))
}
