//! What one rank knows of the others: messages that have arrived, credit, ends and failures.

use super::frame::{FrameError, How};
use super::hello::Limits;
use super::line::Line;
use super::pool::Pool;
use dg_comm::inbox::Inbox;
use dg_comm::{Block, CommError, Envelope, Gone, Ledger, Place, RankName, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// What the threads of one rank share.
pub(super) struct World {
    pub(super) me: usize,
    pub(super) first: usize,
    pub(super) names: Vec<String>,
    /// Of this rank; those of each peer are with its state.
    pub(super) limits: Limits,
    pub(super) ledger: Ledger,
    /// Memory of large messages.
    pub(super) pool: Arc<Pool>,
    /// Ways to the peers; none to this rank.
    pub(super) lines: Vec<Option<Arc<Line>>>,
    state: Mutex<State>,
    /// Something has changed for those who receive or finish.
    pub(super) arrived: Condvar,
    /// Something has changed for those who send.
    pub(super) room: Condvar,
    /// The first failure; it stays.
    failure: OnceLock<Failure>,
    /// Whether this rank is closing its connections.
    pub(super) left: AtomicBool,
}

/// Behind the lock. Whoever holds it may take the lock of a line, not the other way round.
pub(super) struct State {
    pub(super) inbox: Inbox,
    pub(super) peers: Vec<Peer>,
}

/// What is known of one rank; of this one, too.
#[derive(Default)]
pub(super) struct Peer {
    /// It will send no more.
    pub(super) finished: bool,
    /// It has everything that this rank sent before it finished.
    pub(super) seen: bool,
    /// Its connection has ended.
    pub(super) closed: bool,
    /// Handed over to it, and taken by its receives as far as is known.
    pub(super) sent: Amount,
    pub(super) credited: Amount,
    /// Come from it, taken by the receives here, and told to it.
    pub(super) received: Amount,
    pub(super) taken: Amount,
    pub(super) returned: Amount,
    /// What it lets be on its way.
    pub(super) limits: Option<Limits>,
}

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// Why the job is over.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) rank: usize,
    pub(super) how: How,
    pub(super) cause: String,
}

impl Amount {
    pub(super) const fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) const fn since(self, earlier: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(earlier.messages),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

impl Limits {
    /// What a receiver may have taken without telling yet.
    const fn untold(self) -> Amount {
        Amount { messages: self.in_flight_max as u64 / 4, bytes: self.unread_bytes_max / 4 }
    }

    /// Whether a message of `bytes` may join what is unread. One message may always be on its way, however large; the
    /// receiver's messages that it has taken and not told yet count as unread, and must not stop the sender for ever.
    pub(super) const fn admit(self, unread: Amount, bytes: u64) -> bool {
        let untold = self.untold();
        let room = unread.bytes.saturating_add(bytes) <= self.unread_bytes_max.saturating_add(untold.bytes);
        unread.messages < self.in_flight_max as u64 + untold.messages
            && (room || unread.bytes <= untold.bytes)
    }
}

impl Peer {
    /// Whether it has to be told what was taken.
    fn owes(&self, limits: Limits) -> bool {
        let (owed, untold) = (self.taken.since(self.returned), limits.untold());
        owed.messages > untold.messages || owed.bytes > untold.bytes
    }
}

impl World {
    pub(super) fn new(
        (me, first): (usize, usize),
        names: Vec<String>,
        limits: Limits,
        peers: Vec<(Option<Limits>, Option<Arc<Line>>)>,
    ) -> Self {
        let inbox = Inbox::new(names.len());
        let (of_peers, lines): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
        let peer = |limits| Peer { limits, ..Peer::default() };
        let state = State { inbox, peers: of_peers.into_iter().map(peer).collect() };
        let (arrived, room) = (Condvar::new(), Condvar::new());
        let (ledger, pool, failure) = (Ledger::default(), Arc::default(), OnceLock::new());
        Self {
            me,
            first,
            names,
            limits,
            ledger,
            pool,
            lines,
            state: Mutex::new(state),
            arrived,
            room,
            failure,
            left: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn size(&self) -> usize {
        self.names.len()
    }

    pub(super) fn name(&self, rank: usize) -> RankName {
        RankName { rank: self.number(rank), name: self.names[rank].clone() }
    }

    /// Of a rank among all ranks of the run.
    pub(super) const fn number(&self, rank: usize) -> usize {
        self.first + rank
    }

    /// Every peer's line with its rank.
    pub(super) fn peers(&self) -> impl Iterator<Item = (usize, &Line)> {
        let lines = self.lines.iter().enumerate();
        lines.filter_map(|(rank, line)| Some((rank, &**line.as_ref()?)))
    }

    /// Ends the job here, if nothing has yet, and tells the others why: they hear the true cause before they see the
    /// connections of those who gave up because of it close.
    pub(super) fn fail(&self, failure: Failure) {
        // Under the lock, so that a rank that ends because of the failure cannot close its lines before.
        let state = self.lock();
        if self.failure.set(failure.clone()).is_ok() {
            self.peers().for_each(|(_, line)| line.fail(&failure));
        }
        drop(state);
        self.arrived.notify_all();
        self.room.notify_all();
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Makes everybody who waits look again.
    pub(super) fn wake(&self) {
        // Whoever has looked and not yet gone to sleep holds the lock.
        drop(self.lock());
        self.arrived.notify_all();
        self.room.notify_all();
    }

    pub(super) fn alive(&self, place: Place) -> Result<()> {
        let Some(Failure { rank, how, cause }) = self.failure.get() else { return Ok(()) };
        let gone = |how| CommError::PeerGone { place, rank: self.name(*rank), how };
        Err(match how {
            How::Aborted => CommError::Aborted { place, by: self.name(*rank), cause: cause.clone() },
            How::Lost => gone(Gone::Lost),
            How::Panicked => gone(Gone::Panicked),
        })
    }

    pub(super) fn unfinished(&self, state: &State, place: Place, rank: usize) -> Result<()> {
        if !state.peers[rank].finished {
            return Ok(());
        }
        Err(CommError::PeerGone { place, rank: self.name(rank), how: Gone::Finished })
    }

    /// The message of that ticket, if it is here; its sender gets room for others.
    pub(super) fn take(
        &self,
        state: &mut State,
        from: usize,
        envelope: Envelope,
        ticket: u64,
    ) -> Option<Block> {
        let block = state.inbox.take(from, envelope, ticket)?;
        let peer = &mut state.peers[from];
        peer.taken.add(block.shape().bytes());
        if let Some(line) = self.lines[from].as_ref().filter(|_| peer.owes(self.limits)) {
            peer.returned = peer.taken;
            line.credit(peer.taken);
        }
        Some(block)
    }

    // What readers have read.

    /// Whether the message that was announced may come.
    pub(super) fn expect_message(&self, from: usize, bytes: u64) -> std::result::Result<(), FrameError> {
        let max = self.limits.message_bytes_max;
        if bytes > max {
            return Err(FrameError::Length { bytes, max });
        }
        let state = self.lock();
        let peer = &state.peers[from];
        if peer.finished {
            return Err(FrameError::AfterFinished);
        }
        let unread = peer.received.since(peer.taken);
        if self.limits.admit(unread, bytes) { Ok(()) } else { Err(FrameError::BeyondCredit { bytes }) }
    }

    pub(super) fn deliver(&self, from: usize, envelope: Envelope, block: Block) {
        let mut state = self.lock();
        state.peers[from].received.add(block.shape().bytes());
        // After a failure nobody reads any more.
        if !self.has_failed() {
            state.inbox.deliver(from, envelope, block);
        }
        drop(state);
        self.arrived.notify_all();
    }

    pub(super) fn credit(&self, from: usize, taken: Amount) -> std::result::Result<(), FrameError> {
        let mut state = self.lock();
        let peer = &mut state.peers[from];
        let (old, sent) = (peer.credited, peer.sent);
        let fits = |old: u64, new: u64, sent: u64| old <= new && new <= sent;
        if !fits(old.messages, taken.messages, sent.messages) || !fits(old.bytes, taken.bytes, sent.bytes) {
            return Err(FrameError::Credit { claims: taken.messages });
        }
        peer.credited = taken;
        drop(state);
        self.room.notify_all();
        Ok(())
    }

    pub(super) fn finished(&self, from: usize) -> std::result::Result<(), FrameError> {
        if std::mem::replace(&mut self.lock().peers[from].finished, true) {
            return Err(FrameError::AfterFinished);
        }
        if let Some(line) = &self.lines[from] {
            line.seen();
        }
        self.wake();
        Ok(())
    }

    pub(super) fn seen(&self, from: usize) -> std::result::Result<(), FrameError> {
        let mut state = self.lock();
        if !state.peers[self.me].finished || std::mem::replace(&mut state.peers[from].seen, true) {
            return Err(FrameError::Seen);
        }
        drop(state);
        self.wake();
        Ok(())
    }

    /// The connection has ended: in order if the peer has finished, else it is dead.
    pub(super) fn closed(&self, from: usize, reason: &dyn std::fmt::Display) {
        let finished = {
            let mut state = self.lock();
            let peer = &mut state.peers[from];
            peer.closed = true;
            peer.finished
        };
        if self.left.load(Ordering::SeqCst) {
            // It was this rank that closed it.
            self.wake();
            return;
        }
        if finished {
            self.wake();
            return;
        }
        if !self.has_failed() {
            tracing::warn!(rank = self.number(self.me), peer = %self.names[from], %reason, "a rank is lost");
        }
        self.fail(Failure { rank: from, how: How::Lost, cause: String::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { in_flight_max: 64, unread_bytes_max: 1000, message_bytes_max: 1 << 30 };

    const fn unread(messages: u64, bytes: u64) -> Amount {
        Amount { messages, bytes }
    }

    #[test]
    fn as_many_messages_as_promised_are_admitted_whatever_was_not_told() {
        assert!(LIMITS.admit(unread(63 + 16, 0), 0));
        assert!(!LIMITS.admit(unread(64 + 16, 0), 0));
        assert!(LIMITS.admit(unread(1, 999), 251) && !LIMITS.admit(unread(1, 999), 252));
    }

    /// A receiver that has taken everything may keep some of it untold: even then the largest message goes.
    #[test]
    fn one_message_is_always_admitted() {
        let mut peer = Peer::default();
        for bytes in [1, 249] {
            peer.taken.add(bytes);
        }
        assert!(!peer.owes(LIMITS) && LIMITS.admit(peer.taken.since(peer.returned), 1 << 30));
        peer.taken.add(1);
        assert!(peer.owes(LIMITS) && !LIMITS.admit(peer.taken.since(peer.returned), 1 << 30));
    }
}
