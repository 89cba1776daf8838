//! Many ranks: every layout of the documentation, refusals, reports and traces.

use super::place::{Place, SMALL, expect_exit, json_lines, text};
use dg_core::report::Report;
use dg_testkit::{image_difference, model_dir, read_png_rgb, workspace_dir};
use serde_json::Value;
use std::path::PathBuf;

fn report(place: &Place, name: &str) -> Report {
    serde_json::from_slice(&place.read(name)).expect("a report")
}

/// Runs the smallest picture of the built-in model in `folder`.
fn small(place: &Place, folder: &str, args: &[&str], env: &[(&str, &str)]) -> dg_testkit::Output {
    place.run_with(&[SMALL, &["--seed", "1", "--output_dir", folder], args].concat(), env)
}

#[test]
fn ulysses_draws_the_serial_picture_and_reports_every_rank() {
    let place = Place::new();
    let model = model_dir("tiny-dev");
    let args = ["--model_name", text(&model), "--prompt", "A landscape"];
    expect_exit(&small(&place, "serial", &args, &[]), 0, &[]);
    let many = [&args[..], &["--backend", "xdit", "--num_gpus", "4", "--report", "r.json"]].concat();
    let output = small(&place, "many", &many, &[("DG_XDIT_ULYSSES_DEGREE", "4")]);
    expect_exit(&output, 0, &["4 CPU ranks"]);
    assert!(place.tree("many") == place.tree("serial"), "the files are the same, what they record too");
    let report = report(&place, "r.json");
    let (layout, ranks) = (report.layout, &report.ranks);
    assert_eq!((layout.ulysses, layout.ring, layout.pp, layout.cfg, layout.dp), (4, 1, 1, 1, 1));
    assert_eq!((layout.patches, layout.warmup, ranks.len()), (1, 0, 4));
    for (i, rank) in ranks.iter().enumerate() {
        assert_eq!((rank.rank, rank.coords), (i as u32, [0, 0, 0, 0, i as u32]));
        assert!(rank.compute_s > 0.0 && rank.wait_s > 0.0 && rank.mapped_bytes > 0, "{rank:?}");
        let sent = rank.sent.iter().filter(|(class, _)| *class != "control");
        let sent: Vec<_> = sent.map(|(class, sent)| (class.clone(), sent.bytes)).collect();
        assert_eq!(sent, rank.predicted.clone().into_iter().collect::<Vec<_>>(), "rank {i}");
        assert!(rank.sent["ulysses_qkv"].to.len() == 3, "{rank:?}");
    }
}

#[test]
fn branches_on_their_own_ranks_change_nothing() {
    let place = Place::new();
    let args = ["--prompt", "cat", "--negative_prompt", "blurry", "--true_cfg_scale", "4"];
    expect_exit(&small(&place, "serial", &args, &[]), 0, &[]);
    let cfg = ("DG_XDIT_USE_CFG_PARALLEL", "true");
    let two = [&args[..], &["--num_gpus", "2"]].concat();
    expect_exit(&small(&place, "two", &two, &[cfg]), 0, &[]);
    let four = [&args[..], &["--num_gpus", "4"]].concat();
    expect_exit(&small(&place, "four", &four, &[cfg, ("DG_XDIT_ULYSSES_DEGREE", "2")]), 0, &[]);
    let serial = place.tree("serial");
    assert!(place.tree("two") == serial && place.tree("four") == serial);
}

#[test]
fn replicas_share_the_prompts_and_keep_their_order() {
    let place = Place::new();
    let rows = "{\"prompt\":\"red apple\"}\n{\"prompt\":\"house\",\"name\":\"b\"}\n{\"prompt\":\"rocket\"}\n\
                {\"prompt\":\"car\",\"seed\":9}\n{\"prompt\":\"tree\"}\n";
    place.write("p.jsonl", rows);
    let args = ["--prompts_file", "p.jsonl", "--batch_size", "4", "--json"];
    let serial = json_lines(&small(&place, "serial", &args, &[]).expect_success());
    let many = [&args[..], &["--data_parallel_degree", "2", "--report", "r.json"]].concat();
    let many = json_lines(&small(&place, "many", &many, &[]).expect_success());
    assert!(place.tree("many") == place.tree("serial") && many.len() == 5);
    for (one, other) in serial.iter().zip(&many) {
        assert_eq!((&one["seed"], &one["pixels_blake3"]), (&other["seed"], &other["pixels_blake3"]));
        let file =
            |line: &Value| line["path"].as_str().map(|path| path.rsplit('/').next().map(str::to_owned));
        assert_eq!(file(one), file(other), "in the order of the prompts");
    }
    let report = report(&place, "r.json");
    assert_eq!((report.layout.dp, report.ranks.len(), report.images.len()), (2, 2, 5));
    assert!(report.ranks.iter().all(|rank| rank.compute_s > 0.0), "no replica was idle");
}

#[test]
fn a_stale_pipeline_is_recorded_and_made_again_on_one_rank() {
    let place = Place::new();
    let args = ["--prompt", "red apple", "--num_gpus", "4", "--true_cfg_scale", "1"];
    let steps = ["--num_inference_steps", "4"];
    let env = [("DG_XDIT_PIPEFUSION_DEGREE", "4")];
    let made = small(&place, "stale", &[&args[..], &steps, &["--report", "r.json"]].concat(), &env);
    expect_exit(&made, 0, &[]);
    let layout = report(&place, "r.json").layout;
    assert_eq!((layout.pp, layout.patches, layout.warmup), (4, 4, 1));
    let again = json_lines(
        &small(&place, "stale", &[&args[..], &steps, &["--json"]].concat(), &env).expect_success(),
    );
    assert_eq!(again[0]["skipped"], true, "the same patches and warm-up");
    let other = [&args[..], &steps, &["--warmup_steps", "2", "--dry_run", "--json"]].concat();
    let other = json_lines(&small(&place, "stale", &other, &env).expect_success());
    assert_eq!(other[0]["files"][0]["skipped"], false, "another warm-up is another picture");
    let one = place.run(&["t2i", "--from_image", "stale/000000.png", "--output_dir", "one"]);
    expect_exit(&one, 0, &[]);
    assert!(place.tree("one") == place.tree("stale"), "one rank, as many patches");
    let shown = place.run(&["config", "show", "--json", "--from_image", "stale/000000.png"]).expect_success();
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    for (name, value) in
        [("num_pipeline_patch", Value::from(4)), ("warmup_steps", 1.into()), ("pipeline", "stale".into())]
    {
        assert_eq!(
            (&shown[name]["value"], &shown[name]["origin"]),
            (&value, &"the picture".into()),
            "{name}"
        );
    }
}

#[test]
fn an_exact_picture_is_not_made_again_by_a_stale_pipeline() {
    let place = Place::new();
    let args = ["--prompt", "red apple", "--true_cfg_scale", "1"];
    expect_exit(&small(&place, "exact", &args, &[]), 0, &[]);
    let again = ["t2i", "--from_image", "exact/000000.png", "--output_dir", "again"];
    let stages = [("DG_XDIT_PIPEFUSION_DEGREE", "2")];
    expect_exit(&place.run_with(&again, &stages), 4, &["pipeline exact", "2 stages"]);
    expect_exit(&place.run_with(&again, &[("DG_XDIT_ULYSSES_DEGREE", "2")]), 0, &[]);
    assert!(place.tree("again") == place.tree("exact"));
}

#[test]
fn a_rank_holds_the_weights_that_were_planned() {
    let place = Place::new();
    let model = model_dir("tiny-dev");
    let stages = ["--pipefusion_degree", "3", "--ulysses_degree", "2", "--stage_balance"];
    for (folder, balance) in ["memory", "time", "1,2,3"].into_iter().enumerate() {
        let args = [&["--model_name", text(&model), "--prompt", "x"], &stages[..], &[balance]].concat();
        let planned = small(&place, "o", &[&args[..], &["--dry_run", "--json"]].concat(), &[]);
        let planned = json_lines(&planned.expect_success())[0]["plans"][0]["ranks"].clone();
        let folder = folder.to_string();
        expect_exit(&small(&place, &folder, &[&args[..], &["--report", "r.json"]].concat(), &[]), 0, &[]);
        for (plan, rank) in planned.as_array().expect("ranks").iter().zip(report(&place, "r.json").ranks) {
            let part = |name: &str| plan["memory"][name].as_u64().expect("bytes");
            let predicted = (part("transformer") + part("encoders") + part("decoder")) as f64;
            let off = predicted / rank.mapped_bytes as f64 - 1.0;
            assert!(off.abs() < 0.15, "{balance}, rank {}: {off:.2}", rank.rank);
        }
    }
    let bad = [&["--prompt", "x"], &stages[..], &["1,2"]].concat();
    expect_exit(&small(&place, "o", &bad, &[]), 4, &["blocks per stage [1, 2]"]);
    let bad = [&["--prompt", "x"], &stages[..], &["evenly"]].concat();
    expect_exit(&small(&place, "o", &bad, &[]), 2, &["stage_balance `evenly`", "14,14,14,15"]);
}

#[test]
fn a_trace_has_a_row_for_every_rank() {
    let place = Place::new();
    let args = ["--prompt", "red apple", "--num_gpus", "2", "--ulysses_degree", "2", "--trace", "t.json"];
    expect_exit(&small(&place, "o", &args, &[]), 0, &[]);
    let trace: Value = serde_json::from_slice(&place.read("t.json")).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let of = |ph: &str, tid: u64, name: &str| {
        let is = |e: &&Value| e["ph"] == ph && e["tid"] == tid && e["name"] == name;
        events.iter().filter(is).cloned().collect::<Vec<Value>>()
    };
    for rank in 0..2 {
        let named = &of("M", rank, "thread_name")[0]["args"]["name"];
        assert_eq!(*named, format!("rank {rank} [dp 0 cfg 0 pp 0 ring 0 ulysses {rank}]"));
        for kind in ["compute", "send", "wait"] {
            let found = of("X", rank, kind);
            assert!(!found.is_empty(), "no `{kind}` of rank {rank}");
            for e in &found {
                assert!(e["ts"].is_number() && e["dur"].as_f64().is_some_and(|d| d >= 0.0), "{e}");
            }
        }
        let send = of("X", rank, "send").into_iter().find(|e| e["args"]["class"] == "ulysses_qkv");
        let args = send.expect("heads are exchanged")["args"].clone();
        assert!(args["bytes"].as_u64().is_some_and(|n| n > 0) && args["peer"] == 1 - rank, "{args}");
        for field in ["step", "layer", "patch"] {
            assert!(args[field].is_u64(), "{field}: {args}");
        }
    }
    let refused = small(&place, "p", &["--prompt", "x", "--trace", "none/t.json"], &[]);
    expect_exit(&refused, 3, &["cannot write the trace none/t.json", "hint: check --trace"]);
    assert!(place.names("p").is_empty());
}

#[test]
fn degrees_that_cannot_run_end_with_4_before_the_model_is_looked_for() {
    let place = Place::new();
    let three = ("DG_XDIT_ULYSSES_DEGREE", "3");
    for model in ["demo", "./nowhere"] {
        let output =
            small(&place, "o", &["--prompt", "x", "--num_gpus", "4", "--model_name", model], &[three]);
        let said = ["need 3 ranks, num_gpus is 4", "3 × 1 × 1 × 1 × 1 = 3", "hint: ", "`ulysses 4`"];
        expect_exit(&output, 4, &said);
    }
    let cfg = ("DG_XDIT_USE_CFG_PARALLEL", "true");
    let one_branch = ["--prompt", "cat", "--num_gpus", "2", "--true_cfg_scale", "1"];
    let said = ["guidance-distilled", "true_cfg_scale above 1 and a negative_prompt", "`ulysses 2`"];
    expect_exit(&small(&place, "o", &one_branch, &[cfg]), 4, &said);
    let file = "{\"prompt\":\"a\",\"negative_prompt\":\"b\",\"true_cfg_scale\":2}\n\
                {\"prompt\":\"c\",\"true_cfg_scale\":1,\"width\":96}\n";
    place.write("p.jsonl", file);
    let mixed = ["--prompts_file", "p.jsonl", "--true_cfg_scale", "2"];
    expect_exit(
        &small(&place, "o", &mixed, &[cfg]),
        4,
        &["pictures of 96x64 in 2 steps", "guidance-distilled"],
    );
    for (flags, said) in [
        (&["--ulysses_degree", "9"][..], "8 attention heads"),
        (&["--pipefusion_degree", "9"], "the model has 8"),
        (
            &["--pipefusion_degree", "2", "--num_pipeline_patch", "17", "--pipeline", "stale"],
            "16 image tokens",
        ),
        (&["--pipefusion_degree", "4", "--pipeline", "exact"], "--pipeline stale"),
    ] {
        expect_exit(&small(&place, "o", &[&["--prompt", "x"], flags].concat(), &[]), 4, &[said, "hint: "]);
    }
    assert!(place.names("o").is_empty());
    for (name, value) in [("DG_XDIT_WARMUP_STEPS", "many"), ("DG_XDIT_USE_CFG_PARALLEL", "maybe")] {
        expect_exit(&small(&place, "o", &["--prompt", "x"], &[(name, value)]), 3, &[name, "hint: "]);
    }
}

#[test]
fn a_number_of_ranks_finds_a_layout_that_keeps_the_picture() {
    let place = Place::new();
    let args = ["--prompt", "x", "--num_gpus", "4", "--true_cfg_scale", "1"];
    let output = small(&place, "o", &[&args[..], &["--dry_run", "--json"]].concat(), &[]);
    expect_exit(&output, 0, &["4 ranks as `", "shortest predicted run"]);
    let plan = &json_lines(&output)[0]["plans"][0];
    assert_eq!((&plan["is_exact"], plan["ranks"].as_array().map(Vec::len)), (&true.into(), Some(4)));
    let page = small(&place, "o", &[&args[..], &["--dry_run"]].concat(), &[]).expect_success().stdout;
    for part in ["threads per rank", "ulysses_qkv", "chosen", "rank = ulysses"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!place.path("o").exists());
    // the product of the degrees is enough, and so is a file
    place.write("run.toml", "[parallel]\nulysses_degree = 2\nstage_balance = \"memory\"\n");
    let from_file = ["--prompt", "x", "--config", "run.toml", "--ring-degree", "2", "--dry_run", "--json"];
    let output = small(&place, "o", &from_file, &[("DG_XDIT_ULYSSES_DEGREE", "4")]);
    expect_exit(&output, 0, &["8 CPU ranks"]);
    let layout = &json_lines(&output)[0]["plans"][0]["layout"];
    assert_eq!((&layout["ulysses"], &layout["ring"]), (&4.into(), &2.into()));
    let cpu =
        small(&place, "o", &[&args[..], &["--dry_run", "--device", "cpu"]].concat(), &[]).expect_success();
    assert!(!cpu.stderr.contains("no GPU"), "{}", cpu.stderr);
}

#[test]
fn debugging_tells_who_owns_what_and_what_every_rank_did() {
    let place = Place::new();
    let args = ["--prompt", "x", "--ulysses_degree", "2"];
    let output = small(&place, "o", &args, &[("DG_DEBUG", "true")]);
    let said =
        ["rank = ulysses", "segment: image tokens", "job 0, rank 1: compute", "job 0, step 1, rank 0: "];
    expect_exit(&output, 0, &said);
}

/// Undoes the degrees of a file.
const ONE_RANK: [&str; 12] = [
    "--num_gpus",
    "1",
    "--ulysses_degree",
    "1",
    "--ring_degree",
    "1",
    "--pipefusion_degree",
    "1",
    "--data_parallel_degree",
    "1",
    "--use_cfg_parallel=false",
    "--no_resume",
];

fn configurations() -> Vec<(String, PathBuf)> {
    let folder = std::fs::read_dir(workspace_dir().join("configs")).expect("configs");
    let paths = folder.map(|entry| entry.expect("a readable folder").path());
    let named = paths.filter_map(|path| {
        let name = path.file_name()?.to_str()?.to_owned();
        let is_layout = name.starts_with(|c: char| c.is_ascii_digit()) && name.ends_with(".toml");
        is_layout.then_some((name, path))
    });
    let mut all: Vec<_> = named.collect();
    all.sort();
    all
}

#[test]
fn every_committed_layout_is_planned_and_runs() {
    let place = Place::new();
    let all = configurations();
    assert_eq!(all.len(), 7, "{all:?}");
    for (name, path) in all {
        let ranks: usize = name.split('-').next().and_then(|n| n.parse().ok()).expect("a number of ranks");
        let config = text(&path);
        let plan = place.run(&["plan", "--config", config, "-o", "json"]);
        expect_exit(&plan, 0, &[]);
        let plan: Value = serde_json::from_str(&plan.stdout).expect("JSON");
        assert_eq!(plan["ranks"].as_array().map(Vec::len), Some(ranks), "{name}");
        assert_eq!(plan["is_exact"].as_bool(), Some(!name.contains("pipefusion")), "{name}");
        if ranks > 8 {
            continue;
        }
        let args = ["--model_name", "demo", "--config", config, "--prompt", "red apple", "--batch_size", "2"];
        let more = ["--num_images_per_prompt", "2", "--report", "r.json"];
        expect_exit(&small(&place, &name, &[&args[..], &more].concat(), &[]), 0, &[]);
        assert_eq!(place.names(&name), ["000000_00.png", "000000_01.png"], "{name}");
        let layout = report(&place, "r.json").layout;
        assert_eq!(report(&place, "r.json").ranks.len(), ranks, "{name}");
        let (serial, one) = (format!("{name}-serial"), [&args[..], &ONE_RANK, &more[..2]].concat());
        expect_exit(&small(&place, &serial, &one, &[]), 0, &[]);
        for picture in place.names(&name) {
            let read = |folder: &str| read_png_rgb(&place.path(folder).join(&picture)).2;
            let difference = image_difference(&read(&name), &read(&serial));
            let allowed = if layout.ring > 1 { (1, 0.0005) } else { (0, 0.0) };
            let is_near = difference.max <= allowed.0 && difference.differing_fraction <= allowed.1;
            assert!(is_near, "{name}: {difference:?}");
        }
    }
}

#[test]
fn the_prompts_of_the_examples_run_on_eight_ranks() {
    let place = Place::new();
    let prompts = workspace_dir().join("configs/large_prompts.jsonl");
    let rows = std::fs::read_to_string(&prompts).expect("prompts").lines().count();
    assert!(rows >= 12);
    let env = [
        ("DG_XDIT_ULYSSES_DEGREE", "2"),
        ("DG_XDIT_RING_DEGREE", "2"),
        ("DG_XDIT_DATA_PARALLEL_DEGREE", "2"),
    ];
    let args = ["--num_gpus", "8", "--batch_size", "8", "--prompts_file", text(&prompts)];
    expect_exit(&small(&place, "o", &[&args[..], &["--backend", "xdit"]].concat(), &env), 0, &[]);
    assert_eq!(place.names("o").len(), rows);
}
