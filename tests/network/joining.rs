//! Join tokens at a head that runs.

use crate::rig::{Rig, SMALL, alone};
use dg_testkit::Output;
use std::time::Duration;

/// Asks with a token for a certificate into a folder of its own.
fn join(rig: &Rig, token: &str, folder: &str) -> Output {
    rig.cluster(&["join", token, "--name", "right", "--state_dir", folder])
}

fn token(rig: &Rig, args: &[&str]) -> String {
    let all = [&["token", "create", "--cluster", "rig.toml"], args].concat();
    rig.cluster(&all).expect_success().stdout.trim().to_owned()
}

fn refused(output: &Output, status: i32, said: &str) {
    assert_eq!(output.status, Some(status), "{}{}", output.stdout, output.stderr);
    assert!(output.stderr.contains(said) && output.stderr.contains("hint: "), "{}", output.stderr);
}

/// The text with its last character but `from_end` exchanged.
fn spoilt(text: &str, from_end: usize) -> String {
    let at = text.len() - 1 - from_end;
    let other = if &text[at..=at] == "0" { "1" } else { "0" };
    format!("{}{other}{}", &text[..at], &text[at + 1..])
}

#[test]
fn a_token_lets_one_node_in_once() {
    let _alone = alone();
    let nodes = "[[node]]\nname = \"left\"\nlocal = true\nranks = 1\ncpu_threads = 1\n\
                 [[node]]\nname = \"right\"\nlocal = true\nlaunch = \"manual\"\nranks = 1\ncpu_threads = 1\n\
                 [parallel]\nulysses_degree = 2\n";
    let mut rig = Rig::up(nodes, None, false);
    // The head's own `up` has made one for each node of this host; it is to come by the token.
    rig.cluster(&["certs", "revoke", "--cluster", "rig.toml", "right"]).expect_success();
    let good = token(&rig, &["--node", "right"]);
    let parts: Vec<&str> = good.rsplitn(3, ':').collect();
    let [secret, pin, rest] = parts[..] else { panic!("{good}") };
    refused(&join(&rig, "dgjoin1:somewhere", "none"), 2, "not a join token");
    let wrong = format!("{rest}:{pin}:{}", spoilt(secret, 3));
    refused(&join(&rig, &wrong, "wrong"), 3, "token");
    let elsewhere = format!("{rest}:{}:{secret}", spoilt(pin, 3));
    refused(&join(&rig, &elsewhere, "pin"), 5, "CA is not that of the join token");
    let other = rig.cluster(&["join", &good, "--name", "middle", "--state_dir", "other"]);
    refused(&other, 3, "name");
    join(&rig, &good, "joined").expect_success();
    refused(&join(&rig, &good, "again"), 5, "");
    // While another token is out, the head speaks with strangers, and says what is wrong.
    let second = token(&rig, &["--node", "right"]);
    refused(&join(&rig, &good, "again"), 3, "token");
    assert_ne!(second, good);
    let folder = rig.path("joined");
    rig.agent("right", &folder, 0);
    rig.await_ready(Duration::from_secs(30));
    assert!(rig.pictures("after", SMALL) == rig.serial(SMALL));
    let log = rig.head_log();
    assert!(log.contains("join refused") && log.contains("joined"), "{log}");
    assert!(!log.contains(secret), "a secret is in the log");
}
