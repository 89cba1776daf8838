//! The results of all parts in one.

use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// A part by the name of its file, and what it has left.
type Left = (String, Option<Value>);

/// Reads what parts have written, and says how they went.
pub(super) fn run(folder: &Path, is_json: bool) -> ExitCode {
    let parts = read(folder);
    let is_good = |part: &Option<Value>| part.as_ref().is_some_and(|part| part["good"] == true);
    let good = parts.iter().filter(|(_, part)| is_good(part)).count();
    let ratios = ratios(&parts);
    if is_json {
        let all: Vec<Value> = parts
            .iter()
            .map(|(file, part)| {
                part.clone().unwrap_or_else(|| json!({ "part": file, "good": false, "rows": [] }))
            })
            .collect();
        let (of, ratios) = (parts.len(), ratios.iter().map(Ratio::json).collect::<Vec<_>>());
        println!("{}", json!({ "schema": 1, "good": good, "of": of, "parts": all, "ratios": ratios }));
    } else {
        for (file, part) in &parts {
            println!("{}", text(file, part.as_ref()));
        }
        ratios.iter().for_each(|ratio| println!("{}", ratio.text()));
        println!("{good} of {} parts are good", parts.len());
    }
    if good == parts.len() && good > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The results of a folder. A `*.json` that is no result is a part that was cut off: `*.rows` may have its rows so far.
fn read(folder: &Path) -> Vec<Left> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|kind| kind != "json") || path.ends_with("results.json") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let object = |path: &Path| {
            let text = std::fs::read_to_string(path).ok()?;
            serde_json::from_str::<Value>(&text).ok().filter(Value::is_object)
        };
        let rows = || object(&path.with_extension("rows"));
        parts.push((name, object(&path).or_else(rows)));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts
}

fn text(file: &str, part: Option<&Value>) -> String {
    let Some(part) = part else { return format!("✗ {file}: it was cut off; see {file}.log\n") };
    let rows = part["rows"].as_array().cloned().unwrap_or_default();
    let count = |state: &str| rows.iter().filter(|row| row["state"] == state).count();
    let mark = if part["good"] == true { '✓' } else { '✗' };
    let name = part["part"].as_str().unwrap_or(file);
    let end = match part["cut_off"] == true {
        true => format!("; it was cut off; see {file}.log"),
        false => String::new(),
    };
    let mut text = format!(
        "{mark} {name} on {}: {} good, {} bad{end}\n",
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

/// Denoising as a part of something else.
#[derive(Debug, PartialEq)]
struct Ratio {
    to: &'static str,
    ours: f64,
    theirs: f64,
    unit: &'static str,
}

impl Ratio {
    fn value(&self) -> f64 {
        self.ours / self.theirs
    }

    fn json(&self) -> Value {
        json!({ "to": self.to, "ours": self.ours, "theirs": self.theirs, "unit": self.unit, "ratio": self.value() })
    }

    fn text(&self) -> String {
        let (ours, theirs, unit) = (self.ours, self.theirs, self.unit);
        format!("denoise / {}: {:.3} ({ours:.1} / {theirs:.1} {unit})", self.to, self.value())
    }
}

/// Time of a step over that of others, and the share of the peak: of FLUX.1-dev at 1024² in bfloat16 and nothing else.
fn ratios(parts: &[Left]) -> Vec<Ratio> {
    let number = |part: &str, name: &str, key: &str| row(parts, part, name)?["numbers"][key].as_f64();
    let is_asked = row(parts, "denoise", "shape").is_some_and(|shape| {
        let shape = &shape["numbers"];
        let pixels = [&shape["width"], &shape["height"]];
        shape["size"] == "Full" && shape["format"] == "Bf16" && pixels.iter().all(|side| **side == 1024)
    });
    let ours = number("denoise", "step", "ms_per_step");
    let (true, Some(ours)) = (is_asked, ours) else { return Vec::new() };
    let of_peer = |name| number("peer", name, "ms_per_step");
    let times = [
        ("PyTorch eager, this machine", of_peer("eager")),
        ("PyTorch compiled, this machine", of_peer("compiled")),
        ("PyTorch compiled, one H100, published", Some(PUBLISHED_MS)),
    ];
    let mut ratios: Vec<Ratio> = times
        .into_iter()
        .filter_map(|(to, theirs)| Some(Ratio { to, ours, theirs: theirs?, unit: "ms a step" }))
        .collect();
    let rates = (number("denoise", "step", "tflop_per_s"), number("peer", "peak", "tflop_per_s"));
    if let (Some(ours), Some(theirs)) = rates {
        ratios.push(Ratio { to: "the largest product of PyTorch", ours, theirs, unit: "TFLOP/s" });
    }
    ratios
}

/// A row of a part that ran on a GPU.
fn row<'a>(parts: &'a [Left], part: &str, name: &str) -> Option<&'a Value> {
    let mut all = parts.iter().filter_map(|(_, left)| left.as_ref());
    let part = all.find(|left| left["part"] == part && left["device"] == "cuda")?;
    part["rows"].as_array()?.iter().find(|row| row["name"] == name)
}

/// Milliseconds of a step of FLUX.1-dev at 1024² in bfloat16 that PyTorch and diffusers have published (flux-fast).
const PUBLISHED_MS: f64 = 154.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn denoise(width: u32, device: &str) -> Value {
        json!({ "part": "denoise", "device": device, "good": true, "rows": [
            { "name": "shape", "state": "told", "detail": "x",
              "numbers": { "size": "Full", "width": width, "height": 1024, "format": "Bf16" } },
            { "name": "step", "state": "told", "detail": "x",
              "numbers": { "ms_per_step": 308.0, "tflop_per_s": 200.0 } },
        ] })
    }

    /// The peer, with these rows of times.
    fn peer(times: &[(&str, f64)]) -> Value {
        let row = |(name, ms): &(&str, f64)| json!({ "name": name, "numbers": { "ms_per_step": ms } });
        let mut rows: Vec<Value> = times.iter().map(row).collect();
        rows.push(json!({ "name": "peak", "numbers": { "tflop_per_s": 800.0 } }));
        json!({ "part": "peer", "device": "cuda", "good": true, "rows": rows })
    }

    fn of(parts: &[Value]) -> Vec<(&'static str, f64)> {
        let parts: Vec<Left> = parts.iter().map(|part| ("x".into(), Some(part.clone()))).collect();
        ratios(&parts).iter().map(|ratio| (ratio.to, ratio.value())).collect()
    }

    #[test]
    fn a_step_is_compared_with_whatever_there_is() {
        let all = of(&[denoise(1024, "cuda"), peer(&[("eager", 616.0), ("compiled", 154.0)])]);
        let expected = [
            ("PyTorch eager, this machine", 0.5),
            ("PyTorch compiled, this machine", 2.0),
            ("PyTorch compiled, one H100, published", 2.0),
            ("the largest product of PyTorch", 0.25),
        ];
        assert_eq!(all, expected);
        // The peer was cut off while it compiled, or is not there.
        let eager = of(&[denoise(1024, "cuda"), peer(&[("eager", 616.0)])]);
        assert_eq!(eager, [expected[0], expected[2], expected[3]]);
        assert_eq!(of(&[denoise(1024, "cuda")]), [expected[2]]);
        // Another picture, or a dry run, says nothing of that.
        assert!(of(&[denoise(512, "cuda"), peer(&[("eager", 616.0)])]).is_empty());
        assert!(of(&[denoise(1024, "cpu"), peer(&[("eager", 616.0)])]).is_empty());
    }

    #[test]
    fn ratios_are_lines_with_both_numbers() {
        let parts = [("4-denoise".to_owned(), Some(denoise(1024, "cuda")))];
        let ratios = ratios(&parts);
        let line = "denoise / PyTorch compiled, one H100, published: 2.000 (308.0 / 154.0 ms a step)";
        assert_eq!((ratios.len(), ratios[0].text().as_str()), (1, line));
        assert_eq!(ratios[0].json()["ratio"], 2.0);
    }

    #[test]
    fn a_part_that_was_cut_off_keeps_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let rows = r#"{"part":"kernels","device":"cuda","good":false,"cut_off":true,
            "rows":[{"name":"linear","state":"good","detail":"well"}]}"#;
        write("2-kernels.json", "");
        write("2-kernels.rows", rows);
        write("1-doctor.json", r#"{"part":"doctor","device":"cuda","good":true,"rows":[]}"#);
        write("1-doctor.rows", r#"{"part":"doctor","good":false,"cut_off":true,"rows":[]}"#);
        write("3-conformance.json", "nonsense");
        write("results.json", "{}");
        let parts = read(folder.path());
        let said: Vec<String> = parts.iter().map(|(file, part)| text(file, part.as_ref())).collect();
        let expected = [
            "✓ doctor on cuda: 0 good, 0 bad\n",
            "✗ kernels on cuda: 1 good, 0 bad; it was cut off; see 2-kernels.log\n",
            "✗ 3-conformance: it was cut off; see 3-conformance.log\n",
        ];
        assert_eq!(said, expected);
    }
}
