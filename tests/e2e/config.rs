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
        ("DG_T2I_NO_RESUME", "two"),
        ("DG_LOG", "a=b=c"),
    ] {
        expect_exit(&place.run_with(&["t2i", "--prompt", "x"], &[(name, value)]), 3, &[name, "hint: "]);
    }
    let output = place.run_with(&["config", "show"], &[("DG_T2I_HEIGTH", "1")]);
    expect_exit(&output, 0, &["warning: ", "did you mean DG_T2I_HEIGHT?"]);
}

#[test]
fn every_committed_configuration_is_accepted() {
    let place = Place::new();
    let folder = dg_testkit::workspace_dir().join("configs");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).expect("configs") {
        let path = entry.expect("a readable folder").path();
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
