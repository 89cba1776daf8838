//! `diffgentor plan`: what many ranks would do, without any of them.

use crate::place::{Place, expect_exit};
use dg_testkit::workspace_dir;
use serde_json::Value;

const DEV: &[&str] = &["plan", "--model_name", "black-forest-labs/FLUX.1-dev"];

fn object(place: &Place, args: &[&str]) -> Value {
    let output = place.run(&[DEV, args, &["-o", "json"]].concat());
    expect_exit(&output, 0, &[]);
    serde_json::from_str(&output.stdout).expect("one JSON object")
}

#[test]
fn a_number_of_ranks_is_enough() {
    let place = Place::new();
    let output = place.run(&[DEV, &["--num_gpus", "16", "--links", "nvlink:8,eth100:2"]].concat());
    expect_exit(&output, 0, &[]);
    for said in ["16: ", "ulysses_qkv", "GiB", "chosen", "beyond 8 ranks"] {
        assert!(output.stdout.contains(said), "{said}: {}", output.stdout);
    }
    let plan = object(&place, &["--num_gpus", "16", "--links", "nvlink:8,eth100:2"]);
    let ranks = plan["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 16);
    assert_eq!((ranks[7]["node"].as_u64(), ranks[8]["node"].as_u64()), (Some(0), Some(1)));
    let tokens = |kind: &str| ranks.iter().map(|r| r[kind].as_u64().unwrap()).sum::<u64>();
    assert_eq!((tokens("text_tokens"), tokens("image_tokens")), (512, 4096));
    assert!(plan["candidates"].as_array().unwrap().len() > 10 && plan["scaling"]["stops_paying"] == 8);
}

#[test]
fn degrees_come_from_flags_environment_and_files() {
    let place = Place::new();
    let plan = object(&place, &["--ulysses-degree", "4"]);
    assert_eq!(plan["ranks"][3]["sent_per_step"]["ulysses_out"]["bytes"], 302_579_712);
    assert_eq!(plan["candidates"], Value::Null);
    place.write("run.toml", "[parallel]\npipefusion_degree = 2\nnum_gpus = 4\n");
    let args = [DEV, &["--config", "run.toml", "-o", "json"]].concat();
    let output = place.run_with(&args, &[("DG_XDIT_ULYSSES_DEGREE", "2")]);
    expect_exit(&output, 0, &[]);
    let plan: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&plan["layout"]["pp"], &plan["layout"]["ulysses"]), (&2.into(), &2.into()));
    assert_eq!(plan["passes"], "patches");
}

#[test]
fn what_cannot_run_ends_with_4_and_what_can() {
    let place = Place::new();
    for (args, said) in [
        (&["--ulysses_degree", "3", "--num_gpus", "4"][..], "3 × 1 × 1 × 1 × 1 = 3, num_gpus = 4"),
        (&["--ulysses_degree", "25"], "more than the model's 24 attention heads"),
        (&["--use_cfg_parallel", "--true_cfg_scale", "1"], "guidance-distilled"),
        (&["--pipefusion_degree", "58"], "the model has 57"),
        (&["--num_gpus", "2", "--rank_memory", "8"], "8.00 GiB are there"),
    ] {
        expect_exit(&place.run(&[DEV, args].concat()), 4, &[said, "hint: "]);
    }
    let fitting = ["--num_gpus", "4", "--rank_memory", "16", "--pipeline", "stale"];
    expect_exit(&place.run(&[DEV, &fitting[..]].concat()), 0, &[]);
    expect_exit(&place.run(&[DEV, &["--links", "wire:3"]].concat()), 2, &["`wire` is no kind", "hint: "]);
}

#[test]
fn a_folder_needs_its_configs_only() {
    let place = Place::new();
    let from = workspace_dir().join("tests/data/tiny-dev");
    for file in [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "scheduler/scheduler_config.json",
    ] {
        let to = place.path("model").join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from.join(file), to).unwrap();
    }
    let args = ["plan", "--model_name", "./model", "--rank_device", "cpu", "--num_gpus", "4", "-o", "json"];
    let output = place.run(&args);
    expect_exit(&output, 0, &[]);
    let plan: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (plan["model"]["dtype"].as_str(), plan["ranks"].as_array().unwrap().len()),
        (Some("float32"), 4)
    );
    expect_exit(&place.run(&["plan", "--model_name", "demo", "--rank_device", "cpu"]), 0, &[]);
}
