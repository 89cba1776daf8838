//! Ranks that are threads of one process: the receiver gets the sender's memory.

use crate::communicator::{expect, invalid};
use crate::inbox::Inbox;
use crate::{
    Block, BlockShape, Call, CommError, Communicator, Counters, Deadline, Gone, IN_FLIGHT_MIN, Ledger, Op,
    Pending, Place, RankName, Receiving, Result, Side,
};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// One rank of a group of threads.
///
/// Blocks are handed over without copying. From one rank to another at most [`Options::in_flight_max`] messages can be
/// unread; then [`send`](Communicator::send) waits for the receiver.
pub struct InProcess {
    me: Arc<Me>,
}

/// How the ranks are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// What each rank is called in errors; one per rank.
    pub names: Vec<String>,
    /// Number of the first rank among all ranks of the run, of which these may be a part: 0, unless they are.
    /// [`world_rank`](Communicator::world_rank), counters and errors count from here.
    pub first: usize,
    /// Unread messages from one rank to another before the sender waits; at least [`IN_FLIGHT_MIN`].
    pub in_flight_max: usize,
}

impl Options {
    /// `size` ranks called `rank 0`, `rank 1`, …
    pub fn new(size: usize) -> Self {
        Self::ranks(0..size)
    }

    /// The ranks that have these numbers among all ranks of a run, each called by its number.
    pub fn ranks(numbers: Range<usize>) -> Self {
        let first = numbers.start;
        let names = numbers.map(|rank| format!("rank {rank}")).collect();
        Self { names, first, in_flight_max: IN_FLIGHT_MAX }
    }
}

/// Unread messages from one rank to another, unless [`Options`] say otherwise.
pub const IN_FLIGHT_MAX: usize = 256;

impl InProcess {
    /// `size` connected ranks; the i-th is rank i.
    pub fn group(size: usize) -> Vec<Self> {
        Self::with(Options::new(size))
    }

    /// Connected ranks, one per name.
    pub fn with(options: Options) -> Vec<Self> {
        let size = options.names.len();
        let world = Arc::new(World {
            boxes: (0..size).map(|_| Mailbox::new(size)).collect(),
            failure: OnceLock::new(),
            finished: (0..size).map(|_| AtomicBool::new(false)).collect(),
            names: options.names,
            first: options.first,
            in_flight_max: options.in_flight_max.max(IN_FLIGHT_MIN),
        });
        let rank = |rank| Self { me: Arc::new(Me { world: world.clone(), rank, ledger: Ledger::default() }) };
        (0..size).map(rank).collect()
    }
}

impl Communicator for InProcess {
    fn rank(&self) -> usize {
        self.me.rank
    }

    fn size(&self) -> usize {
        self.me.world.boxes.len()
    }

    fn world_rank(&self, rank: usize) -> usize {
        self.me.world.number(rank)
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        self.in_range(to, call)?;
        let Me { world, rank, ledger } = &*self.me;
        let number = world.number(to);
        let place = Place::new(call, Side::Sending, Some(number));
        let (class, bytes) = (call.envelope().class, block.shape().bytes());
        let mailbox = &world.boxes[to];
        let begin = Instant::now();
        let mut inbox = mailbox.lock();
        let mut waited = false;
        let result = loop {
            if let Err(error) = world.alive(place).and_then(|()| world.unfinished(place, to)) {
                break Err(error);
            }
            if inbox.unread(*rank) < world.in_flight_max {
                inbox.deliver(*rank, call.envelope(), block);
                break Ok(());
            }
            let left = call.deadline().left();
            if left.is_zero() {
                let unread = inbox.unread(*rank);
                let hint = format!("rank {number} has not read the last {unread} messages of this rank");
                break Err(CommError::Deadline { place, waited: begin.elapsed(), hint });
            }
            waited = true;
            inbox = mailbox.room.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(inbox);
        if waited {
            ledger.waited(class, number, begin.elapsed());
        }
        result?;
        mailbox.arrived.notify_all();
        if to != *rank {
            ledger.sent(class, number, bytes);
        }
        Ok(())
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        self.in_range(from, call)?;
        let ticket = self.me.world.boxes[self.me.rank].lock().post(from, call.envelope());
        Ok(Pending::new(Posted { me: self.me.clone(), from, call: *call, shape, ticket: Some(ticket) }))
    }

    fn abort(&self, cause: &str) {
        self.me.world.fail(Failure::Aborted { by: self.me.rank, cause: cause.to_owned() });
    }

    fn check(&self) -> Result<()> {
        self.me.world.alive(Place::alone(Op::Check))
    }

    fn finish(&self) -> Result<()> {
        let Me { world, rank, .. } = &*self.me;
        if world.finished[*rank].swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        world.wake();
        let (messages, first) = world.boxes[*rank].lock().unread_of_all();
        match first {
            None => Ok(()),
            Some((from, first)) => {
                Err(CommError::Unread { rank: world.name(*rank), messages, from: world.number(from), first })
            }
        }
    }

    fn counters(&self) -> Counters {
        self.me.ledger.counters()
    }
}

impl InProcess {
    fn in_range(&self, peer: usize, call: &Call) -> Result<()> {
        if peer < self.size() {
            return Ok(());
        }
        Err(invalid(call, format!("there is no rank {peer}, only 0 to {}", self.size() - 1)))
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let Me { world, rank, .. } = &*self.me;
        if !world.finished[*rank].load(Ordering::SeqCst) {
            let how = if std::thread::panicking() { Gone::Panicked } else { Gone::Lost };
            world.fail(Failure::Gone { rank: *rank, how });
        }
    }
}

/// What handles share with their communicator. They do not keep the rank alive: dropping [`InProcess`] ends it.
struct Me {
    world: Arc<World>,
    rank: usize,
    ledger: Ledger,
}

/// What all ranks share.
struct World {
    boxes: Vec<Mailbox>,
    /// The first failure; it stays.
    failure: OnceLock<Failure>,
    finished: Vec<AtomicBool>,
    names: Vec<String>,
    first: usize,
    in_flight_max: usize,
}

enum Failure {
    Aborted { by: usize, cause: String },
    Gone { rank: usize, how: Gone },
}

impl World {
    fn name(&self, rank: usize) -> RankName {
        RankName { rank: self.number(rank), name: self.names[rank].clone() }
    }

    /// Of a rank among all ranks of the run.
    fn number(&self, rank: usize) -> usize {
        self.first + rank
    }

    fn fail(&self, failure: Failure) {
        if self.failure.set(failure).is_ok() {
            self.wake();
        }
    }

    /// Makes everybody who waits look again.
    fn wake(&self) {
        for mailbox in &self.boxes {
            // Whoever has looked and not yet gone to sleep holds the lock.
            drop(mailbox.lock());
            mailbox.arrived.notify_all();
            mailbox.room.notify_all();
        }
    }

    fn alive(&self, place: Place) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(Failure::Aborted { by, cause }) => {
                Err(CommError::Aborted { place, by: self.name(*by), cause: cause.clone() })
            }
            Some(Failure::Gone { rank, how }) => {
                Err(CommError::PeerGone { place, rank: self.name(*rank), how: *how })
            }
        }
    }

    fn unfinished(&self, place: Place, peer: usize) -> Result<()> {
        if self.finished[peer].load(Ordering::SeqCst) {
            return Err(CommError::PeerGone { place, rank: self.name(peer), how: Gone::Finished });
        }
        Ok(())
    }
}

/// Messages for one rank. Only one of these locks is held at a time.
struct Mailbox {
    inbox: Mutex<Inbox>,
    /// A message has come, or the world has changed.
    arrived: Condvar,
    /// A message was taken, or the world has changed.
    room: Condvar,
}

impl Mailbox {
    fn new(size: usize) -> Self {
        Self { inbox: Mutex::new(Inbox::new(size)), arrived: Condvar::new(), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A receive that was posted.
struct Posted {
    me: Arc<Me>,
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
        let Me { world, rank, ledger } = &*self.me;
        let (from, envelope) = (self.from, self.call.envelope());
        let number = world.number(from);
        let place = Place::new(&self.call, Side::Receiving, Some(number));
        let mailbox = &world.boxes[*rank];
        let begin = Instant::now();
        let mut inbox = mailbox.lock();
        let mut waited = false;
        let result = loop {
            if let Err(error) = world.alive(place) {
                break Err(error);
            }
            // Before the look into the inbox, so that the last message of a rank that finishes is not missed.
            let gone = world.unfinished(place, from);
            if let Some(block) = inbox.take(from, envelope, ticket) {
                break Ok(block);
            }
            if let Err(error) = gone {
                break Err(error);
            }
            let left = deadline.left();
            if left.is_zero() {
                let hint = inbox.hint(from, number);
                break Err(CommError::Deadline { place, waited: begin.elapsed(), hint });
            }
            waited = true;
            inbox = mailbox.arrived.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(inbox);
        if waited {
            ledger.waited(envelope.class, number, begin.elapsed());
        }
        let block = result?;
        self.ticket = None;
        mailbox.room.notify_all();
        expect(&self.call, number, self.shape, block.shape())?;
        Ok(block)
    }

    fn is_ready(&self) -> bool {
        let Me { world, rank, .. } = &*self.me;
        let Some(ticket) = self.ticket else { return true };
        let over = world.failure.get().is_some() || world.finished[self.from].load(Ordering::SeqCst);
        over || world.boxes[*rank].lock().has(self.from, self.call.envelope(), ticket)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.me.world.boxes[self.me.rank].lock().unpost(self.from, self.call.envelope(), ticket);
        }
    }
}
