//! A cluster with a node of CPUs, and one of GPUs that are not there: what `--device` and `--dtype auto` mean on it.

use super::live::Live;
use super::place::{SMALL, expect_exit, json_lines};
use serde_json::Value;

const CPUS: &str = "[[node]]\nname = \"left\"\nlocal = true\ncpu_threads = 1\n";
const GPUS: &str = "[[node]]\nname = \"gpus\"\nlocal = true\nlaunch = \"manual\"\ngpus = [0]\n";

fn up(nodes: &str) -> Live {
    let live = Live::new(nodes);
    live.ok(&["up", "small.toml", "-d"]);
    live.wait(|status| status["ranks"][0]["state"] == "idle");
    live
}

/// The format of a run, and whether its picture was there already.
fn draw(live: &Live, folder: &str, args: &[&str]) -> (String, bool) {
    let all = [&["--cluster", "small.toml", "--report", "report.json", "--json"], args].concat();
    let drawn = live.draw(folder, &all).expect_success();
    let report: Value = serde_json::from_slice(&live.0.read("report.json")).expect("JSON");
    let dtype = report["model"]["dtype"].as_str().expect("a format").to_owned();
    (dtype, json_lines(&drawn)[0]["skipped"] == true)
}

#[test]
fn auto_is_bfloat16_where_a_cluster_has_gpus() {
    let live = up(&[CPUS, GPUS].concat());
    let is = |dtype: &str, was_there| (dtype.to_owned(), was_there);
    // They are not there: the node's CPU draws what they would.
    assert_eq!(draw(&live, "auto", &[]), is("bfloat16", false));
    live.draw("serial16", &["--dtype", "bfloat16"]).expect_success();
    assert!(live.0.tree("auto") == live.0.tree("serial16"));
    assert_eq!(draw(&live, "auto", &[]), is("bfloat16", true), "the same command finds its picture");
    assert_eq!(draw(&live, "auto", &["--dtype", "bfloat16"]), is("bfloat16", true));
    // Another device is another format, and so another picture.
    assert_eq!(draw(&live, "auto", &["--device", "cpu"]), is("float32", false));
    live.draw("serial32", &[]).expect_success();
    assert!(live.0.tree("auto") == live.0.tree("serial32"));
    assert_eq!(draw(&live, "auto", &["--dtype", "float32"]), is("float32", true));
}

#[test]
fn auto_is_float32_where_it_has_none() {
    let live = up(CPUS);
    assert_eq!(draw(&live, "auto", &[]).0, "float32");
    let asked = ["t2i", "--cluster", "small.toml", "--device", "cuda", "--prompt", "x"];
    let refused = live.0.run(&[&asked, &SMALL[1..]].concat());
    expect_exit(&refused, 4, &["the cluster has no ranks on GPUs", "hint: leave --device out"]);
}
