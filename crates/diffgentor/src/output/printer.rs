//! Standard output: a path, or a JSON object, per picture.

use super::write;
use crate::failure::Failure;
use crate::log;
use dg_core::{ImageSize, Seed};
use serde::Serialize;
use std::io::{ErrorKind, Write};

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
    /// blake3 of the RGB bytes that its file decodes to, the same when it is made and when it is
    /// skipped. Of a JPEG these are not the bytes that the model drew; `--report` has those.
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
    failure: Option<Failure>,
}

impl Printer {
    /// Prints paths, or JSON.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, closed: false, failure: None }
    }

    /// Prints one line. Pictures that failed have no path to print.
    pub(crate) fn print(&mut self, line: &Line) {
        let text = match self.json {
            true => serde_json::to_string(line).expect("a line has no maps"),
            false if line.error.is_some() => return,
            false => line.path.clone(),
        };
        if self.closed {
            return;
        }
        match try_print(&text) {
            Ok(read) => self.closed = !read,
            Err(failure) => {
                // the pictures are worth more than the lines about them
                log::warn_once(failure.message.clone());
                (self.closed, self.failure) = (true, Some(failure));
            }
        }
    }

    /// Fails if a line was lost that somebody may wait for.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// Prints a text and a line feed; false when nobody reads standard output any more.
pub(crate) fn try_print(text: &str) -> Result<bool, Failure> {
    let written = log::above_bars(|| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush())
    });
    match written {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::failed(format!("cannot write to standard output: {e}"))
            .hint("check where standard output goes, and make room there")),
    }
}

/// Prints all that a command has to say. Ends the program when that fails, silently only when
/// nobody reads standard output any more: that is `false`.
pub(crate) fn print(text: &str) -> bool {
    try_print(text).unwrap_or_else(|failure| {
        write::remove_own();
        log::print_failure(&failure);
        std::process::exit(failure.exit.code().into())
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
