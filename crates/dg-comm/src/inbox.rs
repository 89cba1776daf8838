//! Messages that have arrived and receives that wait for them, for implementations of [`crate::Communicator`]. No locks,
//! no waiting, no limit: an implementation sees to these.

use crate::{Block, Envelope};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What one rank has not read yet. Ranks are those of the communicator, below the `size` of [`new`](Self::new); the
/// methods panic on others.
pub struct Inbox {
    slots: HashMap<(usize, Envelope), Slot>,
    /// Messages that have arrived and were not taken, by sender.
    unread: Vec<usize>,
}

/// Messages of one sender under one envelope: the n-th message belongs to the n-th receive.
#[derive(Default)]
struct Slot {
    /// Messages that have arrived so far.
    arrived: u64,
    /// Receives that were posted so far.
    posted: u64,
    /// Places of receives that were given up; the next ones posted get them.
    free: BTreeSet<u64>,
    /// Receives that still wait.
    waiting: usize,
    /// Messages that were not taken.
    blocks: BTreeMap<u64, Block>,
}

impl Inbox {
    /// An empty one for messages of `size` senders.
    pub fn new(size: usize) -> Self {
        Self { slots: HashMap::new(), unread: vec![0; size] }
    }

    /// Messages of `from` that were not taken.
    pub fn unread(&self, from: usize) -> usize {
        self.unread[from]
    }

    /// A message of `from` has arrived.
    pub fn deliver(&mut self, from: usize, envelope: Envelope, block: Block) {
        let slot = self.slots.entry((from, envelope)).or_default();
        slot.blocks.insert(slot.arrived, block);
        slot.arrived += 1;
        self.unread[from] += 1;
    }

    /// Takes a place among the receives; the result is its ticket.
    pub fn post(&mut self, from: usize, envelope: Envelope) -> u64 {
        let slot = self.slots.entry((from, envelope)).or_default();
        slot.waiting += 1;
        slot.free.pop_first().unwrap_or_else(|| {
            slot.posted += 1;
            slot.posted - 1
        })
    }

    /// Gives the place back.
    pub fn unpost(&mut self, from: usize, envelope: Envelope, ticket: u64) {
        if let Some(slot) = self.slots.get_mut(&(from, envelope)) {
            slot.free.insert(ticket);
            slot.waiting -= 1;
            self.sweep(from, envelope);
        }
    }

    /// Whether [`take`](Self::take) would return the message of that ticket.
    pub fn has(&self, from: usize, envelope: Envelope, ticket: u64) -> bool {
        self.slots.get(&(from, envelope)).is_some_and(|slot| slot.blocks.contains_key(&ticket))
    }

    /// The message of that ticket, if it is here. Uses the ticket up.
    pub fn take(&mut self, from: usize, envelope: Envelope, ticket: u64) -> Option<Block> {
        let slot = self.slots.get_mut(&(from, envelope))?;
        let block = slot.blocks.remove(&ticket)?;
        slot.waiting -= 1;
        self.unread[from] -= 1;
        self.sweep(from, envelope);
        Some(block)
    }

    /// Tags never come back, so what is done with must not stay.
    fn sweep(&mut self, from: usize, envelope: Envelope) {
        let done = |slot: &Slot| slot.blocks.is_empty() && slot.waiting == 0;
        if self.slots.get(&(from, envelope)).is_some_and(done) {
            self.slots.remove(&(from, envelope));
        }
    }

    /// Number of messages that were not taken, and sender and envelope of the first of them in order.
    pub fn unread_of_all(&self) -> (usize, Option<(usize, Envelope)>) {
        let first = self.slots.iter().filter(|(_, slot)| !slot.blocks.is_empty()).map(|(key, _)| *key).min();
        (self.unread.iter().sum(), first)
    }

    /// Why a message of `from`, which has that number among all ranks, may be missing.
    pub fn hint(&self, from: usize, number: usize) -> String {
        let unread =
            self.slots.iter().filter(|((sender, _), slot)| *sender == from && !slot.blocks.is_empty());
        let mut others: Vec<_> = unread.map(|((_, envelope), _)| *envelope).collect();
        others.sort();
        let Some(first) = others.first() else {
            return format!(
                "nothing unread has come from rank {number}; it is slow, stuck, or not at this call"
            );
        };
        let more = match others.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("rank {number} is elsewhere: it has sent {first}{more}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Op, Tag};

    const ENVELOPE: Envelope = Envelope { group: 0, op: Op::Message, class: Class::RingKv, tag: Tag::new(1) };

    fn deliver(inbox: &mut Inbox, x: f32) {
        inbox.deliver(0, ENVELOPE, Block::from_f32(vec![x]));
    }

    fn take(inbox: &mut Inbox, ticket: u64) -> Option<f32> {
        inbox.take(0, ENVELOPE, ticket).map(|block| block.as_f32().unwrap()[0])
    }

    #[test]
    fn messages_go_to_receives_in_the_order_of_posting() {
        let mut inbox = Inbox::new(1);
        let (a, b) = (inbox.post(0, ENVELOPE), inbox.post(0, ENVELOPE));
        deliver(&mut inbox, 1.0);
        assert_eq!(take(&mut inbox, b), None);
        deliver(&mut inbox, 2.0);
        assert_eq!((inbox.unread(0), take(&mut inbox, b), take(&mut inbox, a)), (2, Some(2.0), Some(1.0)));
        assert!(inbox.slots.is_empty(), "nothing is kept");
    }

    #[test]
    fn a_place_that_is_given_up_goes_to_the_next() {
        let mut inbox = Inbox::new(1);
        let (a, b) = (inbox.post(0, ENVELOPE), inbox.post(0, ENVELOPE));
        inbox.unpost(0, ENVELOPE, a);
        deliver(&mut inbox, 1.0);
        deliver(&mut inbox, 2.0);
        assert_eq!(take(&mut inbox, b), Some(2.0));
        assert_eq!(inbox.unread_of_all(), (1, Some((0, ENVELOPE))));
        let c = inbox.post(0, ENVELOPE);
        assert_eq!(take(&mut inbox, c), Some(1.0));
        assert!(inbox.slots.is_empty(), "nothing is kept");
        let d = inbox.post(0, ENVELOPE);
        inbox.unpost(0, ENVELOPE, d);
        assert!(inbox.slots.is_empty(), "nothing is kept");
    }
}
