//! Heads that are killed.

use crate::agents::ByHand;
use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::proc;
use crate::rig::{Setting, now};
use dg_testkit::program::finish;
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn a_new_head_takes_over_what_the_old_one_left() {
    let rig = Setting::two_by_two().up();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    rig.draw(&drawing);
    for turn in 1..=3 {
        let (head, ranks) = (rig.head(), rig.ranks());
        let agents = [rig.agent("left"), rig.agent("right")];
        let run = rig.start(&drawing);
        std::thread::sleep(Duration::from_millis(500));
        assert!(proc::send(head, Signal::KILL));
        let lost = run.ended();
        assert_eq!(lost.output.status, Some(5), "turn {turn}: {}", lost.output.stderr);
        assert!(lost.output.stderr.contains("the head went away"), "{}", lost.output.stderr);
        assert!(lost.pictures.is_empty());
        // Ranks stop what they do, by the end of the lease or when they hear of the next head; they keep the model.
        if turn == 2 {
            std::thread::sleep(Duration::from_secs(6));
        }
        assert!(ranks.iter().chain(&agents).all(|pid| proc::is_alive(*pid)), "{}", rig.story());
        rig.up().expect_success();
        assert_ne!(rig.head(), head);
        rig.idle(Duration::from_secs(10));
        assert_eq!(
            (rig.ranks(), [rig.agent("left"), rig.agent("right")]),
            (ranks, agents),
            "{}",
            rig.story()
        );
        expect_same(&rig.draw(&drawing).pictures, &wanted, "with the new head");
        assert_eq!(rig.jobs()[0].epochs, 1, "{}", rig.story());
    }
}

#[test]
fn a_new_head_brings_its_settings_along() {
    let rig = Setting::two_by_two().cluster("lease_ttl = \"60s\"\n").up();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    rig.draw(&drawing);
    let (ranks, agents) = (rig.ranks(), [rig.agent("left"), rig.agent("right")]);
    assert!(proc::send(rig.head(), Signal::KILL));
    let file = rig.path("rig.toml");
    let text = std::fs::read_to_string(&file).expect("the file is there");
    // Shorter leases; another number of threads on the first node.
    let text = text.replace("\"60s\"", "\"5s\"").replacen("cpu_threads = 1", "cpu_threads = 2", 1);
    std::fs::write(&file, text).expect("the folder is writable");
    let taken = now();
    rig.up().expect_success();
    rig.idle(Duration::from_secs(10));
    let after = rig.ranks();
    assert_eq!(after[2..], ranks[2..], "ranks that are as they have to be stay\n{}", rig.story());
    assert!(ranks[..2].iter().all(|old| !after.contains(old) && !proc::is_alive(*old)), "{}", rig.story());
    assert_eq!([rig.agent("left"), rig.agent("right")], agents);
    assert!(rig.since(taken, "rank_lost").is_empty(), "nothing has failed\n{}", rig.story());
    expect_same(&rig.draw(&drawing).pictures, &wanted, "with the new head");
    let fences = || {
        let log =
            |node| std::fs::read_to_string(rig.path(&format!("state/log/{node}.log"))).unwrap_or_default();
        ["left", "right"].map(|node| log(node).matches("the lease of this node is over").count())
    };
    let before = fences();
    assert!(proc::send(rig.head(), Signal::KILL));
    let over = || fences().iter().zip(before).all(|(now, before)| *now > before).then_some(());
    assert!(rig.wait(Duration::from_secs(12), over).is_some(), "the lease is 5 s\n{}", rig.story());
    rig.up().expect_success();
    expect_same(&rig.draw(&drawing).pictures, &wanted, "with the third head");
}

#[test]
fn nobody_lives_long_without_a_head() {
    let times = "idle_timeout = \"1s\"\nlease_ttl = \"2s\"\n";
    let hand = "[[node]]\nname = \"hand\"\nlocal = true\nlaunch = \"manual\"\ncpu_threads = 1\n";
    let rig = Setting::ranks(&[2, 1]).cluster(times).failure("orphan_exit = \"4s\"\n").more(hand).down();
    rig.cluster(&["up", "rig.toml", "-d"]).expect_success();
    let agent = ByHand::start(&rig, "hand");
    rig.idle(Duration::from_secs(20));
    rig.draw(&Drawing::small(2, 1).degrees(ULYSSES_4));
    let (head, all) = (rig.head(), rig.processes().len());
    assert_eq!(all, 8, "{:?}", rig.processes());
    assert!(proc::send(head, Signal::KILL));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.processes().len(), 7, "they wait for another head: {:?}", rig.processes());
    // A unit that restarts what fails starts it again: nobody has told it to end.
    let alone = finish(agent.0, Duration::from_secs(10));
    assert_eq!(alone.status, Some(5), "{}", alone.stderr);
    let said: Vec<&str> = alone.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(matches!(said[..], [line] if line.contains("`hand` has had no head")), "{}", alone.stderr);
    assert!(alone.stderr.contains("\nhint: is the head up"), "{}", alone.stderr);
    let gone = rig.wait(Duration::from_secs(10), || rig.processes().is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}\n{}", rig.processes(), rig.story());
    // The cluster can be had again, with what the dead head left lying around.
    rig.cluster(&["up", "rig.toml", "-d"]).expect_success();
    let agent = ByHand::start(&rig, "hand");
    rig.idle(Duration::from_secs(20));
    let drawing = Drawing::small(3, 1).degrees(ULYSSES_4);
    expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "a new cluster");
    rig.cluster(&["down", "--cluster", "rig.toml"]).expect_success();
    let told = finish(agent.0, Duration::from_secs(10));
    assert_eq!(told.status, Some(0), "{}", told.stderr);
}

#[test]
fn a_head_that_stands_still_is_waited_for() {
    let rig = Setting::two_by_two().up();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    let (head, ranks) = (rig.head(), rig.ranks());
    let run = rig.start(&drawing);
    std::thread::sleep(Duration::from_millis(500));
    assert!(proc::send(head, Signal::STOP));
    std::thread::sleep(Duration::from_secs(1));
    assert!(proc::send(head, Signal::CONT));
    expect_same(&run.done(&rig).pictures, &wanted, "the head stood still");
    rig.idle(Duration::from_secs(10));
    assert_eq!(rig.ranks(), ranks);
}
