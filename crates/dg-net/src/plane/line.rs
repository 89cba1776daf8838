//! The way to one peer: what waits to be sent, and the thread that sends it.

use super::frame::{CAUSE_BYTES_MAX, HEADER_BYTES, Header};
use super::world::{Amount, Failure};
use bytes::Bytes;
use dg_comm::{Block, Envelope};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Frames that wait for the thread that writes. Credit bounds the messages, and everything else comes once, so that
/// the queue is bounded, too.
#[derive(Default)]
pub(super) struct Line {
    queue: Mutex<Queue>,
    /// There is something to send, or it is over.
    ready: Condvar,
    /// The thread that writes has ended.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The newest credit, which takes the place of older ones.
    credit: Option<Amount>,
    failure: Option<Failure>,
    seen: bool,
    /// Messages, and the end after them.
    frames: VecDeque<Frame>,
    /// Nothing more will come: the thread ends when everything is sent.
    closing: bool,
    ended: bool,
}

struct Frame {
    header: Header,
    payload: Bytes,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        if !queue.ended {
            change(&mut queue);
        }
        drop(queue);
        self.ready.notify_one();
    }

    pub(super) fn message(&self, envelope: Envelope, block: &Block, payload: Bytes) {
        let header = Header::Message { envelope, dtype: block.dtype(), bytes: block.shape().bytes() };
        self.put(|queue| queue.frames.push_back(Frame { header, payload }));
    }

    pub(super) fn finished(&self) {
        let frame = Frame { header: Header::Finished, payload: Bytes::new() };
        self.put(|queue| queue.frames.push_back(frame));
    }

    pub(super) fn credit(&self, taken: Amount) {
        self.put(|queue| queue.credit = Some(taken));
    }

    pub(super) fn seen(&self) {
        self.put(|queue| queue.seen = true);
    }

    /// The job is over: nobody wants what still waits.
    pub(super) fn fail(&self, failure: &Failure) {
        self.put(|queue| {
            queue.frames.clear();
            queue.failure = Some(failure.clone());
        });
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.put(|queue| queue.closing = true);
    }

    /// Waits until everything is sent, or it is too late.
    pub(super) fn wait(&self, end: Instant) {
        let mut queue = self.lock();
        while !queue.ended {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.done.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends what comes until the line is closed. An error ends it silently: the thread that reads will see why.
    pub(super) fn run(&self, mut out: impl Write) {
        let mut small = Vec::with_capacity(2 * SMALL_BYTES);
        while let Some(batch) = self.next() {
            if write(&mut out, batch, &mut small).is_err() {
                break;
            }
        }
        let mut queue = self.lock();
        queue.ended = true;
        queue.frames.clear();
        drop(queue);
        self.done.notify_all();
    }

    /// What goes next, in order; `None` if nothing will.
    fn next(&self) -> Option<Vec<Frame>> {
        let mut queue = self.lock();
        loop {
            let batch = queue.batch();
            if !batch.is_empty() {
                return Some(batch);
            }
            if queue.closing {
                return None;
            }
            queue = self.ready.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Queue {
    /// Everything that cannot wait, then messages until there are bytes enough to be worth a call.
    fn batch(&mut self) -> Vec<Frame> {
        let bare = |header| Frame { header, payload: Bytes::new() };
        let mut batch = Vec::new();
        if let Some(Failure { rank, how, cause }) = self.failure.take() {
            let cause = Bytes::from(cut(cause));
            let (rank, bytes) = (u32::try_from(rank).unwrap_or(u32::MAX), cause.len() as u64);
            batch.push(Frame { header: Header::Failure { how, rank, bytes }, payload: cause });
        }
        if let Some(Amount { messages, bytes }) = self.credit.take() {
            batch.push(bare(Header::Credit { messages, bytes }));
        }
        if std::mem::take(&mut self.seen) {
            batch.push(bare(Header::Seen));
        }
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(frame) = self.frames.pop_front() else { break };
            bytes += HEADER_BYTES + frame.payload.len();
            batch.push(frame);
        }
        batch
    }
}

/// Small frames together in one call, large payloads from where they lie.
fn write(out: &mut impl Write, batch: Vec<Frame>, small: &mut Vec<u8>) -> io::Result<()> {
    small.clear();
    for Frame { header, payload } in batch {
        small.extend_from_slice(&header.encode());
        let begin = payload.slice(..payload.len().min(SMALL_BYTES));
        small.extend_from_slice(&begin);
        if payload.len() > begin.len() || small.len() >= SMALL_BYTES {
            out.write_all(small)?;
            small.clear();
            out.write_all(&payload[begin.len()..])?;
        }
    }
    out.write_all(small)?;
    out.flush()
}

/// At most [`CAUSE_BYTES_MAX`], between two characters.
fn cut(mut cause: String) -> String {
    let max = usize::try_from(CAUSE_BYTES_MAX).unwrap_or(usize::MAX);
    cause.truncate(cause.floor_char_boundary(max));
    cause
}

/// After so many bytes a call of the system costs little.
const BATCH_BYTES: usize = 64 << 10;

/// Beginnings of payloads up to here are copied next to their headers.
const SMALL_BYTES: usize = 16 << 10;

/// How often a line with nothing to send looks by itself.
const IDLE: Duration = Duration::from_secs(60);
