//! Ranks that are processes, connected by byte streams.

use super::error::Refused;
use super::frame::How;
use super::hello::Limits;
use super::line::Line;
use super::stream::Stream;
use super::world::{Amount, Failure, State, World};
use super::{reader, tls};
use dg_comm::{
    Block, BlockShape, Call, Class, CommError, Communicator, Counters, Deadline, Op, Pending, Place,
    Receiving, Result, Side, Tag,
};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One rank of several processes, each of which has a connection to each of the others.
///
/// Made by [`Rendezvous::connect`](super::Rendezvous::connect). A thread for each peer reads what comes, so that aborts
/// and deaths are noticed whatever this rank does, and another writes. Of what is sent from one rank to another a
/// bounded number of messages and bytes can be unread; then [`send`](Communicator::send) waits for the receiver. One
/// message can always be on its way, however large.
///
/// A rank whose connection ends before it has finished is dead for all. Who dies of that tells the others the first
/// cause. Dropping it without finishing tells them, too.
pub struct Sockets {
    world: Arc<World>,
    threads: Vec<JoinHandle<()>>,
    /// Handles to end the connections with.
    streams: Vec<Stream>,
    refused: Vec<Refused>,
    flush_max: Duration,
}

/// A connection that is set up.
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) tls: Option<rustls::Connection>,
    pub(super) limits: Limits,
}

/// What a rank is, apart from its connections.
pub(super) struct Identity {
    pub(super) me: usize,
    pub(super) first: usize,
    pub(super) names: Vec<String>,
    pub(super) limits: Limits,
    pub(super) flush_max: Duration,
}

/// What a thread does.
type Body = Box<dyn FnOnce() + Send>;

impl Sockets {
    /// Starts the threads. One connection per rank, none for this one.
    pub(super) fn start(
        identity: Identity,
        connections: Vec<Option<Connected>>,
        refused: Vec<Refused>,
    ) -> io::Result<Self> {
        let Identity { me, first, names, limits, flush_max } = identity;
        let of_peer = |connected: &Option<Connected>| {
            let limits = connected.as_ref().map_or(limits, |connected| connected.limits);
            (Some(limits), connected.as_ref().map(|_| Arc::new(Line::default())))
        };
        let peers = connections.iter().map(of_peer).collect();
        let world = Arc::new(World::new((me, first), names, limits, peers));
        let mut sockets = Self { world, threads: Vec::new(), streams: Vec::new(), refused, flush_max };
        for (rank, connected) in connections.into_iter().enumerate() {
            if let Some(connected) = connected {
                // Dropping what has been started ends it.
                sockets.connect(rank, connected)?;
            }
        }
        Ok(sockets)
    }

    fn connect(&mut self, rank: usize, Connected { stream, tls, .. }: Connected) -> io::Result<()> {
        let Some(line) = self.world.lines[rank].clone() else { return Ok(()) };
        let (reading, writing, hanging_up) = (stream.share()?, stream.share()?, stream.share()?);
        let world = self.world.clone();
        let me = self.world.number(self.world.me);
        let spawn = |what: &str, body: Body| {
            std::thread::Builder::new().name(format!("plane {me} {what} {rank}")).spawn(body)
        };
        self.streams.push(stream);
        let (read, write): (Body, Body) = match tls {
            None => (
                Box::new(move || reader::run(&world, rank, reading, &hanging_up)),
                Box::new(move || line.run(writing)),
            ),
            Some(tls) => {
                let (reading, writing) = tls::split(tls, reading, writing);
                (
                    Box::new(move || reader::run(&world, rank, reading, &hanging_up)),
                    Box::new(move || line.run(writing)),
                )
            }
        };
        self.threads.push(spawn("from", read)?);
        self.threads.push(spawn("to", write)?);
        Ok(())
    }

    /// Connections that were not let in while this rank was set up, the first few.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    fn in_range(&self, peer: usize, call: &Call) -> Result<()> {
        if peer < self.size() {
            return Ok(());
        }
        Err(invalid(call, format!("there is no rank {peer}, only 0 to {}", self.size() - 1)))
    }

    /// Waits for room for a message to `to`; with the state, so that nothing can take the room away.
    fn wait_for_room(&self, to: usize, call: &Call, bytes: u64) -> Result<MutexGuard<'_, State>> {
        let world = &*self.world;
        let place = Place::new(call, Side::Sending, Some(world.number(to)));
        let begin = Instant::now();
        let mut state = world.lock();
        let mut waited = false;
        let result = loop {
            let open = world.alive(place).and_then(|()| world.unfinished(&state, place, to));
            if let Err(error) = open {
                break Err(error);
            }
            let peer = &state.peers[to];
            let unread = match &world.lines[to] {
                Some(_) => peer.sent.since(peer.credited),
                // What a rank sends to itself is known when it is taken, and is in memory anyway.
                None => Amount { bytes: 0, ..peer.sent.since(peer.taken) },
            };
            if peer.limits.is_none_or(|limits| limits.admit(unread, bytes)) {
                break Ok(());
            }
            let left = call.deadline().left();
            if left.is_zero() {
                let hint = format!(
                    "rank {} has not read the last {} messages of this rank ({} bytes)",
                    world.number(to),
                    unread.messages,
                    unread.bytes
                );
                break Err(CommError::Deadline { place, waited: begin.elapsed(), hint });
            }
            waited = true;
            state = world.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        if waited {
            world.ledger.waited(call.envelope().class, world.number(to), begin.elapsed());
        }
        result.map(|()| state)
    }

    /// Waits until every peer has what was sent to it, or has ended.
    fn flush(&self) -> Result<()> {
        let (begin, end) = (Instant::now(), Instant::now() + self.flush_max);
        let mut state = self.world.lock();
        loop {
            let waits_for = |rank: &usize| !state.peers[*rank].seen && !state.peers[*rank].closed;
            let missing = self.world.peers().map(|(rank, _)| rank).find(waits_for);
            let Some(missing) = missing.filter(|_| !self.world.has_failed()) else { return Ok(()) };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let peer = Some(self.world.number(missing));
                let place = Place {
                    op: Op::Finish,
                    side: Side::Sending,
                    class: Class::Control,
                    tag: Tag::new(0),
                    peer,
                };
                let hint = "what was sent before the end may not have arrived there".to_owned();
                return Err(CommError::Deadline { place, waited: begin.elapsed(), hint });
            }
            state = self.world.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Communicator for Sockets {
    fn rank(&self) -> usize {
        self.world.me
    }

    fn size(&self) -> usize {
        self.world.size()
    }

    fn world_rank(&self, rank: usize) -> usize {
        self.world.number(rank)
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        self.in_range(to, call)?;
        let world = &*self.world;
        let (envelope, bytes) = (call.envelope(), block.shape().bytes());
        let Some(payload) = block.host().cloned() else {
            return Err(invalid(call, "carries host memory only; HostStaged brings it there".into()));
        };
        let mut state = self.wait_for_room(to, call, bytes)?;
        if state.peers[world.me].finished {
            return Err(invalid(call, "this rank has finished".into()));
        }
        let peer = &mut state.peers[to];
        if let Some(limits) = peer.limits.filter(|limits| bytes > limits.message_bytes_max) {
            let max = limits.message_bytes_max;
            return Err(invalid(call, format!("a message of {bytes} bytes; rank {to} takes at most {max}")));
        }
        peer.sent.add(bytes);
        match &world.lines[to] {
            // Under the lock, so that nothing comes after the end.
            Some(line) => {
                line.message(envelope, &block, payload);
                drop(state);
                world.ledger.sent(envelope.class, world.number(to), bytes);
            }
            None => {
                state.inbox.deliver(to, envelope, block);
                drop(state);
                world.arrived.notify_all();
            }
        }
        Ok(())
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        self.in_range(from, call)?;
        let ticket = self.world.lock().inbox.post(from, call.envelope());
        let world = self.world.clone();
        Ok(Pending::new(Posted { world, from, call: *call, shape, ticket: Some(ticket) }))
    }

    fn abort(&self, cause: &str) {
        let failure = Failure { rank: self.world.me, how: How::Aborted, cause: cause.to_owned() };
        self.world.fail(failure);
    }

    fn check(&self) -> Result<()> {
        self.world.alive(Place::alone(Op::Check))
    }

    /// Waits until the others have what was sent to them, for the time of [`Options::flush_max`](super::Options).
    ///
    /// # Errors
    /// Beside [`CommError::Unread`]: [`CommError::Deadline`] if a rank does not say that it has everything.
    fn finish(&self) -> Result<()> {
        let world = &*self.world;
        let mut state = world.lock();
        if std::mem::replace(&mut state.peers[world.me].finished, true) {
            return Ok(());
        }
        if !world.has_failed() {
            world.peers().for_each(|(_, line)| line.finished());
        }
        drop(state);
        world.wake();
        let flushed = self.flush();
        let (messages, first) = world.lock().inbox.unread_of_all();
        match first {
            None => flushed,
            Some((from, first)) => {
                let (rank, from) = (world.name(world.me), world.number(from));
                Err(CommError::Unread { rank, messages, from, first })
            }
        }
    }

    fn counters(&self) -> Counters {
        self.world.ledger.counters()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let me = self.world.me;
        let finished = self.world.lock().peers[me].finished;
        if !finished {
            let how = if std::thread::panicking() { How::Panicked } else { How::Lost };
            self.world.fail(Failure { rank: me, how, cause: String::new() });
        }
        self.world.left.store(true, Ordering::SeqCst);
        self.world.peers().for_each(|(_, line)| line.close());
        let end = Instant::now() + FAREWELL_MAX;
        self.world.peers().for_each(|(_, line)| line.wait(end));
        self.streams.iter().for_each(Stream::close);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A receive that was posted.
struct Posted {
    world: Arc<World>,
    from: usize,
    call: Call,
    shape: BlockShape,
    /// Its place among the receives of this envelope, until it has received.
    ticket: Option<u64>,
}

impl Receiving for Posted {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        let Some(ticket) = self.ticket else {
            return Err(invalid(&self.call, "this message was received before".into()));
        };
        let (world, from, envelope) = (&*self.world, self.from, self.call.envelope());
        let number = world.number(from);
        let place = Place::new(&self.call, Side::Receiving, Some(number));
        let begin = Instant::now();
        let mut state = world.lock();
        let mut waited = false;
        let result = loop {
            if let Err(error) = world.alive(place) {
                break Err(error);
            }
            if let Some(block) = world.take(&mut state, from, envelope, ticket) {
                break Ok(block);
            }
            // Its messages have come before its end.
            if let Err(error) = world.unfinished(&state, place, from) {
                break Err(error);
            }
            let left = deadline.left();
            if left.is_zero() {
                let hint = state.inbox.hint(from, number);
                break Err(CommError::Deadline { place, waited: begin.elapsed(), hint });
            }
            waited = true;
            state = world.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        if waited {
            world.ledger.waited(envelope.class, number, begin.elapsed());
        }
        let block = result?;
        self.ticket = None;
        if from == world.me {
            world.room.notify_all();
        }
        if block.shape() == self.shape {
            return Ok(block);
        }
        Err(CommError::Mismatch { place, expected: self.shape, got: block.shape() })
    }

    fn is_ready(&self) -> bool {
        let Some(ticket) = self.ticket else { return true };
        let state = self.world.lock();
        let over = self.world.has_failed() || state.peers[self.from].finished;
        over || state.inbox.has(self.from, self.call.envelope(), ticket)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.world.lock().inbox.unpost(self.from, self.call.envelope(), ticket);
        }
    }
}

fn invalid(call: &Call, what: String) -> CommError {
    CommError::Invalid { place: Place::new(call, Side::Neither, None), what }
}

/// How long the end of a rank waits for its last words to leave.
const FAREWELL_MAX: Duration = Duration::from_millis(300);
