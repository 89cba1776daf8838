//! Standard output: a path, or a JSON object, per picture.

use crate::log;
use dg_core::{ImageSize, Seed};
use serde::Serialize;
use std::io::Write;

/// One line of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Where the picture is, or would have been.
    pub(crate) path: String,
    /// Its seed; null when an old file does not say.
    pub(crate) seed: Option<u64>,
    /// Its size, `512x512`.
    pub(crate) size: String,
    /// Its share of the time that its batch took.
    pub(crate) seconds: f64,
    /// blake3 of its RGB bytes.
    pub(crate) pixels_blake3: Option<String>,
    /// Whether it was finished before.
    pub(crate) skipped: bool,
    /// Why it was not made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Line {
    /// A line without picture yet.
    pub(crate) fn new(path: String, seed: Option<Seed>, size: ImageSize) -> Self {
        let (seed, size) = (seed.map(|s| s.0), size.to_string());
        Self { path, seed, size, seconds: 0.0, pixels_blake3: None, skipped: false, error: None }
    }
}

/// Prints lines until nobody reads them.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    closed: bool,
}

impl Printer {
    /// Prints paths, or JSON.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, closed: false }
    }

    /// Prints one line. Pictures that failed have no path to print.
    pub(crate) fn print(&mut self, line: &Line) {
        let text = match self.json {
            true => serde_json::to_string(line).expect("a line has no maps"),
            false if line.error.is_some() => return,
            false => line.path.clone(),
        };
        self.closed = self.closed || !print(&text);
    }
}

/// Prints a text and a line feed; false when nobody reads standard output any more.
pub(crate) fn print(text: &str) -> bool {
    log::above_bars(|| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_have_these_fields() {
        let (size, _) = ImageSize::fit(64, 32).unwrap();
        let mut line = Line::new("o/000000.png".into(), Some(Seed(7)), size);
        line.pixels_blake3 = Some("ab".into());
        let expect = r#"{"path":"o/000000.png","seed":7,"size":"64x32","seconds":0.0,"pixels_blake3":"ab","skipped":false}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), expect);
    }
}
