//! What happened in a cluster, written down.

use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Something that happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Event {
    /// Seconds since 1970.
    pub time: f64,
    /// `node_joined`, `node_lost`, `rank_started`, `rank_lost`, `job_submitted`, `epoch_started`, `resumed_from_step`,
    /// `job_done`, `job_failed`, `job_cancelled` and others.
    pub kind: &'static str,
    /// For reading.
    pub message: String,
    /// Which job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Which node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Which rank of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Steps that are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
}

/// The file of events, and the last of them.
pub(super) struct EventLog {
    file: Option<File>,
    folder: PathBuf,
    /// Bytes of the file, and the most that it may have.
    bytes: u64,
    bytes_max: u64,
    last: VecDeque<Event>,
}

impl EventLog {
    /// Goes on with the file of `folder`.
    pub(super) fn open(folder: &Path) -> Self {
        Self::with_limit(folder, BYTES_MAX)
    }

    fn with_limit(folder: &Path, bytes_max: u64) -> Self {
        let mut log = Self { file: None, folder: folder.into(), bytes: 0, bytes_max, last: VecDeque::new() };
        log.open_file();
        log
    }

    fn open_file(&mut self) {
        let opened = File::options().create(true).append(true).open(self.folder.join(FILE));
        let opened = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((bytes, file)) => (self.bytes, self.file) = (bytes, Some(file)),
            Err(error) => tracing::warn!(%error, "events are not written down"),
        }
    }

    /// Writes a line; a file that would be too long is put aside first, in place of the one before it.
    fn write(&mut self, line: &[u8]) {
        if self.file.is_some() && self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            self.file = None;
            let aside = std::fs::rename(self.folder.join(FILE), self.folder.join(ASIDE));
            match aside {
                Ok(()) => self.open_file(),
                Err(error) => tracing::warn!(%error, "events are not written down any more"),
            }
        }
        let Some(file) = &mut self.file else { return };
        match file.write_all(line) {
            Ok(()) => self.bytes += line.len() as u64,
            Err(error) => {
                tracing::warn!(%error, "events are not written down any more");
                self.file = None;
            }
        }
    }

    pub(super) fn push(&mut self, mut event: Event) {
        if let Some((end, _)) = event.message.char_indices().nth(MESSAGE_CHARS_MAX) {
            event.message.truncate(end);
            event.message.shrink_to_fit();
        }
        event.time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        tracing::info!(
            kind = event.kind,
            job = event.job,
            node = event.node,
            rank = event.rank,
            "{}",
            event.message
        );
        if let Ok(mut line) = serde_json::to_vec(&event) {
            line.push(b'\n');
            self.write(&line);
        }
        self.last.push_back(event);
        if self.last.len() > LAST_MAX {
            self.last.pop_front();
        }
    }

    pub(super) fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.push(event));
    }

    /// The last events, the oldest first.
    pub(super) fn last(&self) -> impl Iterator<Item = &Event> {
        self.last.iter()
    }
}

const FILE: &str = "events.jsonl";
const ASIDE: &str = "events.jsonl.1";
const BYTES_MAX: u64 = 64 << 20;
const LAST_MAX: usize = 2000;
/// A message may quote what somebody else has sent.
const MESSAGE_CHARS_MAX: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_events_is_put_aside_before_it_is_too_long() {
        let place = tempfile::tempdir().unwrap();
        let numbers = |name: &str| -> Vec<usize> {
            let text = std::fs::read_to_string(place.path().join(name)).unwrap();
            assert!(text.len() <= 1000, "{} bytes", text.len());
            let number = |line: &str| {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                event["message"].as_str().unwrap().parse().unwrap()
            };
            text.lines().map(number).collect()
        };
        let event = |number: usize| Event { kind: "test", message: number.to_string(), ..Event::default() };
        let mut log = EventLog::with_limit(place.path(), 1000);
        log.extend((0..25).map(event));
        drop(log);
        // The next head goes on where this one was.
        EventLog::with_limit(place.path(), 1000).extend((25..50).map(event));
        let kept = [numbers(ASIDE), numbers(FILE)].concat();
        assert!(kept.len() > 12 && kept.len() < 50, "{kept:?}");
        assert_eq!(kept, (50 - kept.len()..50).collect::<Vec<_>>(), "the last ones, each once");
    }
}
