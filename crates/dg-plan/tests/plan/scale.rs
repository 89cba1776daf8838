//! Large plans, and where more ranks stop paying.

use crate::support::{dev, on, plan};
use dg_plan::{Bounds, Pipeline, Work, scaling, search};
use std::time::Instant;

#[test]
fn four_thousand_ranks_are_planned_quickly() {
    let machine = on("h100", "nvlink:8,ib400:512");
    let work = Work { images: 4096, request_images: 4, batch: 4096, true_cfg: true, ..dev(1024) };
    let start = Instant::now();
    let found = search(&work, 4096, &machine, &Bounds::default());
    let searched = start.elapsed();
    let best = &found.candidates[found.chosen.unwrap()];
    // pictures in plenty: replicas need no messages
    assert_eq!(best.layout.dp, 4096, "{}", found.reason);
    let start = Instant::now();
    let plan = plan(&work, [16, 2, 4, 4, 8]);
    let bytes: u64 = (0..plan.ranks()).map(|rank| plan.sent_in_step(rank, 4, 1).total()).sum();
    let tables = start.elapsed();
    println!("search {searched:?} over {} layouts, tables and bytes {tables:?}", found.candidates.len());
    assert!(bytes > 0);
    // the goal is a second; debug builds and busy machines get five times as much
    assert!((searched + tables).as_secs_f64() < 5.0, "{searched:?} + {tables:?}");
}

#[test]
fn one_picture_stops_paying_somewhere() {
    let machine = on("h100", "nvlink:8,ib400:512");
    let scaling = scaling(&dev(1024), 4096, &machine, &Bounds::default());
    for p in &scaling.points {
        println!("{:>5} ranks: {:7.3} s, {:5.2}x, {}", p.ranks, p.run_s, p.speedup, p.layout);
    }
    let stops = scaling.stops_paying.unwrap();
    println!("stops paying at {stops}");
    assert!((4..=64).contains(&stops), "{stops}");
    // with pictures for all, it does not
    let many = Work { images: 4096, batch: 4096, ..dev(1024) };
    assert_eq!(super::scale::stops(&many), None);
}

fn stops(work: &Work) -> Option<u64> {
    scaling(work, 4096, &on("h100", "nvlink:8,ib400:512"), &Bounds::default()).stops_paying
}

#[test]
fn what_changes_the_picture_is_chosen_only_when_asked() {
    // two nodes on a slow network: a stale pipeline is far ahead
    let machine = on("h100", "nvlink:8,eth10:2");
    let choose = |pipeline| {
        let found = search(&dev(1024), 16, &machine, &Bounds { pipeline, ..Bounds::default() });
        (found.candidates[found.chosen.unwrap()].clone(), found.reason)
    };
    let (exact, reason) = choose(Pipeline::Auto);
    assert!(exact.is_exact && reason.contains("--pipeline stale"), "{reason}");
    let (stale, _) = choose(Pipeline::Stale);
    assert!(!stale.is_exact && stale.time.run_s < exact.time.run_s / 2.0, "{stale:?} {exact:?}");
    assert!(stale.layout.pp >= 2);
}

#[test]
fn a_search_that_finds_no_room_says_how_much_it_lacks() {
    let machine = on("rtx4090", "pcie4host");
    let bounds = Bounds { memory_bytes: Some(1 << 30), ..Bounds::default() };
    let found = search(&dev(1024), 2, &machine, &bounds);
    assert!(found.chosen.is_none() && found.reason.contains("GiB per rank"), "{}", found.reason);
    // half the blocks fit where all do not
    let bounds = Bounds { memory_bytes: Some(20 << 30), ..Bounds::default() };
    let found = search(&dev(1024), 2, &machine, &bounds);
    assert!(found.chosen.is_none() && found.reason.contains("`pipefusion 2` does"), "{}", found.reason);
}
