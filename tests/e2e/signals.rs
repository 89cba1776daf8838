//! A run that is asked to stop.

use super::place::{Place, expect_exit, text};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

fn signal(child: &Child, name: &str) {
    let script = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell").success());
}

/// A run that takes long, stopped when it is at work.
fn stop(place: &Place, name: &str) -> (dg_testkit::Output, Duration) {
    let model = dg_testkit::model_dir("tiny-dev");
    let size = ["--height", "512", "--width", "512", "--num_inference_steps", "1000", "--report", "r.json"];
    let args = [&["t2i", "--model_name", text(&model), "--prompt", "x", "--seed", "1"], &size[..]].concat();
    let child = place.command(&args).spawn().expect("the program was just built");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !place.path("output").exists() {
        assert!(Instant::now() < deadline, "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(700));
    let start = Instant::now();
    signal(&child, name);
    let output = dg_testkit::program::finish(child, Duration::from_secs(60));
    (output, start.elapsed())
}

#[test]
fn sigint_and_sigterm_stop_a_run_cleanly() {
    for (name, status) in [("INT", 130), ("TERM", 143)] {
        let place = Place::new();
        let (output, took) = stop(&place, name);
        let said = format!("stopped by SIG{name}: 0 of 1 pictures are there");
        expect_exit(&output, status, &[&said, "hint: "]);
        assert!(place.names("output").is_empty(), "{:?}", place.names("output"));
        let report: dg_core::report::Report =
            serde_json::from_slice(&place.read("r.json")).expect("a report");
        assert_eq!(report.events.last().map(|e| e.kind.as_str()), Some("cancelled"));
        println!("SIG{name}: ended after {took:?}");
        // 2 s are promised; a busy machine gets five times as much
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn what_is_drawn_is_written_before_its_turn() {
    let place = Place::new();
    let slow = "{\"prompt\":\"a\",\"width\":512,\"height\":512,\"num_inference_steps\":1000}\n";
    place.write("p.jsonl", format!("{slow}{{\"prompt\":\"b\"}}\n{{\"prompt\":\"c\"}}\n"));
    let size = ["--height", "64", "--width", "64", "--num_inference_steps", "2"];
    let args = ["t2i", "--prompts_file", "p.jsonl", "--seed", "1", "--data_parallel_degree", "2"];
    let child = place.command(&[&args[..], &size].concat()).spawn().expect("the program was just built");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !place.path("output/000002.png").exists() {
        assert!(Instant::now() < deadline, "the second replica draws both of the others");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, "INT");
    let output = dg_testkit::program::finish(child, Duration::from_secs(60));
    expect_exit(&output, 130, &["2 of 3 pictures are there"]);
    assert_eq!(output.stdout.lines().collect::<Vec<_>>(), ["output/000001.png", "output/000002.png"]);
}

#[test]
fn waiting_for_standard_input_can_be_stopped() {
    let place = Place::new();
    let mut command = place.command(&["t2i", "--prompts_file", "-"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("the program was just built");
    let held = child.stdin.take();
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    signal(&child, "INT");
    let output = dg_testkit::program::finish(child, Duration::from_secs(60));
    assert_eq!(output.status, Some(130));
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(held);
}
