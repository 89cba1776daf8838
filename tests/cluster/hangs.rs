//! Processes that stand still.

use crate::orders::at_work;
use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::proc;
use crate::rig::{Setting, now};
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn a_rank_that_stands_still_for_a_second_is_waited_for() {
    let rig = Setting::two_by_two().up();
    let drawing = Drawing::small(60, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    rig.draw(&drawing);
    let pids = rig.ranks();
    let step = || {
        let job = rig.jobs().remove(0);
        assert_eq!(job.state, "running", "the job was over before\n{}", rig.story());
        job.step
    };
    for (rank, pid) in pids.iter().enumerate() {
        let run = rig.start(&drawing);
        let since = run.since;
        at_work(&rig);
        assert!(proc::send(*pid, Signal::STOP));
        // What the others still do without it, and what is on its way to the head.
        std::thread::sleep(Duration::from_millis(500));
        let still = step();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(step(), still, "rank {rank} does not stand still");
        assert!(proc::send(*pid, Signal::CONT));
        let drawn = run.done(&rig);
        expect_same(&drawn.pictures, &wanted, &format!("rank {rank} stood still"));
        assert!(rig.since(since, "rank_lost").is_empty(), "{}", rig.story());
        assert_eq!(rig.ranks(), pids, "rank {rank} was replaced\n{}", rig.story());
        assert_eq!(rig.since(since, "epoch_started").len(), 1, "{}", rig.story());
    }
}

#[test]
fn a_rank_that_stands_still_for_ever_is_replaced() {
    let rig = Setting::two_by_two().failure("hang_min = \"2s\"\n").up();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    rig.draw(&drawing);
    let first = rig.ranks();
    for rank in [3, 0] {
        let pid = rig.ranks()[rank];
        let run = rig.start(&drawing);
        // The first step has more time.
        at_work(&rig);
        let stopped = now();
        assert!(proc::send(pid, Signal::STOP));
        let drawn = run.done(&rig);
        expect_same(&drawn.pictures, &wanted, &format!("rank {rank} stands still"));
        rig.idle(Duration::from_secs(20));
        assert!(!proc::is_alive(pid), "the process that stands still is killed");
        assert_ne!(rig.ranks()[rank], pid);
        let lost = rig.since(stopped, "rank_lost");
        println!(
            "rank {rank}: {:?}, lost after {:?}",
            drawn.took,
            lost.first().map(|event| event.time - stopped)
        );
        assert!(lost.iter().all(|event| event.rank == Some(rank as u32)), "{lost:?}");
    }
    assert_ne!(rig.ranks(), first);
    expect_same(&rig.draw(&drawing).pictures, &wanted, "afterwards");
}

#[test]
fn the_head_s_file_says_how_long_an_agent_may_stand_still() {
    let times = "idle_timeout = \"8s\"\nkeep_alive = \"2s\"\nlease_ttl = \"30s\"\n";
    let rig = Setting::ranks(&[1, 1]).cluster(times).up();
    let agent = rig.agent("right");
    for (still, is_lost) in [(Duration::from_secs(5), false), (Duration::from_secs(12), true)] {
        let stopped = now();
        assert!(proc::send(agent, Signal::STOP));
        std::thread::sleep(still);
        assert!(proc::send(agent, Signal::CONT));
        rig.idle(Duration::from_secs(30));
        let lost = rig.since(stopped, "node_lost");
        println!("still for {still:?}: lost after {:?}", lost.first().map(|event| event.time - stopped));
        assert_eq!(!lost.is_empty(), is_lost, "{still:?}\n{}", rig.story());
        assert_eq!(rig.agent("right"), agent);
    }
    // The agent goes by the same times: it notices that the head is gone.
    assert!(proc::send(rig.head(), Signal::KILL));
    let noticed = || {
        let log = std::fs::read_to_string(rig.path("state/log/right.log")).unwrap_or_default();
        (log.matches("the connection to the head is lost").count() > 1).then_some(())
    };
    assert!(rig.wait(Duration::from_secs(15), noticed).is_some(), "{}", rig.story());
    rig.up().expect_success();
}

#[test]
fn an_agent_that_stands_still_is_waited_for_or_left() {
    let rig = Setting::two_by_two().up();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    rig.draw(&drawing);
    let agent = rig.agent("right");
    for still in [Duration::from_secs(1), Duration::from_secs(8)] {
        let run = rig.start(&drawing);
        std::thread::sleep(Duration::from_millis(300));
        assert!(proc::send(agent, Signal::STOP));
        std::thread::sleep(still);
        assert!(proc::send(agent, Signal::CONT));
        let drawn = run.done(&rig);
        expect_same(&drawn.pictures, &wanted, &format!("the agent stood still for {still:?}"));
        rig.idle(Duration::from_secs(30));
    }
    assert_eq!(rig.agent("right"), agent, "it came back by itself");
    expect_same(&rig.draw(&drawing).pictures, &wanted, "afterwards");
}
