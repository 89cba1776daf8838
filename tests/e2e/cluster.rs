//! `dg-cluster`: files of clusters, checked and planned.

use crate::place::{Place, expect_exit};
use dg_testkit::workspace_dir;
use serde_json::Value;

const NODE: &str = "[[node]]\nname = \"a\"\nlocal = true\n";
const FAR: &str = "[[node]]\nname = \"b\"\naddress = \"10.0.0.2\"\n";

/// Files with one mistake: the text, where it is, what is said, and a part of the hint.
const BROKEN: &[(&str, &str, &str, &str)] = &[
    ("[cluster\n", "1:9", "unclosed table", "TOML has sections"),
    ("[clustr]\n", "1:2", "unknown section or key `clustr`", "did you mean `[cluster]`?"),
    ("[nodes]\n", "1:2", "unknown section or key `nodes`", "did you mean `[[node]]`?"),
    ("[node]\nname = \"a\"\n", "1:2", "`node` is a list of sections", "write `[[node]]`"),
    ("[[cluster]]\n", "1:3", "`cluster` is a section", "write `[cluster]`"),
    ("[cluster]\nlisten_addr = \"x\"\n", "2:1", "unknown key `listen_addr` in [cluster]", "docs/cluster.md"),
    ("[cluster]\nlisen = \"x\"\n", "2:1", "unknown key `lisen` in [cluster]", "did you mean `listen`?"),
    (
        "[cluster]\nhang_min = \"3s\"\n",
        "2:1",
        "unknown key `hang_min` in [cluster]",
        "belongs under `[failure]`",
    ),
    ("[cluster]\nname = \"A\"\n", "2:8", "name does not accept `\"A\"`", "write for instance"),
    ("[cluster]\nlisten = \"10.0.0.300:7443\"\n", "2:10", "listen does not accept", "10.0.0.7:7443"),
    ("[cluster]\nlisten = \"10.0.0.1:70000\"\n", "2:10", "listen does not accept", "10.0.0.7:7443"),
    ("[cluster]\nlisten = \"10.0.0.1\"\n", "2:10", "has no port", "\"10.0.0.1:7443\""),
    ("[cluster]\nkeep_alive = 250\n", "2:14", "expected a time from 10ms to 1min", "keep_alive = \"250ms\""),
    ("[cluster]\nidle_timeout = \"1.5s\"\n", "2:16", "idle_timeout does not accept `\"1.5s\"`", "3s"),
    ("[cluster]\nlease_ttl = \"5 sec\"\n", "2:13", "lease_ttl does not accept", "lease_ttl = \"5s\""),
    (
        "[cluster]\nlease_ttl = \"2s\"\n",
        "2:13",
        "lease_ttl 2s is not more than idle_timeout 3s",
        "raise lease_ttl",
    ),
    ("[cluster]\nstate_dir = \"${HOME}/dg\"\n", "2:13", "variables are not expanded", "docs/cluster.md"),
    ("[[node]]\nlocal = true\n", "1:1", "a node has no name", "add for instance"),
    ("[[node]]\nname = \"a\"\n", "2:8", "neither an address nor `local = true`", "add `address"),
    ("[[node]]\nname = \"head\"\nlocal = true\n", "2:8", "name `head` is the head's own", "another name"),
    ("[[node]]\nname = \"a\"\nlocal = true\nranks = 0\n", "4:9", "ranks does not accept `0`", "ranks = 2"),
    (
        "[[node]]\nname = \"a\"\nlocal = true\nranks = \"2\"\n",
        "4:9",
        "ranks does not accept `\"2\"`",
        "ranks = 2",
    ),
    ("[[node]]\nname = \"a\"\nlocal = \"yes\"\n", "3:9", "local does not accept", "local = true"),
    (
        "[[node]]\nname = \"a\"\nlocal = true\ndevice = \"gpu\"\n",
        "4:10",
        "expected one of cpu, cuda",
        "device = \"cpu\"",
    ),
    ("[[node]]\nname = \"a\"\nlocal = true\ngpus = [1, 1]\n", "4:8", "gpus has 1 twice", "gpus = [0, 1]"),
    (
        "[[node]]\nname = \"a\"\nlocal = true\ngpus = [0]\nranks = 2\n",
        "5:9",
        "2 ranks for 1 GPUs",
        "remove `ranks`",
    ),
    ("[[node]]\nname = \"a\"\nlocal = true\nmemory = \"80GB\"\n", "4:10", "memory does not accept", "24GiB"),
    (
        "[[node]]\nname = \"a\"\naddress = \"127.0.0.1\"\n",
        "3:11",
        "leads nowhere from another host",
        "local = true",
    ),
    (
        "[[node]]\nname = \"a\"\naddress = \"10.0.0.2\"\n",
        "1:1",
        "listen `127.0.0.1:7443` is no address",
        "10.0.0.1:7443",
    ),
    ("[[node]]\nname = \"a\"\nlocal = true\nssh = \"-oX=y\"\n", "4:7", "ssh does not accept", "user@gpu-1"),
    (
        "[[node]]\nname = \"a\"\nlocal = true\nmodel = \"x\"\n",
        "4:1",
        "unknown key `model`",
        "did you mean `model_path`?",
    ),
    ("[[node]]\nname = \"a\"\nlocal = true\nenv = { X = 1 }\n", "4:7", "`X` is no text", "env = {"),
    ("[failure]\nhang_factor = 0\n", "2:15", "hang_factor does not accept `0`", "hang_factor = 3"),
    (
        "[failure]\norphan_exit = \"1s\"\n",
        "2:15",
        "orphan_exit 1s is less than lease_ttl",
        "raise orphan_exit",
    ),
    ("[security]\ncertificate = \"c.pem\"\n", "2:15", "certificate is of no use without key", "add `key`"),
    ("[security]\ntls = true\n", "2:1", "unknown key `tls` in [security]", "docs/cluster.md"),
    ("[generate]\nheigth = 64\n", "2:1", "unknown key `heigth` in [generate]", "did you mean `height`?"),
];

#[test]
fn broken_files_are_refused_where_they_are_broken() {
    let place = Place::new();
    assert!(BROKEN.len() >= 25);
    for (text, at, said, hint) in BROKEN {
        place.write("bad.toml", text);
        for command in ["validate", "plan"] {
            let output = place.cluster(&[command, "bad.toml"], &[]);
            expect_exit(&output, 3, &[&format!("error: bad.toml:{at}: "), said, "^\n\nhint: ", hint]);
            assert_eq!((output.stdout.as_str(), output.stderr.matches("error: ").count()), ("", 1), "{text}");
        }
    }
}

#[test]
fn nodes_and_degrees_must_fit_together() {
    let place = Place::new();
    let listen = "[cluster]\nlisten = \"10.0.0.1:7443\"\n";
    let two = format!("{listen}{NODE}ranks = 2\n{FAR}ranks = 2\n");
    for (text, at, said, hint) in [
        (format!("{NODE}{NODE}"), "5:8", "two nodes are called `a`, the first in line 1", "name of its own"),
        (
            format!("{two}[parallel]\nulysses_degree = 2\n"),
            "12:1",
            "need 2 ranks, the nodes have 4",
            "`data_parallel_degree = 2`",
        ),
        (
            format!("{two}[parallel]\nulysses_degree = 3\n"),
            "12:1",
            "3 × 1 × 1 × 1 × 1 = 3, 2 + 2 = 4",
            "change the degrees",
        ),
        (
            format!("{two}[parallel]\nnum_gpus = 8\n"),
            "12:1",
            "num_gpus = 8, but the nodes have 4",
            "num_gpus = 4",
        ),
        (
            format!("{two}device = \"cuda\"\n[parallel]\nulysses_degree = 4\n"),
            "7:1",
            "replica 0 would have cpu ranks of node `a` and cuda ranks of node `b`",
            "a multiple of 4",
        ),
    ] {
        place.write("bad.toml", &text);
        let output = place.cluster(&["validate", "bad.toml"], &[]);
        expect_exit(&output, 3, &[&format!("bad.toml:{at}: "), said, "hint: ", hint]);
    }
    // flags and the environment may change degrees: then it is the plan that cannot run
    place.write("two.toml", format!("{two}[parallel]\nulysses_degree = 2\n"));
    expect_exit(&place.cluster(&["plan", "two.toml"], &[]), 4, &["num_gpus = 4", "nearest layouts"]);
    let env = [("DG_XDIT_DATA_PARALLEL_DEGREE", "2")];
    expect_exit(&place.cluster(&["plan", "two.toml"], &env), 0, &["1 replicas stay idle"]);
    expect_exit(
        &place.cluster(&["plan", "two.toml", "--num_gpus", "5"], &[]),
        4,
        &["num_gpus = 5 (flag)", "hint: "],
    );
    place.write("mixed.toml", format!("{two}device = \"cuda\"\n"));
    let mixed = ["plan", "mixed.toml", "--ulysses_degree", "4"];
    expect_exit(
        &place.cluster(&mixed, &[]),
        4,
        &["cpu ranks of node `a` and cuda ranks of node `b`", "hint: "],
    );
    let searched =
        place.cluster(&["plan", "mixed.toml", "--images", "4", "-o", "json"], &[]).expect_success();
    let searched: Value = serde_json::from_str(&searched.stdout).expect("one JSON object");
    assert!(searched["layout"]["dp"].as_u64().is_some_and(|dp| dp >= 2), "{searched}");
}

#[test]
fn every_committed_file_is_right_and_can_be_planned() {
    let place = Place::new();
    let mut read = 0;
    for entry in std::fs::read_dir(workspace_dir().join("configs")).expect("configs") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let path = path.to_str().expect("a plain name");
        let checked = place.cluster(&["validate", path], &[]).expect_success();
        assert!(checked.stdout.starts_with("OK  "), "{}", checked.stdout);
        assert!(checked.stdout.lines().count() <= 30, "more than a screen:\n{}", checked.stdout);
        let planned = place.cluster(&["plan", path, "-o", "json"], &[]).expect_success();
        let plan: Value = serde_json::from_str(&planned.stdout).expect("one JSON object");
        assert!(plan["ranks"].as_array().is_some_and(|ranks| !ranks.is_empty()), "{path}");
        place.cluster(&["plan", path], &[]).expect_success();
        read += 1;
    }
    assert!(read >= 17, "{read}");
}

#[test]
fn a_plan_tells_nodes_and_what_crosses_them() {
    let place = Place::new();
    let file = workspace_dir().join("configs/rig-8-gpu-2-nodes.toml");
    let file = file.to_str().expect("a plain name");
    let page = place.cluster(&["plan", file], &[]).expect_success().stdout;
    for said in [
        "rig: 2 nodes on 2 hosts",
        "8: ulysses 4 × cfg 2",
        "ulysses inside nodes, cfg between hosts",
        "nvlink:4,eth100",
        "cuda 0-3 h100",
        "gpu-2",
        "ulysses_qkv",
        "cfg_noise",
    ] {
        assert!(page.contains(said), "no `{said}` in\n{page}");
    }
    let json = |args: &[&str]| -> Value {
        let output = place.cluster(&[&["plan", file, "-o", "json"], args].concat(), &[]).expect_success();
        serde_json::from_str(&output.stdout).expect("one JSON object")
    };
    let plan = json(&[]);
    assert_eq!((&plan["schema"], &plan["cluster"]), (&1.into(), &"rig".into()));
    assert_eq!(plan["nodes"][1]["ranks"], serde_json::json!([4, 5, 6, 7]));
    assert_eq!((&plan["ranks"][3]["node"], &plan["ranks"][4]["node"]), (&"gpu-1".into(), &"gpu-2".into()));
    // 4096 image tokens of 64 channels in two bytes, from each branch to the other
    let noise = &plan["sent"]["cfg_noise"];
    assert_eq!((&noise["between_hosts"], &noise["inside_nodes"]), (&(2 * 4096 * 64 * 2).into(), &0.into()));
    assert_eq!(plan["sent"]["ulysses_qkv"]["between_hosts"], 0);
    let of_node = |i: usize| plan["nodes"][i]["sent"]["ulysses_qkv"]["inside_nodes"].as_u64().unwrap();
    assert_eq!(plan["sent"]["ulysses_qkv"]["inside_nodes"].as_u64(), Some(of_node(0) + of_node(1)));
    // hyphens, and fewer ranks: the first node is enough
    let half = json(&["--num-gpus", "4", "--use-cfg-parallel=false", "--model-name=FLUX.1-schnell"]);
    assert_eq!(
        (half["nodes"].as_array().map(Vec::len), &half["model"]["id"]),
        (Some(1), &"FLUX.1-schnell".into())
    );
}

#[test]
fn degrees_are_looked_for_where_none_are_given() {
    let place = Place::new();
    place.write("two.toml", format!("{NODE}ranks = 2\n{}ranks = 2\n", NODE.replace("\"a\"", "\"b\"")));
    let page = place.cluster(&["plan", "two.toml"], &[]).expect_success().stdout;
    assert!(
        page.contains("chosen     shortest predicted run") && page.contains("2 nodes on 1 host"),
        "{page}"
    );
    let valid = place.cluster(&["validate", "two.toml"], &[]).expect_success().stdout;
    assert!(valid.contains("looked for when a job is planned"), "{valid}");
    place.write("none.toml", "[model]\nname = \"demo\"\n");
    let one = place.cluster(&["plan", "none.toml"], &[]).expect_success().stdout;
    assert!(one.contains("1: serial") && one.contains("Nothing is sent"), "{one}");
    let four = place.cluster(&["plan", "none.toml", "--num_gpus", "4", "-o", "json"], &[]).expect_success();
    assert_eq!(four.stdout.matches("\"coords\"").count(), 4, "{}", four.stdout);
}

#[test]
fn the_same_file_serves_local_runs() {
    let place = Place::new();
    let file = workspace_dir().join("configs/laptop-two-nodes.toml");
    place.write("rig.toml", std::fs::read(file).expect("it is committed"));
    let run = ["t2i", "--config", "rig.toml", "--prompt", "x", "--seed", "1", "--num_inference_steps", "1"];
    expect_exit(&place.run(&run), 0, &[]);
    let shown = place.run(&["config", "show", "--config", "rig.toml"]).expect_success().stdout;
    assert!(shown.contains("ulysses_degree = 4") && shown.contains("rig.toml:"), "{shown}");
    place.write("bad.toml", "[[node]]\nnam = \"a\"\n");
    expect_exit(
        &place.run(&["t2i", "--config", "bad.toml", "--prompt", "x"]),
        3,
        &["bad.toml:2:1", "`name`"],
    );
}

#[test]
fn the_command_line_answers_as_the_other_one_does() {
    let place = Place::new();
    for (args, said) in [
        (&["validte", "x"][..], "did you mean validate?"),
        (&["validate"], "<FILE>"),
        (&["plan", "x.toml", "--heigth", "1"], "did you mean --height?"),
        (&["plan", "x.toml", "--width", "0"], "expected a whole number from 16 to 8192"),
        (&["up"], "<FILE>"),
        (&["up", "x.toml", "--wait"], "--detach"),
        (&["dwn"], "did you mean down?"),
        (&["agent", "--name", "a"], "--head <HOST:PORT>"),
    ] {
        expect_exit(&place.cluster(args, &[]), 2, &["error: ", said, "\n\nhint: "]);
    }
    expect_exit(&place.cluster(&["validate", "no.toml"], &[]), 3, &["no.toml", "hint: "]);
    place.write("x.toml", "[model]\nname = \"nowhere\"\n");
    expect_exit(&place.cluster(&["plan", "x.toml"], &[]), 3, &["model `nowhere`", "hint: "]);
    let env = [("DG_XDIT_RING_DEGREE", "two")];
    expect_exit(&place.cluster(&["plan", "x.toml"], &env), 3, &["DG_XDIT_RING_DEGREE", "hint: "]);
    for (args, said) in [
        (&["completions", "bash"][..], "--num_images_per_prompt"),
        (&["man"], ".TH dg-cluster"),
        (&["man", "--markdown"], "# The command line of dg-cluster"),
        (&["--help"], "Exit codes:"),
        (&["--version"], "dg-cluster "),
    ] {
        let output = place.cluster(args, &[]).expect_success();
        assert!(output.stdout.contains(said), "{args:?}: {}", output.stdout);
    }
}
