//! Pictures, what they record, and what is said about them.

use super::place::{Place, SMALL, expect_exit, json_lines, text};
use dg_testkit::{image_difference, model_dir, read_png_rgb};
use std::process::Stdio;

#[test]
fn the_first_command_draws_a_red_apple() {
    let place = Place::new();
    let args = ["t2i", "--prompt", "red apple", "--seed", "0", "--num_inference_steps", "20"];
    let output = place.run(&args).expect_success();
    assert_eq!(output.stdout, "output/000000.png\n");
    let (_, _, golden) = read_png_rgb(&dg_testkit::data_dir().join("demo/red-apple.png"));
    let difference = image_difference(&read_png_rgb(&place.path("output/000000.png")).2, &golden);
    assert!(difference.max <= 1, "{difference:?}");
}

#[test]
fn a_folder_draws_what_diffusers_draws() {
    let place = Place::new();
    let model = model_dir("tiny-dev");
    let prompt = "a photo of a red fox in fresh snow, golden hour, 85mm";
    let size = ["--height", "256", "--width", "256", "--num_inference_steps", "2", "--seed", "42"];
    let args =
        [&["t2i", "--model_name", text(&model), "--prompt", prompt, "--output_dir", "o"], &size[..]].concat();
    place.run(&args).expect_success();
    let (_, _, golden) = read_png_rgb(&dg_testkit::data_dir().join("golden/dev_256.png"));
    let difference = image_difference(&read_png_rgb(&place.path("o/000000.png")).2, &golden);
    assert!(difference.max <= 1 && difference.differing_fraction <= 0.0005, "{difference:?}");
    // made again from what it records, without its folder being named
    let again = place.run(&["t2i", "--from_image", "o/000000.png", "--output_dir", "o2"]);
    expect_exit(&again, 0, &[]);
    assert_eq!(place.tree("o"), place.tree("o2"));
}

#[test]
fn every_format_can_be_made_again() {
    let place = Place::new();
    let prompt = "café 猫 \"red\"\\ apple";
    for (format, file) in [("png", "000000.png"), ("jpeg", "000000.jpg"), ("webp", "000000.webp")] {
        let made = ["--prompt", prompt, "--output_format", format, "--output_dir", format];
        place
            .small(&[&made[..], &["--negative_prompt", "grey", "--true_cfg_scale", "1.5"]].concat())
            .expect_success();
        let source = format!("{format}/{file}");
        let again = ["t2i", "--from-image", &source, "--output_format", format, "--output_dir", "again"];
        place.run(&again).expect_success();
        assert_eq!(place.read(&source), place.read(&format!("again/{file}")), "{format}");
    }
    let changed =
        ["t2i", "--from_image", "png/000000.png", "--seed", "5", "--output_dir", "changed", "--json"];
    assert_eq!(json_lines(&place.run(&changed).expect_success())[0]["seed"], 5);
    assert_ne!(place.read("png/000000.png"), place.read("changed/000000.png"));
}

#[test]
fn pictures_that_cannot_be_made_again_end_with_3() {
    let place = Place::new();
    place.small(&["--prompt", "x", "--no_metadata"]).expect_success();
    place.write("broken.png", &place.read("output/000000.png")[..500]);
    place.write("text.png", "no picture");
    for (file, said) in [
        ("output/000000.png", "does not record"),
        ("broken.png", "broken.png"),
        ("text.png", "not a png"),
        ("none.png", "No such file"),
    ] {
        expect_exit(&place.run(&["t2i", "--from_image", file]), 3, &[said, "hint: "]);
    }
}

#[test]
fn another_model_than_the_recorded_one_is_noticed() {
    let place = Place::new();
    let model = model_dir("tiny-dev");
    let named = ["--model_name", text(&model), "--output_dir", "o"];
    place.small(&[&["--prompt", "x", "--seed", "1"], &named[..]].concat()).expect_success();
    std::fs::remove_dir_all(place.path(".cache")).expect("the folder was remembered there");
    let unknown = place.run(&["t2i", "--from_image", "o/000000.png"]);
    expect_exit(&unknown, 3, &["`tiny-dev`", "--model_name"]);
    let other = place.run(&["t2i", "--from_image", "o/000000.png", "--model_name", "demo"]);
    expect_exit(&other, 0, &["warning: ", "another model"]);
}

#[test]
fn batches_do_not_change_files() {
    let place = Place::new();
    let rows = "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"seed\":7}\n{\"prompt\":\"c\",\"width\":96}\n\
                {\"prompt\":\"d\"}\n{\"prompt\":\"e\",\"guidance_scale\":2}\n";
    place.write("p.jsonl", rows);
    let common = ["--prompts_file", "p.jsonl", "--num_images_per_prompt", "2", "--seed", "3"];
    let made = |size: &str| {
        let output = place.small(&[&common[..], &["--batch_size", size, "--output_dir", size]].concat());
        let output = output.expect_success();
        let paths: Vec<String> = output.stdout.lines().map(|l| l.replace(&format!("{size}/"), "")).collect();
        (paths, place.tree(size))
    };
    let one = made("1");
    let expect: Vec<String> =
        (0..5).flat_map(|i| (0..2).map(move |s| format!("{i:06}_{s:02}.png"))).collect();
    assert_eq!(one.0, expect, "in the order of the prompts");
    for size in ["3", "64"] {
        assert!(made(size) == one, "batch size {size}");
    }
}

#[test]
fn json_lines_have_their_fields() {
    let place = Place::new();
    let args = ["--prompt", "x", "--seed", "4", "--json", "--num_images_per_prompt", "2"];
    let first = json_lines(&place.small(&args).expect_success());
    let second = json_lines(&place.small(&args).expect_success());
    for (i, (made, kept)) in first.iter().zip(&second).enumerate() {
        let keys: Vec<&String> = made.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["path", "pixels_blake3", "seconds", "seed", "size", "skipped"]);
        assert_eq!(made["path"], format!("output/000000_0{i}.png"));
        assert_eq!((&made["seed"], &made["size"]), (&(4 + i).into(), &"64x64".into()));
        assert_eq!((&made["skipped"], &kept["skipped"]), (&false.into(), &true.into()));
        assert_eq!(made["pixels_blake3"], kept["pixels_blake3"], "the written pixels are the made ones");
        assert_eq!(made["pixels_blake3"].as_str().map(str::len), Some(64));
    }
}

#[test]
fn a_report_tells_the_whole_run() {
    let place = Place::new();
    place.small(&["--prompt", "x", "--seed", "4", "--report", "r.json"]).expect_success();
    let report: dg_core::report::Report = serde_json::from_slice(&place.read("r.json")).expect("a report");
    assert_eq!((report.schema, report.seconds.steps.len(), report.images.len()), (1, 2, 1));
    assert_eq!((report.model.id.as_str(), report.images[0].seed), ("demo", 4));
    assert_eq!(report.images[0].latents_blake3.len(), 64);
    assert!(report.ranks[0].mapped_bytes > 20_000_000 && report.seconds.first_step.is_some());
    place.small(&["--prompt", "x", "--seed", "4", "--report", "r.json"]).expect_success();
    let report: dg_core::report::Report = serde_json::from_slice(&place.read("r.json")).expect("a report");
    assert_eq!(report.events.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["skipped"]);
}

#[test]
fn a_dry_run_does_nothing() {
    let place = Place::new();
    let plan = place.small(&["--prompt", "x", "--dry_run"]).expect_success();
    for part in ["demo", "needed", "1 to make", "output/000000.png", "64x64"] {
        assert!(plan.stdout.contains(part), "{}", plan.stdout);
    }
    assert!(!place.path("output").exists());
    let json = json_lines(&place.small(&["--prompt", "x", "--dry_run", "--json"]).expect_success());
    assert_eq!(json[0]["files"][0]["skipped"], false);
    let huge = ["--height", "8192", "--width", "8192", "--batch_size", "64", "--num_images_per_prompt", "64"];
    let huge = place.small(&[&["--prompt", "x", "--dry_run"], &huge[..]].concat());
    expect_exit(&huge, 4, &["not enough memory"]);
    assert!(huge.stdout.contains("64 to make"), "{}", huge.stdout);
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let place = Place::new();
    let args = [SMALL, &["--prompt", "x", "--num_images_per_prompt", "3", "--seed", "1"]].concat();
    let mut child = place.command(&args).stdout(Stdio::piped()).spawn().expect("the program was just built");
    drop(child.stdout.take());
    let output = dg_testkit::program::finish(child, super::place::TIMEOUT);
    expect_exit(&output, 0, &[]);
    assert_eq!(place.names("output").len(), 3, "the pictures are made all the same");
}

#[test]
fn a_full_disk_fails_that_picture_only() {
    let place = Place::new();
    place.write(
        "p.jsonl",
        "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"width\":512,\"height\":512}\n{\"prompt\":\"c\"}\n",
    );
    std::fs::create_dir(place.path("disk")).expect("a new folder");
    let script =
        "mount -t tmpfs -o size=64k none disk || exit 77\n\"$@\"\ncode=$?\nls -A disk >&2\nexit $code";
    let program = text(dg_testkit::diffgentor_bin());
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["-rm", "sh", "-c", script, "sh", program]).args(SMALL);
    unshare.args(["--prompts_file", "p.jsonl", "--seed", "1", "--output_dir", "disk", "--json"]);
    unshare.current_dir(place.path(".")).env("NO_COLOR", "1").env("XDG_CACHE_HOME", place.path(".cache"));
    let output = match unshare.output() {
        Ok(output) if output.status.code() != Some(77) && !unshare_refused(&output.stderr) => output,
        other => {
            println!("SKIPPED: a small disk cannot be mounted here: {other:?}");
            return;
        }
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stdout}\n{stderr}");
    assert!(stderr.contains("No space left") && stderr.contains("1 of 3 pictures failed"), "{stderr}");
    assert!(stderr.ends_with("000000.png\n000002.png\n"), "no half file and no temporary file: {stderr}");
    let errors: Vec<bool> = stdout.lines().map(|line| line.contains("\"error\"")).collect();
    assert_eq!(errors, [false, true, false], "{stdout}");
}

fn unshare_refused(stderr: &[u8]) -> bool {
    String::from_utf8_lossy(stderr).starts_with("unshare: ")
}
