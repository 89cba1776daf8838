//! A cluster at work for minutes, with something going wrong all the time.

use crate::pictures::{Drawing, Pictures, ULYSSES_4, expect_same};
use crate::proc;
use crate::random::{Random, asked};
use crate::rig::{Rig, Setting};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes by which the head may grow: event log, finished jobs, and what an allocator keeps.
const GROWTH_MAX: u64 = 24 << 20;
/// Files that the head may have open more than at first.
const FILES_MAX: usize = 12;

/// Faults until it is told to stop: how many of each kind.
fn faults(rig: &Rig, seed: u64, stop: &AtomicBool) -> BTreeMap<&'static str, u32> {
    let mut random = Random::new(seed);
    let mut done = BTreeMap::new();
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(300 + random.below(2500)));
        let status = rig.status();
        let ranks: Vec<u32> = status.ranks.iter().filter_map(|rank| rank.pid).collect();
        let agents: Vec<u32> = status.nodes.iter().filter_map(|node| node.pid).collect();
        let pick = |random: &mut Random, all: &[u32]| {
            (!all.is_empty()).then(|| all[random.below(all.len() as u64) as usize])
        };
        let kind = match random.below(10) {
            0..=4 => {
                pick(&mut random, &ranks).filter(|pid| proc::send(*pid, Signal::KILL)).map(|_| "rank killed")
            }
            5 => pick(&mut random, &agents)
                .filter(|pid| proc::send(*pid, Signal::KILL))
                .map(|_| "agent killed"),
            _ => pick(&mut random, &ranks).filter(|pid| burst(*pid, &mut random)).map(|_| "rank stopped"),
        };
        if let Some(kind) = kind {
            *done.entry(kind).or_insert(0) += 1;
        }
    }
    done
}

/// Stops a process several times for a moment.
fn burst(pid: u32, random: &mut Random) -> bool {
    let stop = |random: &mut Random| {
        let was_there = proc::send(pid, Signal::STOP);
        std::thread::sleep(Duration::from_millis(20 + random.below(400)));
        was_there && proc::send(pid, Signal::CONT)
    };
    (0..1 + random.below(4)).all(|_| stop(random))
}

/// Jobs one after another until the time is over: how many.
fn jobs(rig: &Rig, subjects: &[(Drawing, Pictures)], seconds: u64) -> usize {
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut count = 0;
    while Instant::now() < until {
        let (drawing, wanted) = &subjects[count % subjects.len()];
        let drawn = rig.draw(drawing);
        expect_same(&drawn.pictures, wanted, &format!("job {count}: {drawing:?}"));
        count += 1;
    }
    count
}

#[test]
fn jobs_are_done_whatever_happens() {
    let (seconds, seed) = (asked("DG_SOAK_SECONDS", 60), asked("DG_SEED", 1_968));
    println!("seed {seed}, {seconds} s");
    let rig = Setting::two_by_two().failure("rank_deaths = 1000\nepochs_without_progress = 10\n").up();
    let stale = ["--pipefusion_degree", "2", "--ulysses_degree", "2"];
    let guided = ["--true_cfg_scale", "2.5", "--negative_prompt", "blurry"];
    let exact = Drawing::small(20, 7).degrees(ULYSSES_4);
    let guided = Drawing::small(8, 9).with(&guided).degrees(&["--use_cfg_parallel", "--ulysses_degree", "2"]);
    let stale = Drawing::small(12, 8).degrees(&stale);
    let subjects = [
        (exact.clone(), exact.serial().undisturbed()),
        (guided.clone(), guided.serial().undisturbed()),
        (stale.clone(), stale.undisturbed()),
    ];
    subjects.iter().for_each(|(drawing, wanted)| {
        expect_same(&rig.draw(drawing).pictures, wanted, "undisturbed");
    });
    let head = rig.head();
    let measure = || (proc::resident(head), proc::open_files(head));
    let (bytes, files) = measure();
    let stop = AtomicBool::new(false);
    let (count, done) = std::thread::scope(|scope| {
        let faults = scope.spawn(|| faults(&rig, seed, &stop));
        let count = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| jobs(&rig, &subjects, seconds)));
        stop.store(true, Ordering::SeqCst);
        let done = faults.join().expect("the head answers throughout");
        (count.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), done)
    });
    rig.idle(Duration::from_secs(30));
    std::thread::sleep(Duration::from_secs(1));
    let (bytes_after, files_after) = measure();
    println!(
        "{count} jobs, {done:?}; head: {} to {} KiB, {files} to {files_after} files",
        bytes >> 10,
        bytes_after >> 10
    );
    assert!(count > 3 && done.values().sum::<u32>() > 5, "{count} jobs, {done:?}");
    assert!(bytes_after <= bytes + GROWTH_MAX, "the head grew from {bytes} to {bytes_after} bytes");
    assert!(files_after <= files + FILES_MAX, "the head had {files} files open, and has {files_after}");
    assert_eq!(rig.head(), head);
}
