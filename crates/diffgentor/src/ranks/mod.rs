//! `diffgentor plan`: what many ranks would own, send and need. Nothing is run, and no weights are read. A dry run
//! of `t2i` shows the same.

mod json;
mod text;

use crate::args::{PlanArgs, PlanForm, SettingFlags};
use crate::failure::Failure;
use crate::hub::HubAsk;
use crate::output::printer::print;
use crate::{log, models, setup};
use dg_config::{Key, Settings};
use dg_core::{ExitCode, ImageSize};
use dg_plan::{Ask, Bounds, Links, LinksError, Machine, Plan, Scaling, Search, Work};
use dg_runtime::asked;

/// A plan with all that is told about it.
pub(crate) struct Planned {
    /// The model as it was named.
    pub(crate) model: String,
    /// The layout and its tables.
    pub(crate) plan: Plan,
    /// What it was planned for.
    pub(crate) machine: Machine,
    /// How the layout was found, if it was not given.
    pub(crate) search: Option<Search>,
    /// How far more ranks help, if the layout was looked for.
    pub(crate) scaling: Option<Scaling>,
}

impl Planned {
    /// For reading.
    pub(crate) fn page(&self) -> String {
        text::page(self)
    }

    /// For programs.
    pub(crate) fn object(&self) -> serde_json::Value {
        json::object(self)
    }
}

/// Plans and prints.
pub(crate) fn plan(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let flags = SettingFlags(args.flags.0.clone());
    let mut layers = setup::layers((&flags, &args.common), None)?;
    let settings = layers.resolve();
    let model = settings.text(Key::ModelName).unwrap_or(models::DEMO).to_string();
    let ask = HubAsk {
        local_files_only: settings.switch(Key::LocalFilesOnly),
        revision: settings.text(Key::Revision),
        silent: settings.switch(Key::Quiet),
    };
    let (shape, defaults) = models::shape(&model, &ask)?;
    layers
        .add_model(shape.transformer.guidance_embeds, &defaults)
        .map_err(|e| Failure::config(format!("model {model}: {e}")).hint("correct the file, or remove it"))?;
    let settings = layers.resolve();
    let machine = machine(args)?;
    let size = ImageSize::fit(settings.integer(Key::Width) as u32, settings.integer(Key::Height) as u32);
    let (size, rounded) = size.map_err(|e| Failure::config(e.to_string()))?;
    rounded.iter().for_each(|note| log::warn_once(note.to_string()));
    let is_cpu = args.rank_device.name == "cpu";
    let images = args.images.map(|n| n as usize);
    let work = asked::work(&settings, Work::one(shape, size), images, is_cpu);
    let planned = planned(model, work, &settings, args, machine)?;
    planned.plan.warnings.iter().for_each(|warning| log::warn_once(warning.to_string()));
    let is_read = match args.output {
        PlanForm::Json => print(&planned.object().to_string()),
        PlanForm::Text => print(&planned.page()),
    };
    tracing::debug!("printed: {is_read}");
    Ok(ExitCode::Ok)
}

impl From<LinksError> for Failure {
    fn from(e: LinksError) -> Self {
        Self::usage(format!("--links: {e}"))
            .hint("write KIND:COUNT from the inside out, as in nvlink:8,eth100:2")
    }
}

fn machine(args: &PlanArgs) -> Result<Machine, Failure> {
    let usual = match args.rank_device.name {
        "cpu" => "memory",
        "h100" => "nvlink:8,eth100",
        "a100" => "nvlink3:8,eth100",
        "rtx4090" => "pcie4host:8,eth10",
        _ => "pcie4:8,eth100",
    };
    Ok(Machine::new(args.rank_device, Links::parse(args.links.as_deref().unwrap_or(usual))?))
}

/// The layout that was asked for, or the best one when only a number of ranks was.
fn planned(
    model: String,
    work: Work,
    settings: &Settings,
    args: &PlanArgs,
    machine: Machine,
) -> Result<Planned, Failure> {
    let memory_bytes = Some(args.rank_memory.unwrap_or(machine.device.memory_bytes));
    let mut ask = Ask { memory_bytes, ..asked::ask(settings)? };
    let (mut search, mut scaling) = (None, None);
    if let Some(ranks) = asked::ranks_to_fill(settings) {
        let bounds = Bounds { pipeline: ask.pipeline, memory_bytes: ask.memory_bytes, ..Bounds::default() };
        let found = dg_plan::search(&work, ranks, &machine, &bounds);
        // without one that fits, the thriftiest tells by how much
        let thriftiest = || found.candidates.iter().min_by_key(|c| c.memory);
        let best = found.chosen.map(|i| &found.candidates[i]).or_else(thriftiest);
        ask.layout = best.map_or(ask.layout, |c| c.layout);
        scaling = Some(dg_plan::scaling(&work, ranks, &machine, &bounds));
        search = Some(found);
    }
    ask.streams = machine.device.name == "cpu";
    let plan = Plan::new(&work, &ask)?;
    Ok(Planned { model, plan, machine, search, scaling })
}

/// Steps of which one sends what all like it do: the second, if there is one, because the first may warm up.
fn usual_step(plan: &Plan) -> usize {
    plan.warmup.min(plan.work.steps.saturating_sub(1))
}

/// The node of a rank, counted from 0: what the outermost link joins.
fn node(machine: &Machine, rank: u32) -> u32 {
    let levels = machine.links.levels();
    let inner = levels[..levels.len() - 1].iter().fold(1u32, |n, level| n.saturating_mul(level.count));
    if levels.len() == 1 { 0 } else { rank / inner }
}
