//! What the workspace promises about its own shape: layers, names, sizes, where `unsafe` may stand.
//!
//! `docs/architecture.md` gives the reasons; the tables at the end of this file are the rules.

#[path = "tidy/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use dg_testkit::workspace_dir;
use serde_json::Value;
use source::{functions, has_word, without_comments_and_strings};

/// Fails with all findings at once, each on a line of its own.
fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}\n", findings.join("\n  "));
}

#[test]
fn arrows_between_crates_point_down() {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut findings = Vec::new();
    for (name, dependencies) in workspace_crates() {
        if DEV_CRATES.contains(&name.as_str()) {
            continue;
        }
        let Some(floor) = floors.get(name.as_str()) else {
            findings.push(format!("{name} is on no floor"));
            continue;
        };
        for dependency in dependencies {
            let beside = BESIDE.contains(&(name.as_str(), dependency.as_str()));
            match floors.get(dependency.as_str()) {
                Some(below) if below < floor || (below == floor && beside) => {}
                Some(other) => {
                    findings.push(format!("{name} (floor {floor}) names {dependency} (floor {other})"));
                }
                None if DEV_CRATES.contains(&dependency.as_str()) => {
                    findings.push(format!("{name} ships {dependency}, which is for tests"));
                }
                None => {}
            }
        }
    }
    report("a crate may name only crates of lower floors", &findings);
}

#[test]
fn restricted_names_stay_in_their_crates() {
    let mut findings = Vec::new();
    for (name, dependencies) in workspace_crates() {
        if DEV_CRATES.contains(&name.as_str()) {
            continue;
        }
        for (family, allowed) in RESTRICTED {
            let member = |dependency: &&String| {
                let rest = dependency.strip_prefix(family);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
            };
            if let Some(dependency) = dependencies.iter().find(member)
                && !allowed.contains(&name.as_str())
            {
                findings.push(format!("{name} names {dependency}, which belongs to {allowed:?}"));
            }
        }
    }
    report("a restricted name is outside its crate", &findings);
}

#[test]
fn folders_are_called_as_their_crates() {
    let folders: BTreeSet<String> = std::fs::read_dir(workspace_dir().join("crates"))
        .expect("the workspace has crates")
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // It is called as the crate that it stands for.
        .filter(|folder| folder != "cubecl-llvm")
        .collect();
    let mut names: BTreeSet<String> = workspace_crates().into_keys().collect();
    assert!(names.remove("diffgentor-tests"), "the tests are a member");
    assert_eq!(folders, names);
}

#[test]
fn files_and_functions_fit_a_screen() {
    let mut findings = Vec::new();
    for (path, text) in rust_files() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{path}: {lines} lines, more than {FILE_LINES_MAX}"));
        }
        for function in functions(&without_comments_and_strings(&text)) {
            if function.lines > FUNCTION_LINES_MAX {
                let (name, line, lines) = (&function.name, function.first_line, function.lines);
                findings.push(format!(
                    "{path}:{line}: `{name}` has {lines} lines, more than {FUNCTION_LINES_MAX}"
                ));
            }
        }
    }
    report("too long", &findings);
}

#[test]
fn unsafe_code_stays_where_it_is_allowed() {
    let keyword = concat!("un", "safe");
    let outside =
        |path: &&(String, String)| !UNSAFE_ALLOWED.iter().any(|allowed| path.0.starts_with(allowed));
    let mut findings = Vec::new();
    for (path, text) in rust_files().iter().filter(outside) {
        for (number, line) in without_comments_and_strings(text).lines().enumerate() {
            if has_word(line, keyword) {
                findings.push(format!("{path}:{}", number + 1));
            }
        }
    }
    report("unsafe code outside the crates that may have it", &findings);
}

#[test]
fn nothing_is_left_unfinished() {
    let macros = [concat!("to", "do!"), concat!("unimpl", "emented!"), concat!("db", "g!")];
    // A test that another one starts in a process of its own is not switched off; it says which.
    let (switched_off, started) = (concat!("#[ign", "ore"), "= \"run by ");
    let marks = [concat!("FIX", "ME"), concat!("XX", "X")];
    let mut findings = Vec::new();
    for (path, text) in rust_files() {
        let code = without_comments_and_strings(&text);
        for (number, (line, raw)) in code.lines().zip(text.lines()).enumerate() {
            let compact: String = line.split_whitespace().collect();
            let unfinished = macros
                .iter()
                .any(|name| compact.contains(name) && has_word(line, name.trim_end_matches('!')))
                || (compact.contains(switched_off) && !raw.contains(started))
                || marks.iter().any(|mark| has_word(raw, mark));
            if unfinished {
                findings.push(format!("{path}:{}: {}", number + 1, raw.trim()));
            }
        }
    }
    report("unfinished", &findings);
}

#[test]
fn libraries_say_what_they_are() {
    let heads = |path: &str| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    let silent = |(path, text): (String, String)| (heads(&path) && !text.starts_with("//!")).then_some(path);
    let findings: Vec<_> = rust_files().into_iter().filter_map(silent).collect();
    report("a crate's first file begins with what the crate is", &findings);
}

#[test]
fn no_path_or_host_of_one_machine_is_named() {
    let folders = [concat!("/wo", "rk"), concat!("/fa", "rm"), concat!("/tmp/ba", "sh")];
    let hosts = [concat!("index.", "crates"), concat!("pypi.", "org/simple"), concat!("registry.", "npmjs")];
    let mut findings = Vec::new();
    for path in tracked_files() {
        let Some(text) = text_of(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let folder = folders.iter().any(|folder| names_folder(line, folder));
            if folder || hosts.iter().any(|host| line.contains(host)) {
                findings.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    report("a path or host that only one machine has", &findings);
}

/// Whether `line` has `folder` as the beginning of an absolute path.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + folder.len()..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric()) && matches!(after, Some('/' | '_'))
    })
}

#[test]
fn the_root_holds_what_it_should() {
    let root: BTreeSet<String> = tracked_files()
        .iter()
        .filter_map(|path| path.components().next())
        .map(|first| first.as_os_str().to_string_lossy().into_owned())
        .collect();
    let odd: Vec<_> =
        root.into_iter().filter(|name| !name.starts_with('.') && !ROOT.contains(&name.as_str())).collect();
    report("the root has names that belong elsewhere", &odd);
}

#[test]
fn the_documents_are_there() {
    let missing = |path: &&&str| {
        let content = std::fs::read_to_string(workspace_dir().join(path)).unwrap_or_default();
        content.trim().is_empty()
    };
    let findings: Vec<_> = DOCUMENTS.iter().filter(missing).map(|path| (*path).to_owned()).collect();
    report("a document is missing or empty", &findings);
}

#[test]
fn test_data_stays_light() {
    let size =
        |path: &PathBuf| workspace_dir().join(path).symlink_metadata().map_or(0, |metadata| metadata.len());
    let files = tracked_files();
    let bytes: u64 = files.iter().filter(|path| path.starts_with("tests/data")).map(size).sum();
    assert!(bytes <= TEST_DATA_BYTES_MAX, "tests/data has {bytes} bytes, more than {TEST_DATA_BYTES_MAX}");
}

/// Every crate of the workspace and what it names outside its tests.
fn workspace_crates() -> BTreeMap<String, Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--format-version", "1", "--no-deps"])
        .current_dir(workspace_dir())
        .output()
        .expect("cargo runs this test, so it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let text = |value: &Value| value.as_str().expect("cargo gives names as text").to_owned();
    let shipped = |dependency: &&Value| dependency["kind"] != "dev";
    let packages = metadata["packages"].as_array().expect("a workspace has packages").iter();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("a list, if empty").iter();
            (text(&package["name"]), dependencies.filter(shipped).map(|entry| text(&entry["name"])).collect())
        })
        .collect()
}

/// Path and content of every Rust file.
fn rust_files() -> Vec<(String, String)> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let files: Vec<_> = tracked_files()
        .into_iter()
        .filter(rust)
        .filter_map(|path| Some((path.to_string_lossy().replace('\\', "/"), text_of(&path)?)))
        .collect();
    assert!(files.len() > 20, "only {} Rust files were found", files.len());
    files
}

/// The text of a file of the workspace, or nothing for pictures, weights, links to folders and the lock file.
fn text_of(path: &Path) -> Option<String> {
    if path == Path::new("Cargo.lock") {
        return None;
    }
    String::from_utf8(std::fs::read(workspace_dir().join(path)).ok()?).ok()
}

fn tracked_files() -> Vec<PathBuf> {
    files_of(&workspace_dir())
}

/// The files that belong to the repository at `root`, relative to it: what git tracks, and not what commands leave beside
/// it; otherwise all but build and run output.
fn files_of(root: &Path) -> Vec<PathBuf> {
    if root.join(".git").exists() {
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
        if let Ok(output) = listed
            && output.status.success()
        {
            let names = String::from_utf8_lossy(&output.stdout).into_owned();
            let files = names.split_terminator('\0').map(PathBuf::from);
            // A file that was deleted and not yet committed is still listed.
            return files.filter(|path| root.join(path).symlink_metadata().is_ok()).collect();
        }
    }
    let mut files = Vec::new();
    walk(root, Path::new(""), &mut files);
    files
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root.join(folder)).expect("it is a folder").flatten() {
        let path = folder.join(entry.file_name());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder {
            files.push(path);
        } else if !OUTPUT.iter().any(|output| path == Path::new(output)) {
            walk(root, &path, files);
        }
    }
}

#[test]
fn what_a_command_leaves_is_not_of_the_repository() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    std::fs::create_dir_all(root.join("output/deep")).expect("a folder");
    for name in ["Cargo.toml", "r.json", "output/deep/a.png"] {
        std::fs::write(root.join(name), "x").expect("written");
    }
    let mut bare = files_of(root);
    bare.sort();
    assert_eq!(bare, ["Cargo.toml", "r.json"].map(PathBuf::from), "without git");
    for arguments in [&["init", "-q"][..], &["add", "Cargo.toml"]] {
        let git = Command::new("git").args(arguments).current_dir(root).status();
        assert!(git.expect("git starts").success(), "{arguments:?}");
    }
    assert_eq!(files_of(root), [PathBuf::from("Cargo.toml")]);
}

#[test]
fn paths_of_one_machine_are_recognised() {
    let folder = concat!("/fa", "rm");
    assert!(names_folder(&format!("cd {folder}/x"), folder));
    assert!(names_folder(&format!("{folder}_2"), folder));
    assert!(!names_folder(&format!("docs{folder}/x"), folder));
    assert!(!names_folder(&format!("{folder}er"), folder));
}

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const TEST_DATA_BYTES_MAX: u64 = 28_000_000;

/// Floor of every crate that is shipped.
const FLOORS: [(&str, u8); 15] = [
    ("dg-core", 0),
    ("dg-comm", 1),
    ("dg-config", 1),
    ("dg-hub", 1),
    ("dg-map", 1),
    ("dg-plan", 1),
    ("dg-cuda", 2),
    ("dg-demo", 2),
    ("dg-flux", 2),
    ("dg-kernels", 2),
    ("dg-nccl", 2),
    ("dg-net", 2),
    ("dg-runtime", 3),
    ("diffgentor", 4),
    ("dg-cluster", 4),
];

/// Who may name a crate of its own floor.
const BESIDE: [(&str, &str); 4] =
    [("dg-cuda", "dg-nccl"), ("dg-flux", "dg-cuda"), ("dg-flux", "dg-kernels"), ("dg-kernels", "dg-cuda")];

/// For tests and measurements only; they may name anything, and nothing shipped may name them.
const DEV_CRATES: [&str; 3] = ["dg-bench", "dg-testkit", "diffgentor-tests"];

/// A family of crates (`burn`, `burn-flex`, …) and who may name it.
const RESTRICTED: [(&str, &[&str]); 18] = [
    ("bincode", &["dg-net"]),
    ("burn", &["dg-comm", "dg-cuda", "dg-flux", "dg-kernels"]),
    ("clap", &["dg-cluster", "diffgentor"]),
    ("cubecl", &["dg-cuda"]),
    ("cudarc", &["dg-cuda"]),
    ("hf-hub", &["dg-hub"]),
    ("indicatif", &["dg-cluster", "diffgentor"]),
    ("libloading", &["dg-nccl"]),
    ("memmap2", &["dg-map"]),
    ("quinn", &["dg-net"]),
    ("ractor", &["dg-net", "dg-runtime"]),
    ("rcgen", &["dg-net"]),
    ("rustls", &["dg-net"]),
    ("safetensors", &["dg-flux"]),
    ("tokenizers", &["dg-flux"]),
    ("toml", &["dg-config"]),
    ("ureq", &["dg-hub"]),
    ("x509-parser", &["dg-net"]),
];

/// Where unsafe code may stand.
const UNSAFE_ALLOWED: [&str; 4] =
    ["crates/dg-cuda/src/", "crates/dg-kernels/src/simd/", "crates/dg-map/src/", "crates/dg-nccl/"];

const ROOT: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "cluster",
    "configs",
    "crates",
    "docs",
    "tests",
];

const DOCUMENTS: [&str; 18] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "cluster/README.md",
    "docs/CHANGELOG.md",
    "docs/architecture.md",
    "docs/cli.md",
    "docs/cluster-cli.md",
    "docs/cluster.md",
    "docs/demo-model.md",
    "docs/embedding.md",
    "docs/failure-model.md",
    "docs/gpu.md",
    "docs/models.md",
    "docs/numerics.md",
    "docs/operations.md",
    "docs/parallel.md",
    "docs/security.md",
];

/// What a walk without git leaves out.
const OUTPUT: [&str; 4] = [".git", "gpu-results", "output", "target"];
