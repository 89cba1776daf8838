//! What stands in `cluster/`: units, scripts, manifests and the commands in them.

mod commands;
mod containers;
mod kubernetes;
mod scripts;
mod units;

use dg_testkit::workspace_dir;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The file at `path` below `cluster/`.
fn read(path: &str) -> String {
    let path = workspace_dir().join("cluster").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The documents of a YAML file below `cluster/`, with its anchors and merges resolved.
fn yaml(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All files below `cluster/`, by their path from there.
fn files() -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(root.join(folder)).expect("it is a folder").flatten() {
            let path = folder.join(entry.file_name());
            match entry.file_type().expect("a file has a type").is_dir() {
                true => walk(root, &path, found),
                false => found.push(path.to_str().expect("a plain name").to_owned()),
            }
        }
    }
    let mut found = Vec::new();
    walk(&workspace_dir().join("cluster"), Path::new(""), &mut found);
    found.sort();
    found
}

/// A program of the system; says so loudly if it is not there.
fn tool(name: &str, instead: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("== SKIPPED SKIPPED SKIPPED: {name} is not here; {instead}");
    }
    found
}

/// Runs a program of the system; panics with what it said unless it ends well.
fn expect_silence(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program is there");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "{command:?}: {}\n{said}", output.status);
}

/// What is at a path of names and numbers.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_else(|| panic!("{pointer} is no text in {value:#}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The words of a command that is a list.
fn words(value: &Value) -> Vec<String> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(|word| word.as_str().expect("words are texts").to_owned()).collect()
}

/// A cluster's file inside another file: the program itself reads it.
fn check_cluster_file(toml: &str) -> Value {
    let place = crate::place::Place::new();
    place.write("cluster.toml", toml);
    place.cluster(&["validate", "cluster.toml"], &[]).expect_success();
    let plan = place.cluster(&["plan", "cluster.toml", "-o", "json"], &[]).expect_success();
    serde_json::from_str(&plan.stdout).expect("one JSON object")
}
