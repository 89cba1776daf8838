//! What cannot be done is refused, in words that help.

use crate::pictures::{Drawing, ULYSSES_4};
use crate::rig::{Rig, Setting};
use dg_testkit::Output;

fn expect_exit(output: &Output, status: i32, said: &[&str]) {
    assert_eq!(output.status, Some(status), "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
    for part in said {
        assert!(output.stderr.contains(part), "no `{part}` in\n{}", output.stderr);
    }
    assert_eq!(output.stderr.matches("error: ").count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("hint: "), "{}", output.stderr);
}

fn refused(rig: &Rig, drawing: &Drawing, status: i32, said: &[&str]) {
    let drawn = rig.start(drawing).ended();
    expect_exit(&drawn.output, status, said);
    assert!(drawn.pictures.is_empty());
}

#[test]
fn what_cannot_be_drawn_is_refused_by_name() {
    let rig = Setting::two_by_two().up();
    let small = Drawing::small(2, 1);
    refused(&rig, &small.clone().with(&["--model_name", "nobody/nothing"]), 4, &["`nobody/nothing`"]);
    refused(&rig, &small.clone().with(&["--model_name", "/nowhere"]), 4, &["`/nowhere`"]);
    refused(&rig, &small.clone().degrees(&["--ulysses_degree", "8"]), 4, &["8"]);
    refused(&rig, &small.clone().degrees(&["--ring_degree", "4", "--ulysses_degree", "2"]), 4, &["8"]);
    refused(&rig, &small.degrees(&["--pipefusion_degree", "64"]), 4, &[]);
    // Two heads of one file.
    expect_exit(&rig.up(), 4, &["`rig` is up already"]);
    let front = rig.cluster(&["up", "rig.toml"]);
    expect_exit(&front, 4, &["`rig` is up already"]);
    // Another cluster on the same port.
    let text = std::fs::read_to_string(rig.path("rig.toml")).expect("it was written");
    let other = text.replace("\"rig\"", "\"other\"").replace("\"state\"", "\"state2\"");
    std::fs::write(rig.path("other.toml"), other).expect("the folder is writable");
    let port = rig.port.to_string();
    expect_exit(&rig.cluster(&["up", "other.toml", "-d", "--wait"]), 4, &[&port, "listen"]);
    let unknown = rig.cluster(&["logs", "nowhere", "--cluster", "rig.toml"]);
    expect_exit(&unknown, 3, &["`nowhere`"]);
    let drawing = Drawing::small(2, 1).degrees(ULYSSES_4);
    crate::pictures::expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "unharmed");
}

#[test]
fn a_cluster_that_is_not_up_is_not_reached() {
    let rig = Setting::two_by_two().down();
    expect_exit(&rig.cluster(&["status"]), 5, &["no cluster is up"]);
    for command in
        [&["status"][..], &["jobs"], &["down"], &["cancel", "1"], &["drain", "left"], &["logs", "0"]]
    {
        let output = rig.cluster(&[command, &["--cluster", "rig.toml"]].concat());
        expect_exit(&output, 5, &["not up", "dg-cluster up"]);
    }
    refused(&rig, &Drawing::small(2, 1), 5, &[]);
    // It was up, and its head died.
    rig.up().expect_success();
    rig.cluster(&["status"]).expect_success();
    rig.cluster(&["down"]).expect_success();
    expect_exit(&rig.cluster(&["status", "--cluster", "rig.toml"]), 5, &[]);
    refused(&rig, &Drawing::small(2, 1), 5, &[]);
}
