//! Pictures, what they record, and what is said about them.

use super::place::{Place, SMALL, expect_exit, json_lines, text};
use dg_testkit::{image_difference, model_dir, read_png_rgb};
use std::os::unix::fs::FileTypeExt;
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
    let rank = &report.ranks[0];
    assert!(rank.mapped_bytes > 20_000_000 && report.seconds.first_step.is_some());
    assert!(rank.rss_anon > 1 << 20 && rank.peak_rss > rank.rss_anon);
    // the program itself
    assert!(rank.rss_file > 1 << 20 && rank.peak_rss >= rank.rss_file);
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
fn a_full_disk_ends_the_run_and_the_next_one_goes_on() {
    let place = Place::new();
    place.write(
        "p.jsonl",
        "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"width\":512,\"height\":512}\n{\"prompt\":\"c\"}\n",
    );
    std::fs::create_dir(place.path("disk")).expect("a new folder");
    let script = "mount -t tmpfs -o size=64k none disk || exit 77\n\"$@\"\ncode=$?\nls -A disk >&2\n\
                  mount -o remount,size=8m disk || exit 77\n\"$@\" >&2 || exit 78\nls -A disk >&2\nexit $code";
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
    for part in ["No space left", "1 of 3 pictures are there", "hint: make room"] {
        assert_eq!(stderr.matches(part).count(), 1, "{part}: {stderr}");
    }
    let (first, second) = stderr.split_once("again\n000000.png\n").expect("no half file, no temporary file");
    assert!(first.contains("000001.png"), "{stderr}");
    assert!(second.contains("\"skipped\":true"), "{stderr}");
    assert!(second.ends_with("000000.png\n000001.png\n000002.png\n"), "{stderr}");
    let errors: Vec<bool> = stdout.lines().map(|line| line.contains("\"error\"")).collect();
    assert_eq!(errors, [false, true], "{stdout}");
}

fn unshare_refused(stderr: &[u8]) -> bool {
    String::from_utf8_lossy(stderr).starts_with("unshare: ")
}

#[test]
fn a_report_goes_into_a_fifo_and_a_device_and_behind_a_link() {
    let place = Place::new();
    let made = ["--prompt", "x", "--seed", "4", "--report"];
    let fifo = place.path("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(status.is_ok_and(|s| s.success()), "mkfifo works in a temporary folder");
    let reader = std::thread::spawn(move || std::fs::read(fifo).expect("a FIFO"));
    place.small(&[&made[..], &["fifo"]].concat()).expect_success();
    let read: dg_core::report::Report =
        serde_json::from_slice(&reader.join().expect("no panic")).expect("a report");
    assert_eq!(read.schema, 1);
    let kind =
        |name: &str| std::fs::symlink_metadata(place.path(name)).expect("it is still there").file_type();
    assert!(kind("fifo").is_fifo());
    std::os::unix::fs::symlink("real.json", place.path("link.json")).expect("a new link");
    place.small(&[&made[..], &["link.json"]].concat()).expect_success();
    assert!(kind("link.json").is_symlink() && kind("real.json").is_file());
    // what was printed before stays
    let command = "\"$@\" > out.txt";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command, "sh", text(dg_testkit::diffgentor_bin())]).args(SMALL).args(made);
    shell.arg("/dev/stdout").current_dir(place.path(".")).env("XDG_CACHE_HOME", place.path(".cache"));
    assert!(shell.status().is_ok_and(|s| s.success()));
    let out = String::from_utf8(place.read("out.txt")).expect("text");
    assert!(out.starts_with("output/000000.png\n{") && out.ends_with("}\n"), "{out}");
    let null = std::process::Command::new("mknod").arg(place.path("null")).args(["c", "1", "3"]).status();
    if !null.is_ok_and(|s| s.success()) {
        println!("SKIPPED: a device cannot be made here");
        return;
    }
    let output = place.small(&[&made[..], &["null"]].concat());
    assert!(kind("null").is_char_device());
    match std::fs::OpenOptions::new().write(true).open(place.path("null")) {
        Ok(_) => expect_exit(&output, 0, &[]),
        Err(_) => println!("SKIPPED: this file system has no devices"),
    }
}

#[test]
fn what_cannot_work_is_refused_before_any_work() {
    let place = Place::new();
    let refused = place.small(&["--prompt", "x", "--report", "none/r.json"]);
    expect_exit(&refused, 3, &["cannot write the report none/r.json", "hint: check --report"]);
    assert_eq!(refused.stderr.matches("cannot write the report").count(), 1, "{}", refused.stderr);
    assert!(place.names("output").is_empty(), "refused before the pictures are made");
    place.small(&["--prompt", "x", "--report", "output/r.json"]).expect_success();
    let huge = ["--height", "8192", "--width", "8192", "--batch_size", "64", "--num_images_per_prompt", "64"];
    let huge = [&["--prompt", "x", "--output_dir", "huge", "--report", "m.json"], &huge[..]].concat();
    expect_exit(&place.small(&huge), 4, &["not enough memory"]);
    assert!(!place.path("huge").exists() && place.path("m.json").exists());
}

#[test]
fn a_full_standard_output_is_an_error() {
    let place = Place::new();
    for args in [&["--prompt", "x"][..], &["--prompt", "x"], &["--prompt", "x", "--dry_run"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a Linux system");
        let args = [SMALL, args].concat();
        let child = place.command(&args).stdout(full).spawn().expect("the program was just built");
        let output = dg_testkit::program::finish(child, super::place::TIMEOUT);
        expect_exit(&output, 1, &["cannot write to standard output", "hint: "]);
    }
    assert_eq!(place.names("output").len(), 1, "the picture is made all the same");
}

#[test]
fn a_dry_run_tells_no_seed_that_will_not_be_used() {
    let place = Place::new();
    let seed = |args: &[&str]| {
        let args = [&["--prompt", "x", "--dry_run", "--json"], args].concat();
        json_lines(&place.small(&args).expect_success())[0]["files"][0]["seed"].clone()
    };
    assert!(seed(&[]).is_null());
    assert_eq!(seed(&["--seed", "5"]), 5);
    place.small(&["--prompt", "x", "--seed", "6"]).expect_success();
    assert_eq!(seed(&[]), 6, "the finished picture's");
}
