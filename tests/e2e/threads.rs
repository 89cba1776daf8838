//! `--threads` is the number of threads that compute, and there are no others.

use super::place::{Place, text};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// The threads of a process and their names; none when it has ended.
fn threads(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let named = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_string_lossy().into_owned(), name.trim_end().to_owned()))
    };
    tasks.filter_map(named).collect()
}

/// How many threads of each name a run had.
fn names(count: &str) -> BTreeMap<String, usize> {
    let place = Place::new();
    let model = dg_testkit::model_dir("tiny-dev");
    let size = ["--height", "256", "--width", "256", "--num_inference_steps", "4"];
    let args = ["t2i", "--model_name", text(&model), "--prompt", "x", "--seed", "1", "--threads", count];
    let mut child = place.command(&[&args[..], &size].concat()).spawn().expect("the program was just built");
    // by id: a thread takes its name a moment after it has begun, so the last one counts
    let mut seen = BTreeMap::new();
    while child.try_wait().expect("it is a child of this process").is_none() {
        for (id, name) in threads(child.id()) {
            let (last, looks) = seen.entry(id).or_insert((String::new(), 0));
            (*last, *looks) = (name, *looks + 1);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    dg_testkit::program::finish(child, Duration::from_secs(60)).expect_success();
    assert_eq!(place.names("output").len(), 1);
    let mut names = BTreeMap::new();
    for (name, _) in seen.into_values().filter(|(_, looks)| *looks > 3) {
        *names.entry(name).or_default() += 1;
    }
    names
}

/// A thread without a name of its own has that of the one that started it. So a pool of rayon's or
/// gemm's own would show as a second thread of a name.
#[test]
fn the_threads_are_ours_and_as_many_as_asked() {
    for threads in [1, 3] {
        let names = names(&threads.to_string());
        println!("{names:?}");
        let computing: Vec<&String> = names.keys().filter(|name| name.starts_with("dg-rank0-")).collect();
        let expected: Vec<String> = (0..threads).map(|i| format!("dg-rank0-{i}")).collect();
        assert_eq!(computing, expected.iter().collect::<Vec<_>>(), "{names:?}");
        for (name, count) in &names {
            let others = name.starts_with("tokio-") || matches!(name.as_str(), "diffgentor" | "dg-rank0");
            assert!(computing.contains(&name) || others, "{names:?}");
            assert!(*count == 1 || name.starts_with("tokio-"), "{names:?}");
        }
    }
}
