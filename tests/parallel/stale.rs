//! PipeFusion's pictures depend on the number of patches and on the warm-up alone: not on the number of stages, not
//! on who has which tokens or heads, not on what else is drawn. And they are not the serial ones.

use crate::engine::{Case, Setup, run, run_jobs};
use crate::ranks::{bits, distance};
use dg_plan::{Ask, Layout, Passes, Pipeline, Plan};
use std::time::Duration;

const PATCHES: [usize; 4] = [2, 3, 4, 7];
const WARMUPS: [usize; 3] = [0, 1, 2];

fn case() -> Case {
    Case { steps: 4, true_cfg: true, ..Case::new((80, 48), 7, 2) }
}

fn layout(pp: u32, ring: u32, ulysses: u32) -> Layout {
    Layout { pp, ring, ulysses, ..Layout::SERIAL }
}

/// PipeFusion in `patches` patches; on one stage, what several stages would compute.
fn plan(case: &Case, layout: Layout, patches: usize, warmup: usize) -> Plan {
    let ask = Ask { pipeline: Pipeline::Stale, patches: Some(patches), warmup, ..Ask::layout(layout) };
    let plan = case.plan(&ask);
    assert!(plan.passes == Passes::Patches && plan.patches.runs().len() == patches);
    plan
}

fn latents(case: &Case, layout: Layout, patches: usize, warmup: usize) -> Vec<f32> {
    let plan = plan(case, layout, patches, warmup);
    let ran = run(case, &plan);
    ran.check_bytes(&plan, case.images);
    ran.latents
}

/// All warm-ups with `patches` patches, in layouts with more and with fewer stages than that.
fn check(patches: usize) {
    let case = case();
    let exact = [(1, 2), (1, 3), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)];
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for warmup in WARMUPS {
        let one = latents(&case, Layout::SERIAL, patches, warmup);
        for (pp, ulysses) in exact {
            let other = latents(&case, layout(pp, 1, ulysses), patches, warmup);
            let what = format!("{pp} stages, ulysses {ulysses}, {patches} patches, warm-up {warmup}");
            assert!(bits(&one) == bits(&other), "{what}: {:e} apart", distance(&one, &other));
        }
        for (pp, ring, ulysses) in [(1, 2, 1), (2, 2, 1), (1, 3, 2), (2, 2, 2)] {
            let far = distance(&one, &latents(&case, layout(pp, ring, ulysses), patches, warmup));
            assert!(far <= 1e-5, "{pp} stages, ring {ring}, ulysses {ulysses}, {patches} patches: {far:e}");
        }
        seen.push(one);
    }
    let serial = case.serial();
    let drifts: Vec<f32> = seen.iter().map(|latents| distance(&serial, latents)).collect();
    println!("{patches} patches: {drifts:?} of the largest value from serial after warm-up of {WARMUPS:?}");
    // it is stale, by far more than rounding, and less so the later it begins
    assert!(drifts.iter().all(|drift| *drift > 1e-4), "{drifts:?}");
    assert!(drifts.windows(2).all(|two| two[0] > two[1]), "{drifts:?}");
    let all_warm = latents(&case, layout(2, 1, 1), patches, case.steps as usize);
    assert!(bits(&serial) == bits(&all_warm), "nothing is stale after warm-up of all steps");
}

#[test]
fn two_patches() {
    check(PATCHES[0]);
}

#[test]
fn three_patches() {
    check(PATCHES[1]);
}

#[test]
fn four_patches() {
    check(PATCHES[2]);
}

#[test]
fn seven_patches() {
    check(PATCHES[3]);
}

#[test]
fn branches_on_ranks_of_their_own_change_nothing() {
    let case = case();
    for (patches, warmup) in [(3, 0), (4, 1)] {
        let one = latents(&case, Layout::SERIAL, patches, warmup);
        for inside in [layout(1, 1, 1), layout(2, 1, 1), layout(3, 1, 1), layout(2, 1, 2)] {
            let other = latents(&case, Layout { cfg: 2, ..inside }, patches, warmup);
            assert!(bits(&one) == bits(&other), "{inside}");
        }
    }
}

#[test]
fn patches_matter() {
    let of = |patches| latents(&case(), layout(2, 1, 1), patches, 1);
    let all: Vec<_> = PATCHES.iter().map(|patches| of(*patches)).collect();
    assert!(all.windows(2).all(|two| bits(&two[0]) != bits(&two[1])));
}

#[test]
fn how_a_batch_is_split_changes_nothing() {
    for true_cfg in [false, true] {
        let case = Case { true_cfg, ..Case { steps: 4, ..Case::new((64, 64), 7, 3) } };
        for (pp, ulysses) in [(1, 1), (2, 1), (3, 2)] {
            let whole = latents(&case, layout(pp, 1, ulysses), 4, 1);
            let one = |i| latents(&case.part(i..i + 1), layout(pp, 1, ulysses), 4, 1);
            let parts: Vec<f32> = (0..3).flat_map(one).collect();
            assert!(bits(&whole) == bits(&parts), "{pp} stages, ulysses {ulysses}");
        }
    }
}

#[test]
fn a_job_finds_nothing_of_the_one_before() {
    // the second has a shorter text, other sizes, or less to keep
    let first = case();
    let others = [
        Case { text: 3, ..first },
        Case { size: (64, 64), images: 1, ..first },
        Case { size: (16, 16 * 13), text: 1, true_cfg: false, ..first },
        Case { first: 1, ..first },
    ];
    // a warm-up of 0 would show whatever has been left
    for (layout, warmup) in [(layout(2, 1, 2), 0), (layout(2, 1, 2), 1), (layout(1, 2, 1), 0)] {
        let job = |case: &Case| (*case, plan(case, layout, 4, warmup));
        let mut jobs = vec![job(&first)];
        others.iter().for_each(|other| jobs.extend([job(other), job(&first)]));
        let of_first = run(&first, &jobs[0].1).latents;
        let alone = |(case, plan): &(Case, Plan)| match *case == first {
            true => of_first.clone(),
            false => run(case, plan).latents,
        };
        let alone: Vec<f32> = jobs.iter().flat_map(alone).collect();
        let together = run_jobs(&jobs, Setup::default()).latents;
        assert!(bits(&alone) == bits(&together), "{layout}, warm-up {warmup}");
    }
}

#[test]
fn late_messages_change_nothing() {
    let case = case();
    for (pp, ring, ulysses) in [(3, 1, 1), (2, 1, 2), (2, 2, 1), (2, 2, 2)] {
        let plan = plan(&case, layout(pp, ring, ulysses), 4, 1);
        let first = run(&case, &plan).latents;
        for seed in 0..3 {
            let setup = Setup { late: (seed, Duration::from_millis(3)), ..Setup::default() };
            let late = run_jobs(&[(case, plan.clone())], setup).latents;
            assert!(bits(&first) == bits(&late), "{} seed {seed}", plan.layout);
        }
    }
}
