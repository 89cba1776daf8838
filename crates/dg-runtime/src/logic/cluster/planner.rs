//! How a job is laid out on the ranks that there are.

use super::job::JobSpec;
use dg_plan::search::valid_layouts;
use dg_plan::{Ask, Balance, Bounds, Layout, Machine, Passes, Pipeline, Plan, Warning, Work, search};
use std::time::Duration;

/// What there is for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// Ranks.
    pub ranks: usize,
    /// Bytes that each may use.
    pub memory_bytes: u64,
    /// Operations per second that each reaches; 0 if that is not known.
    pub flops: u64,
    /// Whether weights that do not fit may be read again in each step, as on CPUs.
    pub streams: bool,
}

impl Supply {
    /// The machine of the cluster's file, with the speed that nodes have told.
    fn machine(self, of_file: &Machine) -> Machine {
        let mut machine = of_file.clone();
        if self.flops > 0 {
            machine.device.flops = self.flops as f64;
        }
        machine
    }
}

/// How a job is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Degrees; their product is the number of ranks.
    pub layout: Layout,
    /// Predicted time of all its steps.
    pub run: Duration,
    /// Largest need of a rank, in bytes.
    pub memory_bytes: u64,
    /// Whether weights that do not fit are read again in each step, which the predicted time leaves out.
    pub is_streamed: bool,
}

/// Lays jobs out.
pub trait Planner {
    /// The fastest layout of at most the ranks that there are, at least `spec.ranks_min` of them.
    fn choose(&self, spec: &JobSpec, supply: Supply) -> Option<Choice>;
}

/// Searches all layouts by predicted time.
#[derive(Clone, Debug)]
pub struct SearchPlanner {
    /// What computes.
    pub machine: Machine,
    /// How a pipeline may be kept full.
    pub pipeline: Pipeline,
}

impl Planner for SearchPlanner {
    fn choose(&self, spec: &JobSpec, supply: Supply) -> Option<Choice> {
        let work = spec.work.as_deref()?;
        // Reading weights again in each step is the last resort.
        let streams = [false, true].into_iter().take(1 + usize::from(supply.streams));
        streams.into_iter().find_map(|streams| self.fastest(spec, work, supply, streams))
    }
}

impl SearchPlanner {
    fn fastest(&self, spec: &JobSpec, work: &Work, supply: Supply, streams: bool) -> Option<Choice> {
        let bounds = Bounds { pipeline: self.pipeline, memory_bytes: Some(supply.memory_bytes), streams };
        let machine = supply.machine(&self.machine);
        let most = supply.ranks.min(spec.ranks_max);
        let least = spec.ranks_min.max(1);
        // Numbers with few divisors may be slower than the one below: a few are looked at, then halves.
        let near = (least..=most).rev().take(NEAR_MAX);
        let halves = std::iter::successors(Some(most / 2), |n| Some(n / 2)).take_while(|n| *n >= least);
        let found = near.chain(halves).filter_map(|ranks| {
            let mut found = search(work, ranks as u64, &machine, &bounds);
            let best = found.candidates.swap_remove(found.chosen?);
            let run = Duration::try_from_secs_f64(best.time.run_s).ok()?;
            Some(Choice { layout: best.layout, run, memory_bytes: best.memory, is_streamed: streams })
        });
        found.min_by_key(|choice| (choice.run, choice.layout.ranks()))
    }
}

/// Takes the layout that a job asks for, and on fewer ranks the fastest that keeps its picture: bit for bit unless it
/// asked for Ring, whose sums are rounded in another order than those of other degrees.
#[derive(Clone, Debug)]
pub struct AskPlanner {
    /// What computes.
    pub machine: Machine,
}

impl AskPlanner {
    fn choice(&self, spec: &JobSpec, ask: &Ask, supply: Supply) -> Option<(Choice, Plan)> {
        let work = spec.work.as_deref()?;
        let (memory_bytes, streams) = (Some(supply.memory_bytes), supply.streams);
        let ask = Ask { num_gpus: None, memory_bytes, streams, ..ask.clone() };
        let plan = Plan::new(work, &ask).ok()?;
        let run = Duration::try_from_secs_f64(plan.predict(&supply.machine(&self.machine)).run_s)
            .unwrap_or(Duration::MAX);
        let memory = plan.largest_memory().1;
        let is_streamed = plan.warnings.iter().any(|w| matches!(w, Warning::StreamsWeights { .. }));
        let memory_bytes = if is_streamed { memory.streamed_least() } else { memory.resident_least() };
        let choice = Choice { layout: plan.layout, run, memory_bytes, is_streamed };
        Some((choice, plan))
    }
}

impl Planner for AskPlanner {
    fn choose(&self, spec: &JobSpec, supply: Supply) -> Option<Choice> {
        let (work, ask) = (spec.work.as_deref()?, spec.ask.as_deref()?);
        let wanted = usize::try_from(ask.layout.ranks()).ok()?;
        if supply.ranks >= wanted
            && let Some((choice, _)) = self.choice(spec, ask, supply)
        {
            return Some(choice);
        }
        let (_, asked) = self.choice(spec, ask, Supply { memory_bytes: u64::MAX, ..supply })?;
        let is_stale = asked.passes == Passes::Patches;
        let ask = match is_stale {
            true => {
                Ask { patches: Some(asked.patches.runs().len()), pipeline: Pipeline::Stale, ..ask.clone() }
            }
            false => Ask { pipeline: Pipeline::Exact, ..ask.clone() },
        };
        let ask = Ask { balance: Balance::Time, ..ask };
        let keeps = |plan: &Plan| {
            let is_like = (plan.passes == Passes::Patches) == is_stale;
            is_like && (plan.layout.ring == 1 || asked.layout.ring > 1)
        };
        let most = supply.ranks.min(wanted);
        let counts = (spec.ranks_min.max(1)..=most).rev().take(COUNTS_MAX);
        let layouts = counts.flat_map(|ranks| valid_layouts(work, ranks as u64)).filter(|l| l.dp == 1);
        let found = layouts.filter_map(|layout| {
            let ask = Ask { layout, ..ask.clone() };
            let (choice, plan) = self.choice(spec, &ask, supply)?;
            keeps(&plan).then_some(choice)
        });
        found.min_by_key(|choice| (choice.is_streamed, choice.run, choice.layout.ranks()))
    }
}

/// Numbers of ranks that are looked at when there are fewer than a job asks for.
const COUNTS_MAX: usize = 8;
/// Numbers of ranks just below the most that are looked at.
const NEAR_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::cluster::{ClientId, ModelHash};
    use dg_core::ImageSize;
    use dg_plan::{Links, Work, known, machine};
    use std::sync::Arc;

    #[test]
    fn less_memory_or_fewer_ranks_give_another_layout_or_none() {
        let (size, _) = ImageSize::fit(1024, 1024).unwrap();
        let machine = Machine::new(machine::device("h100").unwrap(), Links::parse("nvlink:8").unwrap());
        let planner = SearchPlanner { machine, pipeline: Pipeline::Auto };
        let spec = JobSpec {
            client: ClientId(0),
            priority: 0,
            model: ModelHash(1),
            kind: None,
            steps: 28,
            ranks_min: 1,
            ranks_max: 8,
            work: Some(Arc::new(Work::one(known::flux_dev(), size))),
            ask: None,
        };
        let of = |ranks, gib: u64, streams| {
            planner.choose(&spec, Supply { ranks, memory_bytes: gib << 30, flops: 0, streams })
        };
        let choose = |ranks, gib| of(ranks, gib, false);
        let (eight, seven) = (choose(8, 80).unwrap(), choose(7, 80).unwrap());
        assert!(eight.layout.ranks() == 8 && seven.layout.ranks() < 8 && eight.run < seven.run);
        assert_eq!(choose(8, 1), None);
        // a CPU reads what does not fit again, if nothing else helps
        assert_eq!(choose(1, 8), None);
        let streamed = of(1, 8, true).unwrap();
        assert!(streamed.is_streamed && streamed.memory_bytes <= 8 << 30, "{streamed:?}");
        assert_eq!(of(8, 80, true), Some(eight));
    }

    fn asked(layout: Layout, pipeline: Pipeline, true_cfg: bool) -> JobSpec {
        let (size, _) = ImageSize::fit(256, 256).unwrap();
        let ask = Ask { pipeline, patches: None, warmup: 2, ..Ask::layout(layout) };
        JobSpec {
            client: ClientId(0),
            priority: 0,
            model: ModelHash(1),
            kind: None,
            steps: 28,
            ranks_min: 1,
            ranks_max: layout.ranks() as usize,
            work: Some(Arc::new(Work { true_cfg, ..Work::one(known::flux_dev(), size) })),
            ask: Some(Arc::new(ask)),
        }
    }

    fn on(spec: &JobSpec, ranks: usize) -> Option<Layout> {
        let machine = Machine::new(machine::device("h100").unwrap(), Links::parse("nvlink:8").unwrap());
        let choice = AskPlanner { machine }
            .choose(spec, Supply { ranks, memory_bytes: 80 << 30, flops: 0, streams: false });
        choice.map(|choice| choice.layout)
    }

    #[test]
    fn a_job_gets_the_layout_that_it_asks_for_and_keeps_its_picture_on_fewer_ranks() {
        let four = Layout { ulysses: 4, ..Layout::SERIAL };
        let spec = asked(four, Pipeline::Auto, false);
        assert_eq!((on(&spec, 4), on(&spec, 9)), (Some(four), Some(four)));
        for ranks in 1..4 {
            let fewer = on(&spec, ranks).unwrap();
            assert!(fewer.ranks() <= ranks as u64 && fewer.ring == 1 && fewer.cfg == 1, "{fewer}");
            assert!(fewer.pp == 1, "one picture fills no exact pipeline: {fewer}");
        }
        assert_eq!(on(&spec, 0), None);
        let ring = asked(Layout { ring: 4, ..Layout::SERIAL }, Pipeline::Auto, false);
        assert!(on(&ring, 3).is_some());
        let cfg = asked(Layout { cfg: 2, ulysses: 2, ..Layout::SERIAL }, Pipeline::Auto, true);
        assert!(on(&cfg, 2).is_some());
    }

    #[test]
    fn a_stale_job_stays_stale_with_as_many_patches() {
        let spec = asked(Layout { pp: 4, ..Layout::SERIAL }, Pipeline::Auto, false);
        let plan = |layout| {
            let patches = Some(4);
            let ask =
                Ask { layout, patches, pipeline: Pipeline::Stale, ..spec.ask.as_deref().unwrap().clone() };
            Plan::new(spec.work.as_deref().unwrap(), &ask).unwrap()
        };
        for ranks in 1..4 {
            let fewer = plan(on(&spec, ranks).unwrap());
            assert_eq!((fewer.passes, fewer.patches.runs().len()), (Passes::Patches, 4), "{ranks} ranks");
        }
    }
}
