//! `dg-cluster certs show`.

use super::short;
use crate::args::Form;
use crate::date::{day, days_left, utc};
use crate::failure::{Failure, print};
use crate::table::{columns, count};
use dg_net::identity::{Audit, Auditor, RENEW_BEFORE, State};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::SystemTime;

/// A certificate as it is listed.
struct Row {
    name: Option<String>,
    role: Option<&'static str>,
    validity: Option<(SystemTime, SystemTime)>,
    fingerprint: Option<String>,
    admitted: Option<bool>,
    file: Option<String>,
    faults: Vec<String>,
}

/// Prints the certificates of the folder, and those that the head lets in and others have.
pub(super) fn show(state: &State, form: Form, now: SystemTime) -> Result<(), Failure> {
    let audits = Auditor::open(state)?.all(now)?;
    let mut rows: Vec<Row> = audits.iter().map(Row::of).collect();
    let here: BTreeSet<String> = rows.iter().filter_map(|row| row.fingerprint.clone()).collect();
    for (fingerprint, name) in state.admitted()?.entries() {
        if !here.contains(&fingerprint.to_string()) {
            rows.push(Row::elsewhere(fingerprint.to_string(), name.to_string()));
        }
    }
    match form {
        Form::Json => print(&object(state, &rows, now).to_string()),
        Form::Text => print(text(&rows, now).trim_end()),
    }
}

fn text(rows: &[Row], now: SystemTime) -> String {
    let heading = ["name", "role", "from", "until", "days", "fingerprint", "admitted", ""];
    let mut lines = vec![heading.map(String::from).to_vec()];
    let none = || "-".to_string();
    for row in rows {
        let admitted = row.admitted.map_or_else(none, |yes| if yes { "yes" } else { "no" }.into());
        lines.push(vec![
            row.name.clone().unwrap_or_else(none),
            row.role.map_or_else(none, Into::into),
            row.validity.map_or_else(none, |(from, _)| day(from)),
            row.validity.map_or_else(none, |(_, until)| day(until)),
            row.validity.map_or_else(none, |(_, until)| days_left(until, now).to_string()),
            row.fingerprint.as_deref().map_or_else(none, short),
            admitted,
            row.remark(now),
        ]);
    }
    let mut out = columns(&lines, &[4]);
    let soon = rows.iter().filter(|row| row.is_ending(now)).count();
    if soon > 0 {
        let days = RENEW_BEFORE.as_secs() / 86_400;
        out += &format!("\n{} within {days} days: `dg-cluster certs renew --all`\n", ends(soon));
    }
    out
}

fn ends(n: usize) -> String {
    format!("{} end{}", count(n, "certificate"), if n == 1 { "s" } else { "" })
}

fn object(state: &State, rows: &[Row], now: SystemTime) -> Value {
    let of = |row: &Row| {
        json!({
            "name": row.name,
            "role": row.role,
            "valid_from": row.validity.map(|(from, _)| utc(from)),
            "valid_until": row.validity.map(|(_, until)| utc(until)),
            "days_left": row.validity.map(|(_, until)| days_left(until, now)),
            "fingerprint": row.fingerprint,
            "admitted": row.admitted,
            "renew": row.is_ending(now),
            "file": row.file,
            "faults": row.faults,
        })
    };
    json!({
        "schema": SCHEMA,
        "state_dir": state.folder(),
        "certificates": rows.iter().map(of).collect::<Vec<_>>(),
    })
}

// === impl Row ===

impl Row {
    fn of(audit: &Audit) -> Self {
        let passport = audit.passport.as_ref();
        let role = passport.map(|passport| match passport.role() {
            dg_net::identity::Role::Client => "client",
            dg_net::identity::Role::Head => "head",
            dg_net::identity::Role::Node => "node",
        });
        Self {
            name: passport.map(|passport| passport.name().to_string()),
            role: if audit.is_ca { Some("CA") } else { role },
            validity: audit.validity,
            fingerprint: audit.fingerprint.map(|fingerprint| fingerprint.to_string()),
            admitted: audit.admitted,
            file: Some(audit.path.display().to_string()),
            faults: audit.faults.iter().map(|fault| fault.what.clone()).collect(),
        }
    }

    /// One of which the list knows no more than this: its holder joined by a token, or it was renewed here.
    fn elsewhere(fingerprint: String, name: String) -> Self {
        Self {
            name: Some(name),
            role: None,
            validity: None,
            fingerprint: Some(fingerprint),
            admitted: Some(true),
            file: None,
            faults: Vec::new(),
        }
    }

    fn is_ending(&self, now: SystemTime) -> bool {
        self.validity.is_some_and(|(_, until)| until < now + RENEW_BEFORE)
    }

    fn remark(&self, now: SystemTime) -> String {
        match self.faults.first() {
            Some(fault) if self.name.is_none() && self.role.is_none() => {
                format!("! {}: {fault}", self.file.as_deref().unwrap_or_default())
            }
            Some(fault) => format!("! {fault}"),
            None if self.is_ending(now) => "! ends soon".into(),
            None if self.file.is_none() => "elsewhere, or an older one".into(),
            None => String::new(),
        }
    }
}

/// Version of the JSON that docs/cluster.md describes.
const SCHEMA: u32 = 1;
