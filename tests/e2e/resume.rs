//! Finished pictures are kept, and nothing else is taken for one.

use super::place::{Place, expect_exit, json_lines};
use std::time::{Duration, Instant};

const PROMPTS: &str = "red apple\nhouse\nrocket\ncar\ntree\n";

fn skipped(place: &Place, args: &[&str]) -> Vec<bool> {
    let lines = json_lines(&place.small(&[args, &["--json"]].concat()).expect_success());
    lines.iter().map(|line| line["skipped"].as_bool().expect("a switch")).collect()
}

#[test]
fn only_the_same_request_is_skipped() {
    let place = Place::new();
    let base = ["--prompt", "x", "--seed", "1"];
    assert_eq!(skipped(&place, &base), [false]);
    assert_eq!(skipped(&place, &base), [true]);
    for other in [
        &["--prompt", "y", "--seed", "1"][..],
        &["--prompt", "x", "--seed", "2"],
        &["--prompt", "x", "--seed", "1", "--true_cfg_scale", "3"],
        &["--prompt", "x", "--seed", "1", "--dtype", "bfloat16"],
        &["--prompt", "x", "--seed", "1", "--width", "96"],
        &["--prompt", "x", "--seed", "1", "--no_resume"],
    ] {
        assert_eq!(skipped(&place, other), [false], "{other:?}");
        assert_eq!(skipped(&place, &[&base[..], &["--no_resume=true"]].concat()), [false]);
    }
    // without a seed any seed will do, and the recorded one is told
    let any = json_lines(&place.small(&["--prompt", "x", "--json"]).expect_success());
    assert_eq!((&any[0]["skipped"], &any[0]["seed"]), (&true.into(), &1.into()));
    // without metadata the right size is enough
    assert_eq!(skipped(&place, &["--prompt", "z", "--no_metadata"]), [true]);
    assert_eq!(skipped(&place, &["--prompt", "z", "--no_metadata", "--width", "32"]), [false]);
}

#[test]
fn damaged_pictures_are_made_again() {
    let place = Place::new();
    let args = ["--prompt", "x", "--seed", "1"];
    place.small(&args).expect_success();
    let whole = place.read("output/000000.png");
    let middle = whole.len() * 3 / 4;
    let mut flipped = whole.clone();
    flipped[middle] ^= 1;
    for damaged in [&whole[..middle], &flipped[..], b"", b"no picture"] {
        place.write("output/000000.png", damaged);
        assert_eq!(skipped(&place, &args), [false], "{} bytes", damaged.len());
        assert!(place.read("output/000000.png") == whole);
    }
}

#[test]
fn damaged_lossy_pictures_are_made_again() {
    for (format, file) in [("jpeg", "output/000000.jpg"), ("webp", "output/000000.webp")] {
        let place = Place::new();
        let args = ["--prompt", "x", "--seed", "1", "--output_format", format, "--json"];
        let lines = |args: &[&str]| json_lines(&place.small(args).expect_success());
        let first = lines(&args);
        let kept = lines(&args);
        assert_eq!((&first[0]["skipped"], &kept[0]["skipped"]), (&false.into(), &true.into()), "{format}");
        assert_eq!(first[0]["pixels_blake3"], kept[0]["pixels_blake3"], "{format}");
        let plain = lines(&[&args[..], &["--no_metadata", "--no_resume", "--output_dir", "plain"]].concat());
        assert_eq!(first[0]["pixels_blake3"], plain[0]["pixels_blake3"], "{format}");
        let whole = place.read(file);
        // a JPEG has its pictures at the end, a WebP its record
        let middle = if format == "jpeg" { whole.len() - whole.len() / 8 } else { whole.len() / 3 };
        for bit in [0, 3, 6] {
            let mut flipped = whole.clone();
            flipped[middle] ^= 1 << bit;
            place.write(file, &flipped);
            assert_eq!(lines(&args)[0]["skipped"], false, "{format} bit {bit} of byte {middle}");
            assert!(place.read(file) == whole);
        }
    }
}

#[test]
fn pictures_of_another_request_are_replaced_with_a_warning() {
    let place = Place::new();
    let two = ["--seed", "1", "--num_images_per_prompt", "2"];
    let run = |prompt: &str| place.small(&[&["--prompt", prompt], &two[..]].concat()).expect_success().stderr;
    assert!(!run("x").contains("replaced"));
    assert!(!run("x").contains("replaced"), "the same request");
    let said = run("y");
    let warning = "2 pictures of another request will be replaced, `000000_00.png` for one";
    assert_eq!(said.matches(warning).count(), 1, "{said}");
    assert!(!run("y").contains("replaced"));
}

#[test]
fn foreign_pictures_are_not_replaced() {
    let place = Place::new();
    let args = ["--prompt", "x", "--seed", "1"];
    let with = |more: &[&str]| place.small(&[&args[..], more].concat());
    with(&["--no_metadata", "--output_dir", "other"]).expect_success();
    let plain = place.read("other/000000.png");
    let folder = || std::fs::create_dir_all(place.path("output")).expect("a writable folder");
    folder();
    // a picture without record, one of a kind that is never made here, and another format
    let rgba = image::RgbaImage::from_pixel(64, 64, image::Rgba([1, 2, 3, 4]));
    rgba.save(place.path("rgba.png")).expect("a writable folder");
    for foreign in [plain, place.read("rgba.png"), b"GIF89a".to_vec()] {
        place.write("output/000000.png", &foreign);
        for more in [&[][..], &["--dry_run"]] {
            let said = ["output/000000.png", "hint: ", "--output_dir", "--no_resume", "--force"];
            expect_exit(&with(more), 3, &said);
            assert!(place.read("output/000000.png") == foreign);
        }
        for more in ["--no_resume", "--force"] {
            place.write("output/000000.png", &foreign);
            with(&[more]).expect_success();
            assert!(place.read("output/000000.png") != foreign, "{more}");
        }
    }
    // a record too long for its format is not missed
    let long = "猫".repeat(12_000);
    let long = ["--prompt", &long, "--seed", "1", "--output_format", "webp"];
    for _ in 0..2 {
        place.small(&long).expect_success();
    }
}

#[test]
fn a_killed_run_is_continued_to_the_same_tree() {
    let place = Place::new();
    place.write("p.txt", "red apple\nhouse\nrocket\n");
    let args = |folder: &str| {
        let words = ["t2i", "--height=64", "--width=64", "--num_inference_steps=2", "--prompts_file=p.txt"];
        let more = ["--seed=5", "--batch_size=2", "--num_images_per_prompt=2", "--quiet"];
        let folder = format!("--output_dir={folder}");
        words.iter().chain(&more).map(ToString::to_string).chain([folder]).collect::<Vec<String>>()
    };
    let run = |folder: &str| {
        let args = args(folder);
        place.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).expect_success();
    };
    dg_testkit::diffgentor_bin();
    let start = Instant::now();
    run("clean");
    let whole = start.elapsed();
    let clean = place.tree("clean");
    assert_eq!(clean.len(), 6);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut some = 0;
    for trial in 0..TRIALS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = whole.mul_f64((random >> 40) as f64 / (1u64 << 24) as f64);
        let folder = format!("killed{trial}");
        let args = args(&folder);
        let mut child =
            place.command(&args.iter().map(String::as_str).collect::<Vec<_>>()).spawn().expect("just built");
        std::thread::sleep(moment);
        child.kill().expect("a child of this process");
        child.wait().expect("a child of this process");
        let left = place.names(&folder);
        some += usize::from(left.iter().any(|n| n.ends_with(".png")) && left.len() < clean.len());
        run(&folder);
        assert!(place.tree(&folder) == clean, "killed after {moment:?}, which left {left:?}");
    }
    println!("{some} of {TRIALS} kills came between the first and the last picture");
}

#[test]
fn stale_temporary_files_are_swept_and_nothing_else() {
    let place = Place::new();
    std::fs::create_dir(place.path("output")).expect("a new folder");
    for name in [".dg-1-0.tmp", ".dg-notes", "own.tmp"] {
        place.write(&format!("output/{name}"), "x");
    }
    place.small(&["--prompt", "x"]).expect_success();
    assert_eq!(place.names("output"), [".dg-notes", "000000.png", "own.tmp"]);
}

#[test]
fn two_runs_in_one_folder_do_not_disturb_each_other() {
    let place = Place::new();
    place.write("p.txt", PROMPTS);
    let args = [super::place::SMALL, &["--prompts_file", "p.txt", "--seed", "1", "--quiet"]].concat();
    let runs: Vec<_> = (0..2).map(|_| place.command(&args).spawn().expect("just built")).collect();
    for run in runs {
        expect_exit(&dg_testkit::program::finish(run, Duration::from_secs(300)), 0, &[]);
    }
    assert_eq!(place.names("output").len(), 5);
}

const TRIALS: usize = 20;
