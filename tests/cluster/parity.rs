//! Pictures of a cluster are those of one process.

use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::proc;
use crate::rig::{Drawn, Rig, Setting, text};
use std::collections::BTreeSet;
use std::time::Duration;

const RING: &[&str] = &["--ring_degree", "2", "--ulysses_degree", "2"];
const STALE: &[&str] = &["--pipefusion_degree", "2", "--ulysses_degree", "2"];
const REPLICAS: &[&str] = &["--data_parallel_degree", "2", "--ulysses_degree", "2"];
const BRANCHES: &[&str] = &["--use_cfg_parallel", "--pipefusion_degree", "2"];

/// Draws it on the cluster, and compares with the same without it.
fn check(rig: &Rig, drawing: &Drawing, plain: &Drawing, ranks: usize) -> Drawn {
    let drawn = rig.draw(drawing);
    expect_same(&drawn.pictures, &plain.undisturbed(), &format!("{drawing:?}"));
    let report = drawn.report();
    let pids: BTreeSet<u32> = report.ranks.iter().map(|rank| rank.pid).collect();
    assert_eq!((report.ranks.len(), pids.len()), (ranks, ranks), "{drawing:?}");
    let mut sent = 0;
    for rank in &report.ranks {
        for (class, predicted) in &rank.predicted {
            let bytes = rank.sent.get(class).map_or(0, |sent| sent.bytes);
            assert_eq!(bytes, *predicted, "rank {} sent {class:?} in {drawing:?}", rank.rank);
            sent += bytes;
        }
        assert!(rank.sent.keys().all(|class| rank.predicted.contains_key(class)), "{:?}", rank.sent);
    }
    assert!(sent > 0, "{drawing:?} sent nothing");
    let nodes: BTreeSet<&str> = report.ranks.iter().map(|rank| rank.node.as_str()).collect();
    assert_eq!(nodes.len(), 2, "{drawing:?}");
    println!("{:?}: {:?}, {sent} bytes", drawing.args().skip(2).collect::<Vec<_>>(), drawn.took);
    drawn
}

#[test]
fn every_layout_draws_what_one_process_draws() {
    let rig = Setting::two_by_two().up();
    let pids = rig.ranks();
    let small = Drawing::small(6, 7);
    let exact = small.clone().degrees(ULYSSES_4);
    check(&rig, &exact, &exact.serial(), 4);
    for degrees in [RING, STALE] {
        // Rounded, or from keys of the step before: the same degrees as threads are the measure.
        let other = small.clone().degrees(degrees);
        check(&rig, &other, &other, 4);
    }
    let rows = ["red apple", "blue car", "a tree", "two cats", "old town"];
    let size = ["--height", "96", "--width", "128"];
    let rows = Drawing::of(&size).prompts(&rows).steps(4).seed(3).degrees(REPLICAS);
    let drawn = check(&rig, &rows, &rows.serial(), 4);
    assert_eq!(drawn.pictures.len(), 5);
    let guided = ["--true_cfg_scale", "2.5", "--negative_prompt", "blurry"];
    let guided = small.clone().with(&guided).degrees(BRANCHES);
    check(&rig, &guided, &guided, 4);
    // The same processes made all of it, and hold no socket of a group that is over.
    assert_eq!(rig.ranks(), pids);
    rig.idle(Duration::from_secs(5));
    let held: Vec<String> = pids.iter().flat_map(|pid| proc::plane_sockets(*pid)).collect();
    assert!(held.is_empty(), "{held:?}");
}

#[test]
fn a_model_of_a_folder_is_found_by_its_nodes() {
    let model = dg_testkit::model_dir("tiny-dev");
    let model = text(&model);
    let rig = Setting::two_by_two().more(&format!("[model]\nname = \"{model}\"\n")).up();
    let flags = ["--height", "64", "--width", "96", "--prompt", "red apple", "--model_name", model];
    let guided = ["--true_cfg_scale", "2", "--negative_prompt", "blurry"];
    let exact = Drawing::of(&flags).steps(3).seed(5).with(&guided);
    let exact = exact.degrees(&["--use_cfg_parallel", "--ulysses_degree", "2"]);
    check(&rig, &exact, &exact.serial(), 4);
    // Another model than that of the file is opened when it is asked for.
    let other = dg_testkit::model_dir("tiny-schnell");
    let flags = ["--height", "64", "--width", "64", "--prompt", "x", "--model_name", text(&other)];
    let other = Drawing::of(&flags).seed(1).degrees(&["--pipefusion_degree", "2", "--ring_degree", "2"]);
    check(&rig, &other, &other, 4);
}

#[test]
fn many_jobs_leave_nothing_in_their_ranks() {
    let rig = Setting::two_by_two().up();
    let small = Drawing::small(2, 1).degrees(ULYSSES_4);
    let count = |rig: &Rig| {
        let all = rig.ranks().into_iter().chain([rig.head(), rig.agent("left"), rig.agent("right")]);
        all.map(proc::open_files).collect::<Vec<_>>()
    };
    rig.draw(&small);
    rig.idle(Duration::from_secs(5));
    let before = count(&rig);
    for _ in 0..8 {
        rig.draw(&small);
    }
    rig.idle(Duration::from_secs(5));
    std::thread::sleep(Duration::from_millis(300));
    let after = count(&rig);
    // A client that has just left may still be there.
    assert!(before.iter().zip(&after).all(|(before, after)| *after <= before + 2), "{before:?} {after:?}");
}
