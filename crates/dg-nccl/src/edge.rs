//! One direction between two ranks, seen from one of its ends. Rank 0 of its communicator sends, rank 1 receives.
#![allow(unsafe_code, reason = "addresses of device memory go to NCCL")]

use crate::driver::{Event, Stream};
use crate::error::Result;
use crate::library::Raw;
use crate::memory::Memory;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Arc;

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Sender,
    Receiver,
}

impl End {
    /// Its number in the communicator.
    pub(crate) const fn rank(self) -> c_int {
        match self {
            Self::Sender => 0,
            Self::Receiver => 1,
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) serial: u64,
    pub(crate) memory: Arc<Memory>,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Edge {
    /// Given up before the memory that it may use is given back: fields are dropped in order.
    raw: Option<Raw>,
    end: End,
    stream: Stream,
    waiting: VecDeque<Transfer>,
    /// Handed to NCCL, which has not put them on the stream yet.
    launching: Vec<Transfer>,
    flying: VecDeque<(Event, Vec<Transfer>)>,
}

impl Edge {
    pub(crate) const fn new(end: End, stream: Stream) -> Self {
        Self {
            raw: None,
            end,
            stream,
            waiting: VecDeque::new(),
            launching: Vec::new(),
            flying: VecDeque::new(),
        }
    }

    pub(crate) const fn is_open(&self) -> bool {
        self.raw.is_some()
    }

    pub(crate) fn open(&mut self, raw: Raw) {
        self.raw = Some(raw);
    }

    pub(crate) fn push(&mut self, transfer: Transfer) {
        self.waiting.push_back(transfer);
    }

    /// Nothing waits and nothing is on its way.
    pub(crate) fn is_still(&self) -> bool {
        self.waiting.is_empty() && self.launching.is_empty() && self.flying.is_empty()
    }

    /// Gives what has arrived since it was last asked, in order, and whether [`launch`](Self::launch) has something to do.
    pub(crate) fn poll(&mut self) -> Result<(Vec<Transfer>, bool)> {
        let Some(raw) = &self.raw else { return Ok((Vec::new(), false)) };
        let is_idle = match raw.is_idle() {
            // The other end may have finished and given it up. If it is used again, the error stands.
            Err(_) if self.is_still() => return Ok((Vec::new(), false)),
            known => known?,
        };
        if is_idle && !self.launching.is_empty() {
            let mark = self.stream.mark()?;
            self.flying.push_back((mark, std::mem::take(&mut self.launching)));
        }
        let mut done = Vec::new();
        while let Some((event, _)) = self.flying.front()
            && event.is_done()?
        {
            done.extend(self.flying.pop_front().into_iter().flat_map(|(_, transfers)| transfers));
        }
        Ok((done, is_idle && !self.waiting.is_empty()))
    }

    /// Hands what waits to NCCL; within a group of calls.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let Some(raw) = &self.raw else { return Ok(()) };
        let (peer, stream) = (1 - self.end.rank(), self.stream.handle());
        while let Some(transfer) = self.waiting.pop_front() {
            let (address, bytes) = (transfer.memory.address(), transfer.memory.bytes());
            // SAFETY: the memory is held in `launching` and `flying` until the stream is past it. Nobody changes a
            // block; what is received is handed out after that.
            let called = unsafe {
                match self.end {
                    End::Sender => raw.send(address, bytes, peer, stream),
                    End::Receiver => raw.receive(address, bytes, peer, stream),
                }
            };
            self.launching.push(transfer);
            called?;
        }
        Ok(())
    }

    /// What is given up when nobody needs it any more.
    pub(crate) fn into_raw(mut self) -> Option<Raw> {
        self.raw.take()
    }
}
