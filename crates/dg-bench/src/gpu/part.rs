//! What a part has found.

use super::Kind;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

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
    /// Has all rows so far, for the case that the process ends before its part does.
    file: Option<PathBuf>,
}

impl Part {
    pub(super) fn new(name: &'static str, device: Kind, file: Option<PathBuf>) -> Self {
        Self { name, device, rows: Vec::new(), file }
    }

    /// Adds a row, in place of one of that name.
    pub(super) fn put(&mut self, row: Row) {
        match self.rows.iter_mut().find(|old| old.name == row.name) {
            Some(old) => *old = row,
            None => self.rows.push(row),
        }
        if let Some(file) = &self.file
            && let Err(error) = self.save(file)
        {
            eprintln!("{}: {error}", file.display());
        }
    }

    /// As a part that was cut off. A reader never sees half of a file.
    fn save(&self, file: &Path) -> std::io::Result<()> {
        let mut so_far = self.json();
        so_far["good"] = false.into();
        so_far["cut_off"] = true.into();
        let new = file.with_extension("new");
        std::fs::write(&new, so_far.to_string())?;
        std::fs::rename(&new, file)
    }

    /// It could not even begin, or not go on.
    pub(super) fn stop(&mut self, why: &str) {
        let name = if self.rows.is_empty() { "start" } else { "end" };
        self.put(Row::new(name, false, why, Value::Null));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_on_disk_before_a_part_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("2-kernels.rows");
        let read = || serde_json::from_str::<Value>(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let mut part = Part::new("kernels", Kind::Cpu, Some(file.clone()));
        part.put(Row::new("a", true, "well", Value::Null));
        let so_far = read();
        assert!(
            so_far["good"] == false && so_far["cut_off"] == true && so_far["part"] == "kernels",
            "{so_far}"
        );
        part.put(Row::new("b", true, "first", Value::Null));
        part.put(Row::new("b", true, "second", Value::Null));
        let rows = read()["rows"].as_array().unwrap().clone();
        assert_eq!((rows.len(), &rows[1]["detail"]), (2, &json!("second")));
        assert!(part.is_good() && part.json().get("cut_off").is_none(), "{}", part.json());
        part.stop("the device is gone");
        assert_eq!((part.is_good(), part.rows.len(), part.rows[2].name.as_str()), (false, 3, "end"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
