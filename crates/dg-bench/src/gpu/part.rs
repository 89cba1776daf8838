//! What a part has found.

use super::Kind;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// One thing that was tried.
pub(super) struct Row {
    name: String,
    state: State,
    /// For people.
    detail: String,
    /// For programs.
    numbers: Value,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Good,
    Bad,
    /// This machine lacks what it takes, or it is only told.
    Told,
}

impl Row {
    pub(super) fn new(
        name: impl Into<String>,
        is_good: bool,
        detail: impl Into<String>,
        numbers: Value,
    ) -> Self {
        let state = if is_good { State::Good } else { State::Bad };
        Self { name: name.into(), state, detail: detail.into(), numbers }
    }

    pub(super) fn told(name: impl Into<String>, detail: impl Into<String>, numbers: Value) -> Self {
        Self { name: name.into(), state: State::Told, detail: detail.into(), numbers }
    }
}

/// A part of the run.
pub(super) struct Part {
    name: &'static str,
    device: Kind,
    rows: Vec<Row>,
}

impl Part {
    pub(super) fn new(name: &'static str, device: Kind, rows: Vec<Row>) -> Self {
        Self { name, device, rows }
    }

    /// It could not even begin, or not go on.
    pub(super) fn broken(name: &'static str, device: Kind, why: &str) -> Self {
        Self::new(name, device, vec![Row::new("start", false, why, Value::Null)])
    }

    pub(super) fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.state != State::Bad)
    }

    pub(super) fn json(&self) -> Value {
        let row = |row: &Row| {
            let state = match row.state {
                State::Good => "good",
                State::Bad => "bad",
                State::Told => "told",
            };
            json!({ "name": row.name, "state": state, "detail": row.detail, "numbers": row.numbers })
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        json!({ "part": self.name, "device": self.device.name(), "good": self.is_good(), "rows": rows })
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{} on {}\n", self.name, self.device.name());
        for row in &self.rows {
            let mark = match row.state {
                State::Good => '✓',
                State::Bad => '✗',
                State::Told => '·',
            };
            let _ = writeln!(text, "{mark} {}: {}", row.name, row.detail);
        }
        text.trim_end().to_owned()
    }
}
