//! Heads that are killed.

use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::proc;
use crate::rig::Setting;
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
fn nobody_lives_long_without_a_head() {
    let times = "idle_timeout = \"1s\"\nlease_ttl = \"2s\"\n";
    let rig = Setting::two_by_two().cluster(times).failure("orphan_exit = \"4s\"\n").up();
    rig.draw(&Drawing::small(2, 1).degrees(ULYSSES_4));
    let (head, all) = (rig.head(), rig.processes().len());
    assert_eq!(all, 7, "{:?}", rig.processes());
    assert!(proc::send(head, Signal::KILL));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.processes().len(), 6, "they wait for another head: {:?}", rig.processes());
    let gone = rig.wait(Duration::from_secs(10), || rig.processes().is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}\n{}", rig.processes(), rig.story());
    // The cluster can be had again, with what the dead head left lying around.
    rig.up().expect_success();
    let drawing = Drawing::small(3, 1).degrees(ULYSSES_4);
    expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "a new cluster");
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
