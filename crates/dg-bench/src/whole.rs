//! The program as a user starts it.

use crate::measure::report;
use crate::{Failure, Run};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs `diffgentor t2i` in a fresh process each time. CPU seconds are those of the children.
pub(crate) fn e2e(program: &Path, run: &Run, arguments: &[String]) -> Result<Value, Failure> {
    let (mut times, folder) = (Vec::new(), run.folder()?);
    for i in 0..run.warm_up + run.repeats {
        let before = child_seconds()?;
        let start = Instant::now();
        let status = Command::new(program)
            .args(["t2i", "--no_resume", "--quiet", "--model_name"])
            .arg(&folder)
            .args(["--threads", &run.threads.to_string()])
            .args(arguments)
            .stdout(Stdio::null())
            .status()?;
        let wall = start.elapsed().as_secs_f64();
        if !status.success() {
            return Err(format!("{} ended with {status}", program.display()).into());
        }
        if i >= run.warm_up {
            times.push([wall, child_seconds()? - before]);
        }
    }
    Ok(report("e2e", run, 0.0, &times))
}

/// CPU seconds of all children that have ended, from `/proc/self/stat`.
fn child_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, tail)| tail).split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(13) + ticks(14)) / 100.0)
}
