//! What happened in a cluster, written down.

use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
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
    last: VecDeque<Event>,
}

impl EventLog {
    /// Goes on with the file of `folder`.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join("events.jsonl");
        if path.metadata().is_ok_and(|file| file.len() > BYTES_MAX) {
            let _ = std::fs::rename(&path, folder.join("events.jsonl.1"));
        }
        let file = File::options().create(true).append(true).open(&path);
        let file = file.inspect_err(|error| tracing::warn!(%error, "events are not written down"));
        Self { file: file.ok(), last: VecDeque::new() }
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
        if let (Some(file), Ok(mut line)) = (&mut self.file, serde_json::to_vec(&event)) {
            line.push(b'\n');
            if let Err(error) = file.write_all(&line) {
                tracing::warn!(%error, "events are not written down any more");
                self.file = None;
            }
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

const BYTES_MAX: u64 = 64 << 20;
const LAST_MAX: usize = 2000;
/// A message may quote what somebody else has sent.
const MESSAGE_CHARS_MAX: usize = 2000;
