//! The command line and what it answers.

use super::place::{Place, expect_exit};
use dg_config::{Key, Kind, SETTINGS};

#[test]
fn the_version_has_build_facts() {
    let place = Place::new();
    let long = place.run(&["--version"]).expect_success().stdout;
    for part in ["diffgentor ", "target: ", "features: ", "cpu kernels: "] {
        assert!(long.contains(part), "{long}");
    }
    assert_eq!(place.run(&["-V"]).expect_success().stdout.lines().count(), 1);
}

#[test]
fn wrong_command_lines_end_with_2() {
    let place = Place::new();
    for (args, said) in [
        (&["t2i"][..], "no prompt"),
        (&["t2i", "--prompt", "x", "--width", "0"], "expected a whole number from 16 to 8192"),
        (&["t2i", "--prompt", "x", "--heigth", "64"], "a similar argument exists: '--height'"),
        (&["t2i", "--prompt", "x", "--guidance_scale", "NaN"], "expected a number from 0 to 100"),
        (&["t2i", "--prompt", "x", "--num_inference_steps", "0"], "from 1 to 1000"),
        (&["t2i", "--prompt", "x", "--dtype", "float8"], "float32"),
        (&["t2i", "--prompt", "x", "--prompts_file", "p.txt"], "exclude each other"),
        (&["t2i", "--prompt", "x", "--torch-compile"], "`--torch_compile` has no meaning here"),
        (&["t2i", "--prompt", "x", "--node_rank=1"], "hint: "),
        (&["t2i", "--prompt", "x", "--heigth", "64"], "\n\nhint: did you mean --height?"),
        (&["t2i", "red apple"], "hint: did you mean --prompt \"red apple\""),
        (&["t2i", "--prompt", "--seed", "1"], "`--seed` is a flag"),
        (&["doctor", "--jsn"], "\n\nhint: "),
        (&["paint"], "unrecognized subcommand"),
        (&[], "Usage"),
    ] {
        expect_exit(&place.run(args), 2, &[said]);
    }
    assert!(place.names("output").is_empty());
}

#[test]
fn what_this_machine_has_not_ends_with_4() {
    let place = Place::new();
    expect_exit(&place.small(&["--prompt", "x", "--device", "cuda"]), 4, &["no CUDA", "hint: "]);
    let serial = ["--prompt", "x", "--backend", "serial", "--ring_degree", "2"];
    expect_exit(&place.small(&serial), 4, &["backend serial", "ring_degree = 2", "hint: "]);
    let huge = ["--height", "8192", "--width", "8192", "--batch_size", "64", "--num_images_per_prompt", "64"];
    let huge = place.run(&[&["t2i", "--prompt", "x"], &huge[..]].concat());
    expect_exit(&huge, 4, &["not enough memory", "GiB needed", "free", "--force"]);
}

#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let place = Place::new();
    for args in [["--prompt", "-5 degrees"], ["-p", "--no-smoking sign"]] {
        let output = place.small(&[&args[..], &["--negative-prompt", "-1", "--dry_run"]].concat());
        expect_exit(&output, 0, &[]);
    }
}

#[test]
fn a_model_that_is_not_there_ends_with_3_and_one_error() {
    let place = Place::new();
    for (name, hint) in [
        ("nowhere/none", "--local_files_only"),
        ("./none", "check the path"),
        ("FLUX.1-schnel", "did you mean `FLUX.1-schnell`"),
        ("none", "a folder"),
    ] {
        let output = place.run(&["t2i", "--model_name", name, "--local_files_only", "--prompt", "x"]);
        expect_exit(&output, 3, &["error: ", "\n\nhint: ", hint]);
        assert_eq!(output.stderr.matches("error: ").count(), 1, "{}", output.stderr);
        assert_eq!(output.stdout, "");
    }
}

#[test]
fn an_unreachable_hub_ends_with_5() {
    let place = Place::new();
    let endpoint = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", "hf")];
    let output = place.run_with(&["t2i", "--model_name", "a/b", "--prompt", "x"], &endpoint);
    expect_exit(&output, 5, &["error: ", "\n\nhint: "]);
}

#[test]
fn hyphens_and_underscores_are_the_same() {
    let place = Place::new();
    let flags =
        ["--height=64", "--width=64", "--num-inference-steps=1", "--true-cfg-scale=1", "--batch-size=2"];
    let made = place.run(&[&["t2i", "--prompt", "x", "--seed", "1", "--output-dir=a"], &flags[..]].concat());
    expect_exit(&made, 0, &[]);
    let flags: Vec<String> = flags.iter().map(|f| format!("--{}", f[2..].replace('-', "_"))).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    place
        .run(&[&["t2i", "--prompt", "x", "--seed", "1", "--output_dir=b"], &flags[..]].concat())
        .expect_success();
    assert_eq!(place.tree("a"), place.tree("b"));
    // every other flag: both spellings reach the settings
    for s in SETTINGS.iter().filter(|s| s.flag && s.name.contains('_')) {
        let value = match s.kind {
            Kind::Switch => "true",
            _ if s.key == Key::FromImage => "a/000000.png",
            _ if s.default.is_empty() => "7",
            _ => s.default,
        };
        let flag = format!("--{}={value}", s.name.replace('_', "-"));
        let shown = place.run(&["config", "show", "--json", &flag]).expect_success();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("JSON");
        assert_eq!(shown[s.name]["origin"], "flag", "{flag}");
    }
}

#[test]
fn side_commands_work() {
    let place = Place::new();
    for (args, said) in [
        (&["completions", "bash"][..], "--num_images_per_prompt"),
        (&["completions", "zsh"], "num_images_per_prompt"),
        (&["man"], ".TH diffgentor"),
        (&["man", "--format", "markdown"], "# The command line"),
        (&["models"], "demo  built in"),
        (&["models", "verify"], "demo"),
        (&["t2i", "--help"], "Exit codes:"),
    ] {
        let output = place.run(args).expect_success();
        assert!(output.stdout.contains(said), "{args:?}: {}", output.stdout);
    }
    let written = place.run(&["man", "--dir", "pages"]).expect_success();
    assert!(written.stdout.contains("diffgentor-t2i.1") && place.path("pages/diffgentor.1").is_file());
}

#[test]
fn the_doctor_reports_in_words_and_in_json() {
    let place = Place::new();
    let plain = place.run_with(&["doctor"], &[("LC_ALL", "C")]).expect_success();
    assert!(plain.stdout.is_ascii() && plain.stdout.contains("demo model"), "{}", plain.stdout);
    let marked = place.run_with(&["doctor"], &[("LC_ALL", "C.UTF-8")]).expect_success();
    assert!(marked.stdout.contains('✓'), "{}", marked.stdout);
    let json = place.run(&["doctor", "--json"]).expect_success();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    let names: Vec<_> =
        json["checks"].as_array().expect("checks").iter().map(|c| c["name"].as_str()).collect();
    let expect = ["cpu", "threads", "memory", "disk", "demo model", "hub", "gpu"].map(Some);
    assert_eq!(names, expect);
}
