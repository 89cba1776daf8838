//! The last lines that the ranks of a node wrote.

use super::super::protocol::LogLines;
use std::collections::VecDeque;

/// The last lines of one process, numbered.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: VecDeque<String>,
    last: u64,
}

impl Log {
    pub(super) fn push(&mut self, line: &str) {
        self.last += 1;
        let end = line.char_indices().nth(LINE_CHARS_MAX).map_or(line.len(), |(at, _)| at);
        self.lines.push_back(line.get(..end).unwrap_or_default().to_owned());
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
        }
    }

    /// The last few.
    pub(super) fn tail(&self, count: usize) -> Vec<String> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// Lines after number `after`, as many as one answer holds.
    pub(super) fn after(&self, after: u64) -> LogLines {
        let first = self.last - self.lines.len() as u64;
        let skip = usize::try_from(after.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut answer = LogLines { last: after.max(first).min(self.last), lines: Vec::new() };
        let mut bytes = 0;
        for line in self.lines.iter().skip(skip) {
            bytes += line.len() + 8;
            if bytes > ANSWER_BYTES_MAX {
                break;
            }
            answer.last += 1;
            answer.lines.push(line.clone());
        }
        answer
    }
}

const LINES_MAX: usize = 2000;
const LINE_CHARS_MAX: usize = 1000;
const ANSWER_BYTES_MAX: usize = 48 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_the_oldest_go() {
        let mut log = Log::default();
        assert_eq!((log.after(0).last, log.after(7).last), (0, 0));
        for n in 1..=2005 {
            log.push(&format!("line {n}"));
        }
        let first = log.after(0);
        assert_eq!(first.lines.first().map(String::as_str), Some("line 6"));
        let rest = log.after(2003);
        assert_eq!((rest.last, rest.lines), (2005, vec!["line 2004".to_owned(), "line 2005".to_owned()]));
        assert_eq!(log.tail(2), ["line 2004", "line 2005"]);
        log.push(&"ä".repeat(5000));
        assert_eq!(log.tail(1).first().map(|line| line.chars().count()), Some(LINE_CHARS_MAX));
    }
}
