//! Agents that are killed.

use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::proc;
use crate::rig::{Rig, Setting, now};
use dg_testkit::program::finish;
use rustix::process::Signal;
use std::process::{Child, Stdio};
use std::time::Duration;

/// How soon a killed process takes its ranks along.
const SOON: Duration = Duration::from_millis(500);

#[test]
fn an_agent_takes_its_ranks_along_and_the_job_survives() {
    let rig = Setting::two_by_two().up();
    let drawing = Drawing::small(20, 7).degrees(ULYSSES_4);
    let wanted = drawing.serial().undisturbed();
    rig.draw(&drawing);
    for (wait, node, own) in [(400, "right", 2..4), (900, "left", 0..2)] {
        let (agent, ranks) = (rig.agent(node), rig.ranks());
        let run = rig.start(&drawing);
        std::thread::sleep(Duration::from_millis(wait));
        let dead = now();
        assert!(proc::send(agent, Signal::KILL));
        let orphans = || ranks[own.clone()].iter().any(|pid| proc::is_alive(*pid));
        let gone = rig.wait(SOON, || (!orphans()).then_some(()));
        assert!(gone.is_some(), "ranks of {node} live without their agent");
        let drawn = run.done(&rig);
        expect_same(&drawn.pictures, &wanted, &format!("agent of {node} killed"));
        let lost = rig.since(dead, "node_lost");
        rig.idle(Duration::from_secs(20));
        let joined = rig.since(dead, "node_joined");
        println!(
            "{node}: lost after {:?}, in again after {:?}, job {:?}",
            lost.first().map(|event| event.time - dead),
            joined.first().map(|event| event.time - dead),
            drawn.took
        );
        assert_ne!(rig.agent(node), agent);
        assert!(joined.iter().any(|event| event.node.as_deref() == Some(node)), "{joined:?}");
    }
    expect_same(&rig.draw(&drawing).pictures, &wanted, "afterwards");
}

#[test]
fn a_node_that_is_started_again_joins_at_once() {
    let rig = Setting::ranks(&[1, 1]).up();
    let mut slowest: f64 = 0.0;
    for turn in 1..=10 {
        let agent = rig.agent("right");
        let dead = now();
        assert!(proc::send(agent, Signal::KILL));
        let joined = rig.wait(Duration::from_secs(15), || rig.since(dead, "node_joined").pop());
        let joined = joined.unwrap_or_else(|| panic!("start {turn}: it does not join\n{}", rig.story()));
        slowest = slowest.max(joined.time - dead);
        println!("start {turn}: in again {:.0} ms after its death", (joined.time - dead) * 1e3);
        rig.idle(Duration::from_secs(10));
        assert_ne!(rig.agent("right"), agent);
    }
    // Its ghost is not waited for: that would take idle_timeout, 3 s, each time.
    assert!(slowest < 2.5, "{slowest} s");
}

#[test]
fn a_node_whose_clock_was_set_back_joins() {
    let rig = Setting::ranks(&[1, 1]).up();
    // As its last start left it when the clock was an hour ahead.
    let (file, ahead) = (rig.path("state/right.start"), (now() * 1e3) as u64 + 3_600_000);
    std::fs::write(&file, ahead.to_string()).expect("the folder is writable");
    for turn in 1..=2 {
        let dead = now();
        assert!(proc::send(rig.agent("right"), Signal::KILL));
        let joined = rig.wait(Duration::from_secs(15), || rig.since(dead, "node_joined").pop());
        assert!(joined.is_some(), "start {turn}: it does not join\n{}", rig.story());
        rig.idle(Duration::from_secs(10));
        let number = std::fs::read_to_string(&file).expect("a file");
        assert_eq!(number.trim().parse(), Ok(ahead + turn), "start {turn}");
    }
}

/// An agent that somebody started, not the head.
pub(crate) struct ByHand(pub(crate) Child);

impl ByHand {
    pub(crate) fn start(rig: &Rig, node: &str) -> Self {
        let head = format!("127.0.0.1:{}", rig.port);
        let mut command = rig.command(&["agent", "--name", node, "--head", &head, "--state_dir", "state"]);
        command.stdout(Stdio::null());
        Self(command.spawn().expect("the program was just built"))
    }

    fn kill(mut self) {
        self.0.kill().expect("it is a child of this process");
        self.0.wait().expect("it is a child of this process");
    }
}

#[test]
fn a_node_that_is_started_by_hand_does_not_wait_for_its_ghost() {
    let rig =
        Setting::ranks(&[1]).more("[[node]]\nname = \"hand\"\nlocal = true\nlaunch = \"manual\"\n").down();
    rig.cluster(&["up", "rig.toml", "-d"]).expect_success();
    // It draws with what there is.
    let drawing = Drawing::small(2, 1).degrees(&["--ulysses_degree", "2"]);
    let wanted = drawing.serial().undisturbed();
    expect_same(&rig.draw(&drawing).pictures, &wanted, "one node of two");
    let mut agent = ByHand::start(&rig, "hand");
    rig.idle(Duration::from_secs(10));
    let again = ByHand::start(&rig, "hand");
    assert_eq!(finish(again.0, Duration::from_secs(10)).status, Some(4), "a node has one agent");
    for turn in 1..=10 {
        agent.kill();
        let dead = now();
        agent = ByHand::start(&rig, "hand");
        let joined = rig.wait(Duration::from_secs(15), || rig.since(dead, "node_joined").pop());
        let joined = joined.unwrap_or_else(|| panic!("start {turn}: it does not join\n{}", rig.story()));
        println!("start {turn}: in again {:.0} ms after its death", (joined.time - dead) * 1e3);
        // The head does not know of the death: it would, 3 s later.
        assert!(joined.time - dead < 2.0, "{}", rig.story());
        rig.idle(Duration::from_secs(10));
        if turn % 5 == 0 {
            expect_same(&rig.draw(&drawing).pictures, &wanted, "afterwards");
            assert_eq!(rig.jobs()[0].ranks, [0, 1]);
        }
    }
    rig.cluster(&["down", "--cluster", "rig.toml"]).expect_success();
    assert_eq!(finish(agent.0, Duration::from_secs(10)).status, Some(0), "it was told to end");
}
