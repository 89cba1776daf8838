//! What people ask of a cluster while it works.

use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::proc;
use crate::rig::{Drawn, Rig, Run, Setting};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A job that takes long.
fn long() -> Drawing {
    Drawing::small(400, 7).degrees(ULYSSES_4)
}

/// Waits until a job has done some steps, and tells its number.
pub(crate) fn at_work(rig: &Rig) -> String {
    let job = rig.wait(Duration::from_secs(20), || {
        let job = rig.jobs().into_iter().next()?;
        (job.state == "running" && job.step >= 3).then_some(job.job)
    });
    job.unwrap_or_else(|| panic!("it does not begin\n{}", rig.story()))
}

fn expect_end(run: Run, status: i32, said: &[&str]) -> Drawn {
    let drawn = run.ended();
    assert_eq!(drawn.output.status, Some(status), "{}\n{}", drawn.output.stdout, drawn.output.stderr);
    for part in said {
        assert!(drawn.output.stderr.contains(part), "no `{part}` in\n{}", drawn.output.stderr);
    }
    assert!(drawn.pictures.is_empty());
    drawn
}

/// The state of a job, once it is over.
fn state(rig: &Rig, job: &str) -> String {
    let over = rig.wait(Duration::from_secs(10), || {
        let found = rig.jobs().into_iter().find(|found| found.job == job)?;
        (found.state != "running" && found.state != "waiting").then_some(found.state)
    });
    over.unwrap_or_else(|| panic!("{job} goes on\n{}", rig.story()))
}

#[test]
fn a_job_that_nobody_wants_any_more_is_cancelled() {
    let rig = Setting::two_by_two().up();
    let pids = rig.ranks();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let run = rig.start(&long());
        let job = at_work(&rig);
        assert!(proc::send(run.pid(), signal));
        expect_end(run, status, &["0 of 1 pictures are there"]);
        let ended = Instant::now();
        assert_eq!(state(&rig, &job), "cancelled");
        // It said goodbye: nobody waited until its connection was silent for 3 s.
        assert!(ended.elapsed() < Duration::from_secs(2), "after {:?}", ended.elapsed());
        rig.idle(Duration::from_secs(5));
    }
    // Nobody says goodbye: the connection is silent, and then it is the same.
    let run = rig.start(&long());
    let job = at_work(&rig);
    assert!(proc::send(run.pid(), Signal::KILL));
    assert_eq!(state(&rig, &job), "cancelled");
    assert_eq!(run.ended().output.status, None);
    let run = rig.start(&long());
    let job = at_work(&rig);
    rig.cluster(&["cancel", &job, "--cluster", "rig.toml"]).expect_success();
    expect_end(run, 1, &["cancelled"]);
    assert_eq!(state(&rig, &job), "cancelled");
    assert_eq!(rig.cluster(&["cancel", "nothing", "--cluster", "rig.toml"]).status, Some(3));
    rig.idle(Duration::from_secs(5));
    assert_eq!(rig.ranks(), pids, "ranks stop, and stay");
    let drawing = Drawing::small(3, 1).degrees(ULYSSES_4);
    expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "afterwards");
}

#[test]
fn a_client_that_stands_still_too_long_is_gone() {
    let rig = Setting::two_by_two().up();
    let run = rig.start(&long());
    let job = at_work(&rig);
    assert!(proc::send(run.pid(), Signal::STOP));
    assert_eq!(state(&rig, &job), "cancelled");
    assert!(proc::send(run.pid(), Signal::CONT));
    expect_end(run, 5, &["the head went away", "hint: "]);
    rig.idle(Duration::from_secs(5));
}

#[test]
fn a_job_may_come_before_the_nodes_do() {
    let rig = Setting::two_by_two().down();
    rig.cluster(&["up", "rig.toml", "-d"]).expect_success();
    let drawing = Drawing::small(3, 1).degrees(ULYSSES_4);
    expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "at once");
}

#[test]
fn an_urgent_job_overtakes_one_that_waits() {
    let rig = Setting::two_by_two().up();
    let first = rig.start(&Drawing::small(120, 7).degrees(ULYSSES_4));
    at_work(&rig);
    let waits =
        |count: usize| rig.wait(Duration::from_secs(10), || (rig.jobs().len() == count).then_some(()));
    let usual = Drawing::small(6, 1).degrees(ULYSSES_4);
    let second = rig.start(&usual);
    waits(2).expect("it waits");
    let urgent = Drawing::small(6, 2).degrees(&[ULYSSES_4, &["--priority", "9"]].concat());
    let third = rig.start(&urgent);
    waits(3).expect("and so does the urgent one");
    let jobs = rig.jobs();
    assert!(jobs.iter().rev().map(|job| job.priority).eq([0, 0, 9]), "{jobs:?}");
    assert!(jobs.iter().take(2).all(|job| job.state == "waiting"), "the first one was too short: {jobs:?}");
    first.done(&rig);
    expect_same(&third.done(&rig).pictures, &urgent.serial().undisturbed(), "urgent");
    expect_same(&second.done(&rig).pictures, &usual.serial().undisturbed(), "usual");
    let order: Vec<String> = rig.since(0.0, "job_done").into_iter().filter_map(|event| event.job).collect();
    assert_eq!(order, [2, 0, 1].map(|n: usize| jobs[n].job.clone()), "{}", rig.story());
}

#[test]
fn a_node_that_is_drained_gets_no_new_work() {
    let rig = Setting::two_by_two().up();
    let four = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = four.serial().undisturbed();
    let run = rig.start(&four);
    at_work(&rig);
    rig.cluster(&["drain", "right", "--cluster", "rig.toml"]).expect_success();
    assert_eq!(rig.status().nodes[1].state, "draining");
    expect_same(&run.done(&rig).pictures, &wanted, "drained meanwhile");
    expect_same(&rig.draw(&four).pictures, &wanted, "on what is left");
    let job = rig.jobs().remove(0);
    assert!(job.ranks.iter().all(|rank| *rank < 2) && !job.ranks.is_empty(), "{job:?}");
    rig.cluster(&["drain", "right", "--undo", "--cluster", "rig.toml"]).expect_success();
    rig.idle(Duration::from_secs(5));
    expect_same(&rig.draw(&four).pictures, &wanted, "with all again");
    assert_eq!(rig.jobs()[0].ranks, [0, 1, 2, 3]);
    let unknown = rig.cluster(&["drain", "nowhere", "--cluster", "rig.toml"]);
    assert_eq!(unknown.status, Some(3));
    assert!(unknown.stderr.contains("`nowhere`"), "{}", unknown.stderr);
}

#[test]
fn a_cluster_that_goes_down_says_so_to_who_waits() {
    let rig = Setting::two_by_two().up();
    let first = rig.start(&long());
    at_work(&rig);
    let second = rig.start(&long());
    rig.wait(Duration::from_secs(10), || (rig.jobs().len() == 2).then_some(())).expect("it waits");
    rig.cluster(&["down", "--cluster", "rig.toml"]).expect_success();
    let gone = rig.wait(Duration::from_secs(2), || {
        let others = rig.processes().into_iter().filter(|(_, arguments)| arguments.contains("dg-cluster"));
        (others.count() == 0).then_some(())
    });
    assert!(gone.is_some(), "{:?}", rig.processes());
    for run in [first, second] {
        let drawn = expect_end(run, 1, &["hint: "]);
        println!("{}", drawn.output.stderr);
        let said = &drawn.output.stderr;
        assert!(
            said.contains("goes down") || said.contains("is down") || said.contains("cancelled"),
            "{said}"
        );
    }
}
