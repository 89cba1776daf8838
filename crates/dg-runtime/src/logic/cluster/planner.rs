//! How a job is laid out on the ranks that there are.

use super::job::JobSpec;
use dg_plan::{Bounds, Layout, Machine, Pipeline, search};
use std::time::Duration;

/// What there is for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// Ranks.
    pub ranks: usize,
    /// Bytes that each may use.
    pub memory_bytes: u64,
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
        let bounds = Bounds { pipeline: self.pipeline, memory_bytes: Some(supply.memory_bytes) };
        let most = supply.ranks.min(spec.ranks_max);
        let least = spec.ranks_min.max(1);
        // Numbers with few divisors may be slower than the one below: a few are looked at, then halves.
        let near = (least..=most).rev().take(NEAR_MAX);
        let halves = std::iter::successors(Some(most / 2), |n| Some(n / 2)).take_while(|n| *n >= least);
        let found = near.chain(halves).filter_map(|ranks| {
            let mut found = search(work, ranks as u64, &self.machine, &bounds);
            let best = found.candidates.swap_remove(found.chosen?);
            let run = Duration::try_from_secs_f64(best.time.run_s).ok()?;
            Some(Choice { layout: best.layout, run, memory_bytes: best.memory })
        });
        found.min_by_key(|choice| (choice.run, choice.layout.ranks()))
    }
}

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
            steps: 28,
            ranks_min: 1,
            ranks_max: 8,
            work: Some(Arc::new(Work::one(known::flux_dev(), size))),
        };
        let choose = |ranks, gib: u64| planner.choose(&spec, Supply { ranks, memory_bytes: gib << 30 });
        let (eight, seven) = (choose(8, 80).unwrap(), choose(7, 80).unwrap());
        assert!(eight.layout.ranks() == 8 && seven.layout.ranks() < 8 && eight.run < seven.run);
        assert_eq!(choose(8, 1), None);
    }
}
