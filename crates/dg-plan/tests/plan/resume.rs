//! Which steps a job can go on from.

use crate::support::{dev, layout, plan};
use dg_plan::{Ask, Passes, Pipeline, Plan, Work};

/// All steps that `plan` can go on from.
fn steps(plan: &Plan) -> Vec<usize> {
    (0..=plan.work.steps + 2).filter(|step| plan.resumes_at(*step)).collect()
}

#[test]
fn exact_passes_go_on_from_every_step() {
    let work = Work { steps: 4, batch: 2, images: 2, request_images: 2, ..dev(256) };
    for degrees in [[1, 1, 1, 1, 1], [1, 1, 1, 2, 2], [1, 1, 2, 1, 1], [2, 1, 1, 1, 1]] {
        let plan = plan(&work, degrees);
        assert_ne!(plan.passes, Passes::Patches);
        assert_eq!(steps(&plan), [1, 2, 3, 4], "{}", plan.layout);
    }
}

#[test]
fn pipefusion_goes_on_where_a_step_warms_up() {
    let work = Work { steps: 4, ..dev(256) };
    let expected: [&[usize]; 6] = [&[4], &[4], &[1, 4], &[1, 2, 4], &[1, 2, 3, 4], &[1, 2, 3, 4]];
    for (warmup, expected) in expected.into_iter().enumerate() {
        let ask = Ask { pipeline: Pipeline::Stale, warmup, ..Ask::layout(layout([1, 1, 2, 1, 1])) };
        assert_eq!(steps(&Plan::new(&work, &ask).unwrap()), expected, "warm-up of {warmup}");
    }
}
