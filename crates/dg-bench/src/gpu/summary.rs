//! The results of all parts in one.

use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Reads what parts have written, and says how they went. A file that is no result is a part that was cut off.
pub(super) fn run(folder: &Path, is_json: bool) -> ExitCode {
    let mut parts: Vec<(String, Option<Value>)> = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|kind| kind != "json") || path.ends_with("results.json") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        parts.push((name, serde_json::from_str(&text).ok()));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let is_good = |part: &Option<Value>| part.as_ref().is_some_and(|part| part["good"] == true);
    let good = parts.iter().filter(|(_, part)| is_good(part)).count();
    if is_json {
        let all: Vec<Value> = parts
            .iter()
            .map(|(file, part)| {
                part.clone().unwrap_or_else(|| json!({ "part": file, "good": false, "rows": [] }))
            })
            .collect();
        println!("{}", json!({ "schema": 1, "good": good, "of": parts.len(), "parts": all }));
    } else {
        for (file, part) in &parts {
            println!("{}", text(file, part.as_ref()));
        }
        println!("{good} of {} parts are good", parts.len());
    }
    if good == parts.len() && good > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(file: &str, part: Option<&Value>) -> String {
    let Some(part) = part else { return format!("✗ {file}: it was cut off; see {file}.log\n") };
    let rows = part["rows"].as_array().cloned().unwrap_or_default();
    let count = |state: &str| rows.iter().filter(|row| row["state"] == state).count();
    let mark = if part["good"] == true { '✓' } else { '✗' };
    let name = part["part"].as_str().unwrap_or(file);
    let mut text = format!(
        "{mark} {name} on {}: {} good, {} bad\n",
        plain(&part["device"]),
        count("good"),
        count("bad")
    );
    for row in rows.iter().filter(|row| row["state"] != "good") {
        let mark = if row["state"] == "bad" { '✗' } else { '·' };
        text += &format!("  {mark} {}: {}\n", plain(&row["name"]), plain(&row["detail"]));
    }
    text
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
