//! Settings and where they come from.

use super::place::{Place, SMALL, expect_exit};
use serde_json::Value;

fn shown(place: &Place, args: &[&str], env: &[(&str, &str)]) -> Value {
    let args = [&["config", "show", "--json"], args].concat();
    serde_json::from_str(&place.run_with(&args, env).expect_success().stdout).expect("JSON")
}

#[test]
fn every_origin_is_told() {
    let place = Place::new();
    place.write("run.toml", "[generate]\nheight = 64\nwidth = 64\nseed = 1\n");
    let env = [("DG_CONFIG", "run.toml"), ("DG_T2I_WIDTH", "96"), ("DG_T2I_SEED", "2")];
    let settings = shown(&place, &["--seed", "3"], &env);
    for (name, value, origin) in [
        ("batch_size", 1, "built in"),
        ("num_inference_steps", 12, "the model's generation_config.json"),
        ("height", 64, "run.toml:2"),
        ("width", 96, "DG_T2I_WIDTH"),
        ("seed", 3, "flag"),
    ] {
        assert_eq!(
            (&settings[name]["value"], &settings[name]["origin"]),
            (&value.into(), &origin.into()),
            "{name}"
        );
    }
    let text = place.run(&["config", "show"]).expect_success().stdout;
    assert!(text.contains("[generate]") && text.contains("# built in"), "{text}");
}

#[test]
fn mistakes_in_settings_end_with_3_and_say_where() {
    let place = Place::new();
    place.write("run.toml", "[generate]\nheigth = 64\n");
    let output = place.run(&["t2i", "--prompt", "x", "--config", "run.toml"]);
    expect_exit(
        &output,
        3,
        &["run.toml:2:1: unknown key `heigth`", "2 | heigth = 64", "did you mean `height`?"],
    );
    expect_exit(&place.run(&["t2i", "--prompt", "x", "--config", "no.toml"]), 3, &["no.toml", "hint: "]);
    for (name, value) in [
        ("DG_T2I_HEIGHT", "0"),
        ("DG_XDIT_RING_DEGREE", ""),
        ("DG_XDIT_STAGE_BALANCE", "speed"),
        ("DG_T2I_NO_RESUME", "two"),
        ("DG_LOG", "a=b=c"),
        ("DG_XDIT_TENSOR_PARALLEL_DEGREE", "2"),
    ] {
        expect_exit(&place.run_with(&["t2i", "--prompt", "x"], &[(name, value)]), 3, &[name, "hint: "]);
    }
    let output = place.run_with(&["config", "show"], &[("DG_T2I_HEIGTH", "1")]);
    expect_exit(&output, 0, &["warning: ", "did you mean DG_T2I_HEIGHT?"]);
}

#[test]
fn every_mistake_in_a_file_gets_a_hint() {
    let place = Place::new();
    for (text, hint) in [
        ("[generate\n", "hint: TOML has sections"),
        ("[generate]\nheight = \"64\"\n", "hint: write for instance `height = 1024`, without quotes"),
        ("[generate]\nsteps = 4\n", "hint: did you mean `num_inference_steps`?"),
        ("[model]\npaht = \"x\"\n", "hint: did you mean `path`?"),
    ] {
        place.write("bad.toml", text);
        expect_exit(&place.run(&["t2i", "--prompt", "x", "--config", "bad.toml"]), 3, &[hint]);
    }
    let args = ["t2i", "--log_format", "json", "--config", "bad.toml"];
    for output in [
        place.run(&args),
        place.run_with(&["t2i", "--config", "bad.toml"], &[("DG_T2I_LOG_FORMAT", "json")]),
        place.run(&["t2i", "--heigth", "1", "--log_format=json"]),
    ] {
        let error: Value = serde_json::from_str(output.stderr.trim()).expect("one line of JSON");
        assert!(error["hint"].is_string(), "{error}");
    }
}

#[test]
fn the_picture_and_the_machine_are_origins_too() {
    let place = Place::new();
    place.small(&["--prompt", "a cat", "--seed", "5"]).expect_success();
    let settings = shown(&place, &["--from_image", "output/000000.png", "--width", "96"], &[]);
    for (name, value, origin) in [
        ("prompt", Value::from("a cat"), "the picture"),
        ("seed", 5.into(), "the picture"),
        ("height", 64.into(), "the picture"),
        ("width", 96.into(), "flag"),
    ] {
        assert_eq!((&settings[name]["value"], &settings[name]["origin"]), (&value, &origin.into()), "{name}");
    }
    assert!(settings["threads"]["value"].as_u64().is_some_and(|n| n > 0), "{}", settings["threads"]);
    let text = place.run(&["config", "show"]).expect_success().stdout;
    assert!(text.contains("\nname = \"demo\"") && text.contains("# threads = "), "{text}");
    let none = place.run(&["config", "show", "--from_image", "none.png"]);
    expect_exit(&none, 3, &["none.png", "hint: "]);
}

#[test]
fn the_environment_of_others_hides_no_warning() {
    let place = Place::new();
    let args = ["t2i", "--prompt", "x", "--width", "100", "--dry_run"];
    let warned = |args: &[&str], env: &[(&str, &str)]| {
        place.run_with(args, env).expect_success().stderr.contains("rounded down")
    };
    assert!(warned(&args, &[("RUST_LOG", "other=error")]) && warned(&args, &[("RUST_LOG", "off")]));
    assert!(!warned(&args, &[("DG_LOG", "error")]));
    assert!(!warned(&[&args[..], &["--quiet"]].concat(), &[("RUST_LOG", "trace")]));
    assert!(warned(&[&args[..], &["-v"]].concat(), &[("DG_LOG", "error")]));
}

#[test]
fn every_committed_configuration_is_accepted() {
    let place = Place::new();
    let folder = dg_testkit::workspace_dir().join("configs");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).expect("configs") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        shown(&place, &["--local_files_only", "--config", path.to_str().expect("a plain name")], &[]);
        read += 1;
    }
    assert!(read > 0);
}

#[test]
fn messages_follow_their_settings() {
    let place = Place::new();
    let args = |more: &[&'static str]| [SMALL, &["--prompt", "x", "--no_resume"], more].concat();
    let lines = place.run(&args(&[]));
    expect_exit(&lines, 0, &["drawn at random", "loading demo", "2/2 steps"]);
    assert_eq!(place.run(&args(&["--quiet"])).stderr, "");
    let silent = place.run_with(&args(&["--seed", "1"]), &[("DG_NO_PROGRESS", "1")]);
    assert_eq!(silent.stderr, "");
    let odd = place.run(&args(&["--width", "100", "--log_format", "json"]));
    for line in odd.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    assert!(odd.stderr.contains("rounded down to 96x64"), "{}", odd.stderr);
    let error = place.run(&["t2i", "--model_name", "./none", "--prompt", "x", "--log_format", "json"]);
    let error: Value = serde_json::from_str(error.stderr.trim()).expect("one line of JSON");
    assert!(error["hint"].is_string(), "{error}");
}
