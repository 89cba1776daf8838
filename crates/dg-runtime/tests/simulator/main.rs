//! The rules of a cluster against everything that a network, machines and clocks can do, from seeds.
//!
//! `DG_SIM_SEEDS=10000` runs so many seeds, `DG_SIM_SEED=N` one of them with its log.

mod agent;
mod check;
mod faults;
mod rng;
mod scale;
mod world;

use faults::Counts;
use std::time::Instant;
use world::{Rules, World};

const ALL_RULES: Rules = Rules { epochs: true, fences: true, leases: true };

/// The first seed that violates anything, and what.
fn find(seeds: std::ops::Range<u64>, rules: Rules, counts: &mut Counts) -> Option<(u64, String)> {
    for seed in seeds {
        let mut world = World::new(seed, rules, false);
        let result = world.run();
        counts.add(&world.counts);
        if let Err(violation) = result {
            return Some((seed, violation));
        }
    }
    None
}

fn tell(seed: u64, rules: Rules) -> Result<(), String> {
    let mut world = World::new(seed, rules, true);
    let result = world.run();
    println!("{}", world.log.unwrap_or_default().join("\n"));
    result
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn no_seed_violates_a_rule() {
    if let Some(seed) = number("DG_SIM_SEED") {
        let result = tell(seed, ALL_RULES);
        assert_eq!(result, Ok(()), "DG_SIM_SEED={seed}");
        return;
    }
    let seeds = number("DG_SIM_SEEDS").unwrap_or(SEEDS);
    let (began, mut counts) = (Instant::now(), Counts::default());
    let found = find(0..seeds, ALL_RULES, &mut counts);
    println!("{seeds} seeds in {:.1} s: {counts:#?}", began.elapsed().as_secs_f64());
    if let Some((seed, violation)) = found {
        let _ = tell(seed, ALL_RULES);
        panic!("{violation}: run again with DG_SIM_SEED={seed}");
    }
    assert!(counts.faults.len() >= 16 && counts.stale > 0 && counts.resumed > 0, "too little goes wrong");
    assert!(counts.done > 10 * counts.failed, "too much fails");
}

#[test]
fn without_epochs_a_violation_is_found() {
    let found = find(0..SEEDS, Rules { epochs: false, ..ALL_RULES }, &mut Counts::default());
    println!("without epochs: {found:?}");
    assert!(found.is_some());
}

#[test]
fn without_fences_a_violation_is_found() {
    let found = find(0..SEEDS, Rules { fences: false, ..ALL_RULES }, &mut Counts::default());
    println!("without fences: {found:?}");
    assert!(found.is_some());
}

#[test]
fn without_leases_a_violation_is_found() {
    let found = find(0..SEEDS, Rules { leases: false, ..ALL_RULES }, &mut Counts::default());
    println!("without leases: {found:?}");
    assert!(found.is_some_and(|(_, violation)| violation.contains("the lease of its node ended")));
}

/// Seeds where nothing else is asked for.
const SEEDS: u64 = 200;
