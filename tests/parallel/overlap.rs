//! Stages work at the same time, and no stage runs far ahead: read from the order of events of slow stages.

use crate::engine::{Case, Setup, run, run_jobs};
use dg_comm::{Class, Event, EventKind};
use dg_plan::{Ask, Dim, Layout, Pipeline, Plan};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rest after a block: a pass through a stage takes some milliseconds.
const REST: Duration = Duration::from_millis(3);

fn stages(pp: u32) -> Layout {
    Layout { pp, ..Layout::SERIAL }
}

fn stale(case: &Case, layout: Layout, patches: usize) -> Plan {
    case.plan(&Ask { pipeline: Pipeline::Stale, patches: Some(patches), ..Ask::layout(layout) })
}

fn slow(case: &Case, plan: &Plan) -> Vec<Event> {
    run_jobs(&[(*case, plan.clone())], Setup { rest: REST, ..Setup::default() }).events
}

/// Step, patch and first picture of what a message belongs to.
type Unit = (u32, u32, u32);

fn unit(e: &Event) -> Unit {
    let tag = e.envelope.tag;
    (tag.step, tag.patch, tag.kind / 2)
}

/// When (in the order of events) rank `rank` first did this for each unit, in that order.
fn order(events: &[Event], rank: usize, class: Class, kind: EventKind) -> Vec<(usize, Unit)> {
    let mut seen = BTreeSet::new();
    let of = |e: &Event| e.rank == rank && e.envelope.class == class && e.kind == kind;
    let all = events.iter().enumerate().filter(|(_, e)| of(e)).map(|(at, e)| (at, unit(e)));
    all.filter(|(_, unit)| seen.insert(*unit)).collect()
}

/// How often stage 0 had handed on the next unit of a step before the last stage was through with the one before,
/// and how often it had not. The last step sends no latents, and steps for which `counts` is false are left out.
fn overlaps(events: &[Event], plan: &Plan, counts: impl Fn(u32) -> bool) -> [usize; 2] {
    let last = plan.layout.pp as usize - 1;
    let ended: BTreeMap<Unit, usize> = order(events, last, Class::PipeLatents, EventKind::Send)
        .into_iter()
        .map(|(at, unit)| (unit, at))
        .collect();
    let handed_on = order(events, 0, Class::PipeHidden, EventKind::Send);
    let mut found = [0; 2];
    for two in handed_on.windows(2) {
        let [(_, before), (at, next)] = [two[0], two[1]];
        if before.0 == next.0 && counts(before.0) && ended.contains_key(&before) {
            found[usize::from(at > ended[&before])] += 1;
        }
    }
    found
}

/// At least four of five: the order is that of the clock, and others use the processor too.
fn check_overlap(what: &str, [overlapped, not]: [usize; 2], pairs: usize) {
    println!("{what}: {overlapped} of {} overlap", overlapped + not);
    assert_eq!(overlapped + not, pairs, "{what}");
    assert!(overlapped * 5 >= pairs * 4, "{what}: {overlapped} of {pairs}");
}

#[test]
fn stages_work_on_different_patches_at_a_time() {
    let case = Case { steps: 4, ..Case::new((80, 48), 7, 1) };
    for (pp, patches) in [(3, 3), (3, 5), (4, 4)] {
        let plan = stale(&case, stages(pp), patches);
        let events = slow(&case, &plan);
        // in order, so that the text goes first; step 0 is warm-up, step 3 the last
        let order: Vec<Unit> =
            order(&events, 0, Class::PipeHidden, EventKind::Send).into_iter().map(|(_, unit)| unit).collect();
        let of_step = |step| (0..if step == 0 { 1 } else { patches as u32 }).map(move |p| (step, p, 0));
        assert_eq!(order, (0..4).flat_map(of_step).collect::<Vec<Unit>>());
        let found = overlaps(&events, &plan, |step| plan.is_stale(step as usize));
        check_overlap(&format!("{pp} stages, {patches} patches"), found, 2 * (patches - 1));
    }
}

#[test]
fn stages_work_on_different_pictures_at_a_time() {
    let case = Case { steps: 4, ..Case::new((80, 48), 7, 4) };
    for pp in [3, 4] {
        let plan = case.plan(&Ask { pipeline: Pipeline::Exact, ..Ask::layout(stages(pp)) });
        let events = slow(&case, &plan);
        check_overlap(&format!("{pp} stages"), overlaps(&events, &plan, |_| true), 3 * 3);
    }
}

/// Units that stage 0 has handed on and whose latents it has not got back, at most. Those of the last step do not come
/// back.
fn most_out(events: &[Event], steps: u32) -> usize {
    let mut out = BTreeSet::new();
    let mut most = 0;
    for e in events.iter().filter(|e| e.rank == 0 && unit(e).0 + 1 < steps) {
        match (e.envelope.class, e.kind) {
            (Class::PipeHidden, EventKind::Send) => drop(out.insert(unit(e))),
            (Class::PipeLatents, EventKind::Wait) => assert!(out.remove(&unit(e)), "{e:?}"),
            _ => {}
        }
        most = most.max(out.len());
    }
    most
}

#[test]
fn the_first_stage_is_two_units_a_stage_ahead_at_most() {
    let late = |case: &Case, plan: &Plan| {
        let setup = Setup { late: (5, Duration::from_millis(3)), ..Setup::default() };
        run_jobs(&[(*case, plan.clone())], setup).events
    };
    // more patches and pictures than the credit
    let case = Case { steps: 3, ..Case::new((80, 48), 7, 1) };
    let many = Case { steps: 3, ..Case::new((16, 48), 1, 9) };
    for pp in [2, 3] {
        let credit = 2 * pp as usize;
        let patches = stale(&case, stages(pp), 13);
        let pictures = many.plan(&Ask { pipeline: Pipeline::Exact, ..Ask::layout(stages(pp)) });
        for (case, plan) in [(&case, &patches), (&many, &pictures)] {
            for events in [slow(case, plan), late(case, plan)] {
                let most = most_out(&events, case.steps);
                println!("{pp} stages, {:?}: {most} of {credit}", plan.passes);
                assert!(most >= pp as usize && most <= credit, "{most}");
            }
        }
    }
}

#[test]
fn a_ring_in_a_pipeline_sends_to_the_next_place_only() {
    // every rank has tokens of every patch
    let case = Case { steps: 3, true_cfg: true, ..Case::new((96, 96), 7, 1) };
    for (pp, ring, ulysses, patches) in [(2, 2, 1, 3), (2, 3, 1, 2), (1, 3, 2, 4), (2, 2, 2, 4)] {
        let plan = stale(&case, Layout { pp, ring, ulysses, ..Layout::SERIAL }, patches);
        let ran = run(&case, &plan);
        let mut sends = BTreeMap::<_, BTreeSet<u32>>::new();
        for e in ran.events.iter().filter(|e| e.envelope.class == Class::RingKv) {
            let group = plan.layout.group(e.rank as u32, Dim::Ring);
            let place = group.iter().position(|rank| *rank as usize == e.rank).expect("one of its group");
            let step = if e.kind == EventKind::Send { 1 } else { group.len() - 1 };
            assert_eq!(e.peer, group[(place + step) % group.len()] as usize, "{e:?}");
            if e.kind == EventKind::Send {
                let tag = e.envelope.tag;
                let (branch, hop) = (tag.kind / ring, tag.kind % ring);
                let is_new =
                    sends.entry((e.rank, tag.step, tag.patch, tag.layer, branch)).or_default().insert(hop);
                assert!(is_new, "twice: {e:?}");
            }
        }
        let hops: BTreeSet<u32> = (0..ring - 1).collect();
        let wrong = sends.iter().find(|(_, sent)| **sent != hops);
        assert!(wrong.is_none(), "{}: {wrong:?}", plan.layout);
        // one warm step of one pass, two of as many as patches; two branches; every block on some stage
        let passes = (1 + 2 * patches) * 2;
        let blocks: usize = plan.stages.ranges().iter().map(ExactSizeIterator::len).sum();
        assert_eq!(sends.len(), passes * blocks * plan.layout.sequence_ranks(), "{}", plan.layout);
    }
}
