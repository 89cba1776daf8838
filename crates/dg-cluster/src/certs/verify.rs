//! `dg-cluster certs verify`.

use crate::date::days_left;
use crate::failure::{Failure, print};
use crate::table::count;
use dg_core::ExitCode;
use dg_net::identity::{Audit, Auditor, RENEW_BEFORE, State};
use std::path::PathBuf;
use std::time::SystemTime;

/// Prints a line for each certificate. Bad ones end the program with 3.
pub(super) fn verify(state: &State, files: &[PathBuf], now: SystemTime) -> Result<(), Failure> {
    let auditor = Auditor::open(state)?;
    let audits = match files {
        [] => auditor.all(now)?,
        files => files.iter().map(|path| auditor.identity(path, now)).collect(),
    };
    if audits.is_empty() {
        return Err(Failure::new(
            ExitCode::Config,
            format!("`{}` has no certificates", state.folder().display()),
            "`dg-cluster certs init` makes the first ones, `dg-cluster join` gets those of a node",
        ));
    }
    let lines: Vec<String> = audits.iter().map(|audit| line(audit, now)).collect();
    print(&lines.join("\n"))?;
    let bad = audits.iter().filter(|audit| !audit.is_good()).count();
    if bad > 0 {
        return Err(Failure::new(
            ExitCode::Config,
            format!("not good: {bad} of {}", count(audits.len(), "certificate")),
            "the lines on standard output say what to do",
        ));
    }
    Ok(())
}

fn line(audit: &Audit, now: SystemTime) -> String {
    let path = audit.path.display();
    if !audit.is_good() {
        let faults = audit.faults.iter().map(|fault| format!("{}; hint: {}", fault.what, fault.hint));
        return format!("bad  {path}: {}", faults.collect::<Vec<_>>().join(". "));
    }
    let who = match &audit.passport {
        Some(passport) => format!("{} {}", passport.role(), passport.name()),
        None => "CA".into(),
    };
    let until = audit.validity.map_or(now, |(_, until)| until);
    let soon = if until < now + RENEW_BEFORE { " (renew it: `dg-cluster certs renew`)" } else { "" };
    let left = usize::try_from(days_left(until, now)).unwrap_or(0);
    format!("ok   {path}: {who}, {} left{soon}", count(left, "day"))
}
