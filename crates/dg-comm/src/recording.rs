//! A communicator that writes down what it does, for traces and for tests of what overlaps.

use crate::communicator::forward_to_inner;
use crate::{Block, BlockShape, Call, Communicator, Deadline, Envelope, Pending, Receiving, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something that a rank did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it began, since the trace was made.
    pub begin: Duration,
    /// When it was over.
    pub end: Duration,
    /// Who did it; a rank of the communicator that holds all ranks.
    pub rank: usize,
    /// What it did.
    pub kind: EventKind,
    /// Operation, class and tag.
    pub envelope: Envelope,
    /// The other rank.
    pub peer: usize,
    /// Payload bytes.
    pub bytes: u64,
    /// Whether it went well.
    pub ok: bool,
}

/// What an [`Event`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A receive was posted.
    Post,
    /// A message was handed over.
    Send,
    /// A message was waited for.
    Wait,
}

/// The events of all ranks that share it; a clone is the same trace.
#[derive(Clone)]
pub struct Trace {
    begin: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Trace {
    /// No events yet; time begins now.
    pub fn new() -> Self {
        Self { begin: Instant::now(), events: Arc::default() }
    }

    /// What has happened so far. Events of one rank stand in their order.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its clock: the time since it was made.
    pub fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Whether it holds as many events as it can; later ones are lost.
    pub fn is_full(&self) -> bool {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).len() >= EVENTS_MAX
    }

    /// The events of one request so far; with `forget`, they make room for others.
    pub fn of_request(&self, request: u64, forget: bool) -> Vec<Event> {
        let is_of = |event: &Event| event.envelope.tag.request == request;
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        match forget {
            true => events.extract_if(.., |event| is_of(event)).collect(),
            false => events.iter().filter(|event| is_of(event)).copied().collect(),
        }
    }

    fn push(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < EVENTS_MAX {
            events.push(event);
        }
    }
}

/// Events that a trace holds; later ones are lost.
pub const EVENTS_MAX: usize = 1 << 22;

/// Writes every message of `inner` into a [`Trace`].
pub struct Recording<C> {
    inner: C,
    trace: Trace,
}

impl<C: Communicator> Recording<C> {
    /// Wraps `inner`.
    pub const fn new(inner: C, trace: Trace) -> Self {
        Self { inner, trace }
    }

    fn event(&self, kind: EventKind, call: &Call, peer: usize, bytes: u64) -> Event {
        let (now, rank) = (self.trace.now(), self.world_rank(self.rank()));
        let peer = if peer < self.size() { self.world_rank(peer) } else { peer };
        Event { begin: now, end: now, rank, kind, envelope: call.envelope(), peer, bytes, ok: true }
    }
}

impl<C: Communicator> Communicator for Recording<C> {
    forward_to_inner!();

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        let event = self.event(EventKind::Send, call, to, block.shape().bytes());
        let result = self.inner.send(to, call, block);
        self.trace.push(Event { end: self.trace.now(), ok: result.is_ok(), ..event });
        result
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        let event = self.event(EventKind::Post, call, from, shape.bytes());
        let pending = self.inner.post_recv(from, call, shape);
        self.trace.push(Event { end: self.trace.now(), ok: pending.is_ok(), ..event });
        let (trace, event) = (self.trace.clone(), Event { kind: EventKind::Wait, ..event });
        Ok(Pending::new(Watched { pending: pending?, trace, event }))
    }
}

struct Watched {
    pending: Pending,
    trace: Trace,
    event: Event,
}

impl Receiving for Watched {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        let begin = self.trace.now();
        let result = self.pending.wait(deadline);
        self.trace.push(Event { begin, end: self.trace.now(), ok: result.is_ok(), ..self.event });
        result
    }

    fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }
}
