//! `dg-cluster doctor`: what this machine has, and what a cluster needs of it. Nothing is started, no other host asked.

mod cluster;
mod gpus;
mod machine;

use crate::args::Form;
use crate::failure::{Failure, print};
use crate::load::load;
use crate::table::count;
use clap::{Args, ValueHint};
use dg_core::ExitCode;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The cluster's file. Without it, only the machine is looked at.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cluster: Option<PathBuf>,
    /// Form of the list.
    #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// It runs, but slower or not for long.
    Warn,
    /// It cannot run.
    Fail,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), hint: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), hint: Some(hint.into()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, detail, hint) }
    }
}

/// Checks the machine, and with a file what the cluster needs of it. What makes running impossible ends the program
/// with 4.
pub(crate) fn doctor(args: &Arguments) -> Result<(), Failure> {
    let loaded = args.cluster.as_deref().map(load).transpose()?;
    if let Some(loaded) = &loaded {
        loaded.file.check_layout(&loaded.text)?;
    }
    let mut checks = machine::checks(loaded.as_ref().map(|loaded| &loaded.file));
    if let Some(loaded) = &loaded {
        checks.extend(cluster::checks(&loaded.file));
        checks.extend(gpus::checks(&loaded.file));
    }
    match args.output {
        Form::Json => print(&object(&checks).to_string())?,
        Form::Text => print(&checks.iter().map(line).collect::<Vec<_>>().join("\n"))?,
    }
    let failed = checks.iter().filter(|check| check.status == Status::Fail).count();
    if failed > 0 {
        return Err(Failure::new(
            ExitCode::Infeasible,
            format!("{} must be put right before the cluster can run", count(failed, "thing")),
            "the lines on standard output say what to do",
        ));
    }
    Ok(())
}

fn object(checks: &[Check]) -> serde_json::Value {
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    serde_json::json!({"schema": SCHEMA, "ok": ok, "checks": checks})
}

fn line(check: &Check) -> String {
    let mark = match check.status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    let hint = check.hint.as_ref().map(|hint| format!("\n       hint: {hint}")).unwrap_or_default();
    format!("{mark:<5}  {:<13} {}{hint}", check.name, check.detail)
}

/// Version of the JSON that docs/cluster.md describes.
const SCHEMA: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_json() {
        let bad = Check::fail("ssh", "not found", "install it");
        let good = Check::ok("clock", "right");
        assert_eq!(line(&bad), "FAIL   ssh           not found\n       hint: install it");
        assert_eq!(line(&good), "ok     clock         right");
        let expect = serde_json::json!({"schema": 1, "ok": false, "checks": [
            {"name": "ssh", "status": "fail", "detail": "not found", "hint": "install it"},
            {"name": "clock", "status": "ok", "detail": "right"},
        ]});
        assert_eq!(object(&[bad, good]), expect);
    }
}
