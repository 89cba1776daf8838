//! Ranks that are killed while they work.

use crate::pictures::{Drawing, Pictures, ULYSSES_4, expect_same};
use crate::proc;
use crate::random::{Random, asked};
use crate::rig::{Rig, Setting, Watch, now};
use rustix::process::Signal;
use std::time::Duration;

/// Seconds from the death of a rank to when the head knows: 50 ms are promised, a busy machine gets five times as much as
/// a rule, and a second at worst.
const DETECTED_MEDIAN: f64 = 0.25;
const DETECTED_WORST: f64 = 1.0;
/// Deaths that do not make a device bad.
const DEATHS: &str = "rank_deaths = 1000\n";

/// A job, and how long it takes if nothing happens.
struct Subject {
    drawing: Drawing,
    wanted: Pictures,
    usual: Duration,
    attempts: usize,
    /// Of all jobs of the drawing.
    steps: u32,
    watch: Watch,
}

/// What a kill led to.
struct Noticed {
    /// Whether a job lost the rank.
    is_hit: bool,
    /// Seconds until the head knew.
    after: f64,
}

impl Subject {
    fn new(rig: &Rig, drawing: Drawing, plain: &Drawing) -> Self {
        let wanted = plain.undisturbed();
        // The first one loads the model.
        rig.draw(&drawing);
        let begin = now();
        let drawn = rig.draw(&drawing);
        expect_same(&drawn.pictures, &wanted, "undisturbed");
        let attempts = rig.since(begin, "epoch_started").len();
        let watch = Watch::new(rig);
        let steps = watch.jobs_since(begin).iter().map(|job| job.steps).sum();
        assert!(steps > 0);
        Self { drawing, wanted, usual: drawn.took, attempts, steps, watch }
    }

    /// Runs it, and kills a rank at some step of the first three quarters: later the job may be over before it is seen.
    fn disturb(&self, rig: &Rig, random: &mut Random, trial: u64) -> Noticed {
        rig.idle(Duration::from_secs(20));
        let pids = rig.ranks();
        let rank = random.below(pids.len() as u64) as usize;
        let step = random.below(u64::from(self.steps * 3 / 4)) as u32;
        // And somewhere in the step.
        let wait = self.usual.mul_f64(random.part() / f64::from(self.steps));
        let run = rig.start(&self.drawing);
        let reached = || {
            let jobs = self.watch.jobs_since(run.since);
            let is_at_work = !jobs.is_empty() && jobs.iter().all(|job| job.state != "waiting");
            (is_at_work && jobs.iter().map(|job| job.step).sum::<u32>() >= step).then_some(())
        };
        assert!(rig.wait(Duration::from_secs(60), reached).is_some(), "no step {step}\n{}", rig.story());
        std::thread::sleep(wait);
        let dead = now();
        assert!(proc::send(pids[rank], Signal::KILL), "rank {rank} is gone already\n{}", rig.story());
        let since = run.since;
        let about = format!("trial {trial}: rank {rank} killed {wait:?} after step {step} of {}", self.steps);
        let drawn = run.done(rig);
        expect_same(&drawn.pictures, &self.wanted, &format!("{about}\n{}", rig.story()));
        let noticed =
            || rig.since(dead - 0.05, "rank_lost").into_iter().find(|e| e.rank == Some(rank as u32));
        let lost = rig.wait(Duration::from_secs(2), noticed).expect("the head notices");
        let detected = lost.time - dead;
        let attempts = rig.since(since, "epoch_started").len();
        let resumed = drawn.report().events.iter().any(|event| event.kind == "resumed_from_step");
        println!(
            "{about}: noticed after {:.1} ms, {attempts} attempts, resumed: {resumed}, {:?}",
            detected * 1e3,
            drawn.took
        );
        Noticed { is_hit: attempts > self.attempts, after: detected }
    }

    /// So many trials; how many of them hit a job.
    fn disturb_often(&self, rig: &Rig, trials: u64, seed: u64) -> u64 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let noticed: Vec<Noticed> = (0..trials).map(|trial| self.disturb(rig, &mut random, trial)).collect();
        let mut after: Vec<f64> = noticed.iter().map(|one| one.after).collect();
        after.sort_unstable_by(f64::total_cmp);
        let (median, worst) = (after[after.len() / 2], after[after.len() - 1]);
        let hit = noticed.iter().filter(|one| one.is_hit).count() as u64;
        println!("{hit} of {trials} hit a job; noticed after {median:.3} s, at worst {worst:.3} s");
        assert!(median <= DETECTED_MEDIAN && worst <= DETECTED_WORST, "{after:?}");
        hit
    }
}

fn trials(drawing: Drawing, plain: &Drawing, trials: u64, seed: u64) {
    let rig = Setting::two_by_two().failure(DEATHS).up();
    let subject = Subject::new(&rig, drawing, plain);
    let hit = subject.disturb_often(&rig, trials, seed);
    assert!(hit * 3 >= trials * 2, "only {hit} of {trials} kills hit a job");
    rig.idle(Duration::from_secs(20));
    let held: Vec<String> = rig.ranks().iter().flat_map(|pid| proc::plane_sockets(*pid)).collect();
    assert!(held.is_empty(), "{held:?}");
}

#[test]
fn a_job_survives_the_death_of_a_rank_at_any_moment() {
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    trials(drawing.clone(), &drawing.serial(), asked("DG_KILLS", 14), asked("DG_SEED", 20_261_124));
}

#[test]
fn a_stale_pipeline_survives_it_too() {
    let degrees = ["--pipefusion_degree", "2", "--ulysses_degree", "2", "--warmup_steps", "6"];
    let drawing = Drawing::small(20, 8).degrees(&degrees);
    trials(drawing.clone(), &drawing, asked("DG_KILLS", 6), asked("DG_SEED", 4_711));
}

#[test]
fn replicas_survive_it_one_by_one() {
    let rig = Setting::two_by_two().failure(DEATHS).up();
    let rows = ["red apple", "blue car", "a tree", "two cats", "old town", "the sea"];
    let drawing = Drawing::of(&["--height", "96", "--width", "128"]).prompts(&rows).steps(8).seed(3);
    let drawing = drawing.degrees(&["--data_parallel_degree", "2", "--ulysses_degree", "2"]);
    let plain = drawing.serial();
    let subject = Subject::new(&rig, drawing, &plain);
    let hit = subject.disturb_often(&rig, 4, asked("DG_SEED", 99));
    assert!(hit > 1, "{hit} of 4");
}

#[test]
fn a_job_survives_the_death_of_several_at_once() {
    let rig = Setting::two_by_two().failure(DEATHS).up();
    let subject = Subject::new(&rig, Drawing::small(20, 7).degrees(ULYSSES_4), &Drawing::small(20, 7));
    for (turn, dead) in [&[0, 1][..], &[0, 3], &[1, 2, 3], &[0, 1, 2, 3]].into_iter().enumerate() {
        rig.idle(Duration::from_secs(20));
        let pids = rig.ranks();
        let run = rig.start(&subject.drawing);
        std::thread::sleep(subject.usual.mul_f64(0.3 + 0.15 * turn as f64));
        dead.iter().for_each(|rank| assert!(proc::send(pids[*rank], Signal::KILL)));
        let drawn = run.done(&rig);
        println!("ranks {dead:?} killed: {:?}", drawn.took);
        expect_same(&drawn.pictures, &subject.wanted, &format!("{dead:?} killed\n{}", rig.story()));
    }
    rig.idle(Duration::from_secs(20));
    let agents = [rig.agent("left"), rig.agent("right")];
    let run = rig.start(&subject.drawing);
    std::thread::sleep(subject.usual.mul_f64(0.5));
    agents.iter().for_each(|pid| assert!(proc::send(*pid, Signal::KILL)));
    expect_same(&run.done(&rig).pictures, &subject.wanted, "both agents killed");
    // A death while another rank stands still.
    rig.idle(Duration::from_secs(20));
    let pids = rig.ranks();
    let run = rig.start(&subject.drawing);
    std::thread::sleep(subject.usual.mul_f64(0.5));
    assert!(proc::send(pids[1], Signal::STOP) && proc::send(pids[2], Signal::KILL));
    std::thread::sleep(Duration::from_millis(900));
    proc::send(pids[1], Signal::CONT);
    expect_same(&run.done(&rig).pictures, &subject.wanted, "one dead, one still");
    rig.idle(Duration::from_secs(20));
}

#[test]
fn a_job_goes_on_from_its_last_checkpoint() {
    let rig = Setting::two_by_two().env("DG_FAILPOINT", "kill@1:15").up();
    let first = rig.ranks();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let drawn = rig.draw(&drawing);
    expect_same(&drawn.pictures, &drawing.serial().undisturbed(), "killed at step 15");
    let job = rig.jobs().remove(0);
    println!("{job:?}");
    assert_eq!((job.state.as_str(), job.step, job.epochs), ("done", 20, 2), "{job:?}");
    assert!((20..=22).contains(&job.steps_made), "{job:?}");
    let report = drawn.report();
    let kinds: Vec<&str> = report.events.iter().map(|event| event.kind.as_str()).collect();
    assert!(kinds.contains(&"rank_lost") && kinds.contains(&"resumed_from_step"), "{:?}", report.events);
    let resumed = rig.since(0.0, "resumed_from_step").remove(0);
    assert!(resumed.step.is_some_and(|step| (13..=15).contains(&step)), "{resumed:?}");
    // Only the first process of a rank has the failpoint.
    rig.idle(Duration::from_secs(20));
    let second = rig.ranks();
    let changed: Vec<usize> = (0..4).filter(|rank| first[*rank] != second[*rank]).collect();
    assert_eq!(changed, [1], "{first:?} {second:?}");
    expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "afterwards");
    assert_eq!(rig.jobs().remove(0).epochs, 1);
}

#[test]
fn a_rank_that_dies_too_often_is_left_out() {
    let rig = Setting::two_by_two().failure("rank_deaths = 3\n").up();
    let drawing = Drawing::small(8, 2).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    for death in 1..=3 {
        let pid = rig.ranks()[2];
        let run = rig.start(&drawing);
        std::thread::sleep(Duration::from_millis(150));
        assert!(proc::send(pid, Signal::KILL));
        expect_same(&run.done(&rig).pictures, &wanted, &format!("death {death}"));
        if death < 3 {
            rig.idle(Duration::from_secs(20));
        }
    }
    let bad = rig.wait(Duration::from_secs(5), || (rig.status().ranks[2].state == "bad").then_some(()));
    assert!(bad.is_some(), "{:?}\n{}", rig.status(), rig.story());
    assert_eq!(rig.since(0.0, "device_bad").len(), 1);
    // Four ranks are not there any more: three, or two, do it.
    expect_same(&rig.draw(&drawing).pictures, &wanted, "afterwards");
    assert!(!rig.jobs()[0].ranks.contains(&2), "{:?}", rig.jobs()[0]);
}
