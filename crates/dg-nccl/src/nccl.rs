//! Ranks on NVIDIA GPUs.

use crate::driver::Context;
use crate::engine::{Engine, Shared, State, is_finished};
use crate::library::Library;
use crate::memory::{Arena, Memory, Pool, Upload};
use crate::ticket::{Record, TICKET, Ticket};
use dg_comm::{
    Block, BlockShape, Call, Class, CommError, Communicator, Counters, Deadline, Ledger, Op, Pending, Place,
    Receiving, Reduce, Result, Side, Tag,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What can be chosen for [`Nccl`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long the end of a rank waits for what it has sent to arrive.
    pub flush_max: Duration,
    /// Bytes of one sender that may lie on this device without having been asked for. One message always may.
    pub untaken_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { flush_max: Duration::from_secs(30), untaken_bytes_max: 1 << 30 }
    }
}

/// One of several ranks that each have a GPU of their own. Values travel from device to device; the host's communicator
/// inside carries what is said about them.
///
/// Every value that is received lies on the device. Blocks of the host may be sent as well; they are uploaded. Sums are
/// computed on the host, as [`dg_comm::HostStaged`] does. A message without values travels on the host alone.
pub struct Nccl {
    inner: Arc<dyn Communicator>,
    shared: Arc<Shared>,
    upload: Upload,
    ledger: Arc<Ledger>,
    /// Held from the announcement of a message until it is handed over, so that both ends have one order.
    order: Vec<Mutex<()>>,
    thread: Option<JoinHandle<()>>,
    options: Options,
    finished: Mutex<bool>,
}

impl Nccl {
    /// Wraps `inner`, which must hold all ranks of the job: groups are made of what this returns. Received messages come
    /// to lie in `arena`, or in memory of the driver.
    ///
    /// # Errors
    /// Those of [`Communicator::post_recv`]; [`CommError::Invalid`] if no thread can be started.
    pub fn new(
        inner: Arc<dyn Communicator>,
        library: Library,
        context: &Context,
        arena: Option<Arc<dyn Arena>>,
        options: Options,
    ) -> Result<Self> {
        let size = inner.size();
        let shared = Arc::new(Shared::new(size));
        let arena = arena.unwrap_or_else(|| Arc::new(Pool::new(context.clone())));
        let thread = if size < 2 {
            None
        } else {
            let gpu = (library, context.clone());
            let engine =
                Engine::new(inner.clone(), shared.clone(), gpu, arena.clone(), options.untaken_bytes_max)?;
            let name = format!("nccl {}", inner.world_rank(inner.rank()));
            let started = std::thread::Builder::new().name(name).spawn(move || engine.run());
            Some(started.map_err(|error| CommError::Invalid {
                place: Place::alone(Op::Check),
                what: format!("no thread for NCCL: {error}"),
            })?)
        };
        let order = (0..size).map(|_| Mutex::default()).collect();
        let (upload, ledger, finished) = (Upload(arena), Arc::default(), Mutex::default());
        Ok(Self { inner, shared, upload, ledger, order, thread, options, finished })
    }

    /// The values of a block on this device.
    fn memory(&self, call: &Call, block: &Block) -> Result<Arc<Memory>> {
        let Some(memory) = block.device() else {
            let bytes = block.host().cloned().unwrap_or_default();
            let uploaded = self.upload.memory(block.shape(), &bytes);
            return uploaded.map_err(|error| invalid(call, error.to_string()));
        };
        let memory = Arc::clone(memory) as Arc<dyn std::any::Any + Send + Sync>;
        memory
            .downcast()
            .map_err(|_| invalid(call, "the block lies on a device that NCCL does not know".into()))
    }

    /// Waits until few enough messages to `to` are on their way.
    fn wait_for_room(&self, to: usize, call: &Call) -> Result<MutexGuard<'_, State>> {
        let place = Place::new(call, Side::Sending, Some(self.world_rank(to)));
        let begin = Instant::now();
        let mut state = self.shared.lock();
        let mut waited = false;
        let result = loop {
            if let Err(error) = self.inner.check() {
                break Err(at(place, error));
            }
            if let Some(error) = &state.peers[to].closed {
                break Err(at(place, error.clone()));
            }
            if state.peers[to].unarrived < UNARRIVED_MAX {
                break Ok(());
            }
            let left = call.deadline().left();
            if left.is_zero() {
                let hint = format!(
                    "rank {} has no room for the last {} messages of this rank",
                    self.world_rank(to),
                    state.peers[to].unarrived
                );
                break Err(CommError::Deadline { place, waited: begin.elapsed(), hint });
            }
            waited = true;
            state = self.shared.wait(state, left.min(LOOK_AGAIN));
        };
        if waited {
            self.ledger.waited(call.envelope().class, self.world_rank(to), begin.elapsed());
        }
        result.map(|()| state)
    }

    /// Announces a message to another rank and hands it to the thread; gives its number.
    fn announce(&self, to: usize, call: &Call, shape: BlockShape, memory: Arc<Memory>) -> Result<u64> {
        let _ordered = lock(&self.order[to]);
        let serial = {
            let mut state = self.wait_for_room(to, call)?;
            state.peers[to].unarrived += 1;
            state.number(to)
        };
        let record = Record::Data { serial, shape };
        // There is room for it, few of them being on their way, unless tickets that nobody reads have filled the plane.
        let said = self.inner.send(to, &Record::call(call.deadline()), record.pack());
        let mut state = self.shared.lock();
        if let Err(error) = said {
            state.peers[to].unarrived -= 1;
            return Err(at(Place::new(call, Side::Sending, Some(self.world_rank(to))), error));
        }
        state.hand_over(to, serial, memory);
        drop(state);
        self.shared.changed();
        Ok(serial)
    }

    /// Waits until everything that was sent has arrived, and until the thread has read what the others have said so far.
    fn flush(&self) -> Result<()> {
        let (begin, end) = (Instant::now(), Instant::now() + self.options.flush_max);
        let mut state = self.shared.lock();
        // The reading that goes on may be past something.
        let heard = state.heard + 2;
        loop {
            let is_lost =
                state.peers.iter().any(|peer| peer.closed.as_ref().is_some_and(|error| !is_finished(error)));
            let has_heard = state.is_over || state.heard >= heard;
            if (state.is_still() && has_heard) || is_lost || self.inner.check().is_err() {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let late = |peer: &crate::engine::Peer| peer.closed.is_none() && peer.unarrived > 0;
                let peer = state.peers.iter().position(late).map(|rank| self.world_rank(rank));
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
            state = self.shared.wait(state, left.min(LOOK_AGAIN));
        }
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn world_rank(&self, rank: usize) -> usize {
        self.inner.world_rank(rank)
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        let (me, shape) = (self.rank(), block.shape());
        if to >= self.size() || *lock(&self.finished) {
            // It knows the words for that.
            return self.inner.send(to, call, Block::empty(shape.dtype));
        }
        if to == me {
            let serial = {
                let mut state = self.shared.lock();
                let serial = state.number(me);
                state.own.insert(serial, block);
                serial
            };
            let sent = self.inner.send(me, call, Ticket { shape, serial }.pack());
            return sent.inspect_err(|_| drop(self.shared.lock().own.remove(&serial)));
        }
        let serial = if block.is_empty() {
            0
        } else {
            let memory = self.memory(call, &block)?;
            self.announce(to, call, shape, memory)?
        };
        let sent = self.inner.send(to, call, Ticket { shape, serial }.pack());
        if sent.is_ok() {
            self.ledger.sent(call.envelope().class, self.world_rank(to), shape.bytes());
        } else if serial != 0 {
            self.shared.lock().peers[to].void.push_back(serial);
            self.shared.changed();
        }
        sent
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        let ticket = self.inner.post_recv(from, call, TICKET)?;
        let world = (self.inner.clone(), self.shared.clone());
        let stage = Mutex::new(Stage::Ticket(ticket));
        Ok(Pending::new(Posted { world, ledger: self.ledger.clone(), from, call: *call, shape, stage }))
    }

    fn abort(&self, cause: &str) {
        self.inner.abort(cause);
        self.shared.changed();
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    /// Waits until the others have what was sent to them, for the time of [`Options::flush_max`].
    ///
    /// # Errors
    /// Beside those of the communicator inside: [`CommError::Deadline`] if a rank does not have everything.
    fn finish(&self) -> Result<()> {
        if std::mem::replace(&mut *lock(&self.finished), true) {
            return Ok(());
        }
        let flushed = self.flush();
        self.shared.be_silent();
        self.inner.finish().and(flushed)
    }

    fn counters(&self) -> Counters {
        self.ledger.counters()
    }

    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        let shape = block.shape();
        let host = match block.device() {
            None => block,
            Some(memory) => {
                let bytes = memory.to_host().map_err(|error| invalid(call, error))?;
                Block::from_bytes(shape.dtype, bytes)
                    .ok_or_else(|| invalid(call, format!("no whole {shape}")))?
            }
        };
        let sum = self.inner.reduce(call, how, host)?;
        let me = self.rank();
        for other in (0..self.size()).filter(|other| *other != me) {
            self.ledger.sent(call.envelope().class, self.world_rank(other), shape.bytes());
        }
        if sum.is_empty() {
            return Ok(sum);
        }
        Ok(Block::on_device(shape, self.memory(call, &sum)?))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.shared.leave();
        let Some(thread) = self.thread.take() else { return };
        let end = Instant::now() + LEAVE_MAX;
        let mut state = self.shared.lock();
        while !state.is_over && !thread.is_finished() && Instant::now() < end {
            state = self.shared.wait(state, LOOK_AGAIN);
        }
        let is_over = state.is_over || thread.is_finished();
        drop(state);
        if is_over {
            let _ = thread.join();
        } else {
            STUCK.store(true, Ordering::Relaxed);
            tracing::error!("NCCL does not give up its communicators; this process should end");
        }
    }
}

/// Whether NCCL did not give up the communicators of an earlier [`Nccl`] of this process, which should end then.
pub fn is_stuck() -> bool {
    STUCK.load(Ordering::Relaxed)
}

static STUCK: AtomicBool = AtomicBool::new(false);

/// A receive that was posted.
struct Posted {
    world: (Arc<dyn Communicator>, Arc<Shared>),
    ledger: Arc<Ledger>,
    from: usize,
    call: Call,
    shape: BlockShape,
    stage: Mutex<Stage>,
}

/// How far it is.
enum Stage {
    /// Its ticket has not been read.
    Ticket(Pending),
    /// Its data is on its way.
    Data(Ticket),
    /// It cannot be received.
    Failed(CommError),
    /// It was received.
    Done,
}

impl Posted {
    fn place(&self) -> Place {
        Place::new(&self.call, Side::Receiving, Some(self.world.0.world_rank(self.from)))
    }

    /// What its ticket says.
    fn read(&self, ticket: &Block) -> Stage {
        let place = self.place();
        let Some(ticket) = Ticket::unpack(ticket) else {
            let what = "no ticket of this protocol; hint: run the same version on all ranks".to_owned();
            return Stage::Failed(CommError::Invalid { place, what });
        };
        if ticket.shape == self.shape {
            return Stage::Data(ticket);
        }
        let mut state = self.world.1.lock();
        if self.from == self.world.0.rank() {
            state.own.remove(&ticket.serial);
        } else if ticket.shape.len > 0 {
            state.discard(self.from, ticket.serial);
        }
        Stage::Failed(CommError::Mismatch { place, expected: self.shape, got: ticket.shape })
    }

    /// The message, if its data is here.
    fn take(&self, state: &mut State, ticket: Ticket) -> Option<Block> {
        if self.from == self.world.0.rank() {
            return state.own.remove(&ticket.serial);
        }
        if ticket.shape.len == 0 {
            return Some(Block::empty(ticket.shape.dtype));
        }
        let memory = state.take(self.from, ticket.serial)?;
        Some(Block::on_device(ticket.shape, memory))
    }

    fn wait_for_data(&self, ticket: Ticket, deadline: Deadline) -> Result<Block> {
        let begin = Instant::now();
        let (inner, shared) = (&self.world.0, &self.world.1);
        let mut state = shared.lock();
        loop {
            if let Err(error) = inner.check() {
                return Err(at(self.place(), error));
            }
            if let Some(block) = self.take(&mut state, ticket) {
                return Ok(block);
            }
            if let Some(error) = &state.peers[self.from].closed {
                return Err(at(self.place(), error.clone()));
            }
            let left = deadline.left();
            if left.is_zero() {
                let hint = "its ticket has come, its data is still on the way between the devices".to_owned();
                return Err(CommError::Deadline { place: self.place(), waited: begin.elapsed(), hint });
            }
            state = shared.wait(state, left.min(LOOK_AGAIN));
        }
    }
}

impl Receiving for Posted {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        let (is_ready, begin) = (self.is_ready(), Instant::now());
        let result = self.wait_for_all(deadline);
        if !is_ready {
            let number = self.world.0.world_rank(self.from);
            self.ledger.waited(self.call.envelope().class, number, begin.elapsed());
        }
        result
    }

    fn is_ready(&self) -> bool {
        let mut stage = lock(&self.stage);
        if let Stage::Ticket(pending) = &mut *stage {
            if !pending.is_ready() {
                return false;
            }
            match pending.wait(Deadline::after(Duration::ZERO)) {
                Ok(ticket) => *stage = self.read(&ticket),
                Err(CommError::Deadline { .. }) => return false,
                // It says so again.
                Err(_) => return true,
            }
        }
        let Stage::Data(ticket) = &*stage else { return true };
        let state = self.world.1.lock();
        self.from == self.world.0.rank()
            || ticket.shape.len == 0
            || state.is_here(self.from, ticket.serial)
            || state.peers[self.from].closed.is_some()
            || self.world.0.check().is_err()
    }
}

impl Posted {
    fn wait_for_all(&mut self, deadline: Deadline) -> Result<Block> {
        let stage = std::mem::replace(here(&mut self.stage), Stage::Done);
        let stage = match stage {
            Stage::Ticket(mut pending) => match pending.wait(deadline) {
                Ok(ticket) => self.read(&ticket),
                Err(error) => {
                    *here(&mut self.stage) = Stage::Ticket(pending);
                    return Err(error);
                }
            },
            stage => stage,
        };
        match stage {
            Stage::Data(ticket) => {
                let result = self.wait_for_data(ticket, deadline);
                if matches!(result, Err(CommError::Deadline { .. })) {
                    *here(&mut self.stage) = Stage::Data(ticket);
                }
                result
            }
            Stage::Failed(error) => Err(error),
            Stage::Ticket(_) | Stage::Done => {
                Err(invalid(&self.call, "this message was received before".into()))
            }
        }
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        let stage = here(&mut self.stage);
        if let Stage::Data(ticket) = stage
            && ticket.shape.len > 0
            && self.from != self.world.0.rank()
        {
            self.world.1.lock().discard(self.from, ticket.serial);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn here<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// The error at another place.
fn at(place: Place, error: CommError) -> CommError {
    match error {
        CommError::Aborted { by, cause, .. } => CommError::Aborted { place, by, cause },
        CommError::PeerGone { rank, how, .. } => CommError::PeerGone { place, rank, how },
        CommError::Deadline { waited, hint, .. } => CommError::Deadline { place, waited, hint },
        CommError::Invalid { what, .. } => CommError::Invalid { place, what },
        other => other,
    }
}

fn invalid(call: &Call, what: String) -> CommError {
    CommError::Invalid { place: Place::new(call, Side::Neither, None), what }
}

/// Messages that are on their way to one rank, on the devices. Their announcements and the answers to them must find
/// room in the host's plane at once ([`dg_comm::IN_FLIGHT_MIN`]), so that its thread never waits.
const UNARRIVED_MAX: u64 = dg_comm::IN_FLIGHT_MIN as u64 / 2 - 4;
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LEAVE_MAX: Duration = Duration::from_secs(10);
