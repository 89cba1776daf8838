//! Bytes, messages and waiting time per message class and peer.

use crate::Class;
use dg_core::report::Sent;
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What passed between one rank and one peer in one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payload bytes handed over to the peer.
    pub bytes: u64,
    /// Messages handed over to the peer; those without values count too.
    pub messages: u64,
    /// Time spent waiting for the peer: for its messages, or for room in its queue.
    pub wait: Duration,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.messages += other.messages;
        self.wait += other.wait;
    }
}

/// What a rank has sent and how long it has waited, since its communicator was made; of several jobs, if those of
/// their communicators were added up.
///
/// Peers are ranks of the communicator that holds all ranks; its groups share the counters. What a rank sends to
/// itself crosses no link and is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(Class, usize), Tally>);

impl Counters {
    /// One class and peer.
    pub fn tally(&self, class: Class, peer: usize) -> Tally {
        self.0.get(&(class, peer)).copied().unwrap_or_default()
    }

    /// Everything that was counted.
    pub fn iter(&self) -> impl Iterator<Item = (Class, usize, Tally)> {
        self.0.iter().map(|((class, peer), tally)| (*class, *peer, *tally))
    }

    /// Sum over the peers of one class.
    pub fn class(&self, class: Class) -> Tally {
        sum(self.iter().filter(|(other, ..)| *other == class))
    }

    /// Sum over all classes and peers.
    pub fn total(&self) -> Tally {
        sum(self.iter())
    }

    /// For the report: what was sent, by class name. A class in which nothing was sent is left out.
    pub fn sent(&self) -> BTreeMap<String, Sent> {
        let mut by_class: BTreeMap<String, Sent> = BTreeMap::new();
        for (class, peer, tally) in self.iter().filter(|(.., tally)| tally.messages > 0) {
            let sent = by_class.entry(class.name().to_owned()).or_default();
            sent.bytes += tally.bytes;
            sent.messages += tally.messages;
            *sent.to.entry(u32::try_from(peer).unwrap_or(u32::MAX)).or_default() += tally.bytes;
        }
        by_class
    }

    /// What came after `earlier`, an older state of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let rest = self.iter().map(|(class, peer, now)| {
            let then = earlier.tally(class, peer);
            let bytes = now.bytes.saturating_sub(then.bytes);
            let messages = now.messages.saturating_sub(then.messages);
            ((class, peer), Tally { bytes, messages, wait: now.wait.saturating_sub(then.wait) })
        });
        Self(rest.filter(|(_, tally)| *tally != Tally::default()).collect())
    }
}

impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, other: &Self) {
        for (class, peer, tally) in other.iter() {
            *self.0.entry((class, peer)).or_default() += tally;
        }
    }
}

fn sum(tallies: impl Iterator<Item = (Class, usize, Tally)>) -> Tally {
    tallies.fold(Tally::default(), |mut sum, (.., tally)| {
        sum += tally;
        sum
    })
}

/// Counters that grow; for implementations of [`crate::Communicator`].
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Counters>);

impl Ledger {
    /// A message of `bytes` was handed over to `peer`.
    pub fn sent(&self, class: Class, peer: usize, bytes: u64) {
        self.add(class, peer, Tally { bytes, messages: 1, wait: Duration::ZERO });
    }

    /// This rank waited for `peer`.
    pub fn waited(&self, class: Class, peer: usize, wait: Duration) {
        self.add(class, peer, Tally { wait, ..Tally::default() });
    }

    /// The state of this moment.
    pub fn counters(&self) -> Counters {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, class: Class, peer: usize, tally: Tally) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).0.entry((class, peer)).or_default() += tally;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_classes_and_peers() {
        let ledger = Ledger::default();
        ledger.sent(Class::RingKv, 1, 100);
        let then = ledger.counters();
        ledger.sent(Class::RingKv, 1, 10);
        ledger.sent(Class::RingKv, 2, 0);
        ledger.waited(Class::Gather, 2, Duration::from_millis(3));
        let now = ledger.counters();
        let sent = now.sent();
        assert_eq!(sent.keys().collect::<Vec<_>>(), ["ring_kv"]);
        assert_eq!((sent["ring_kv"].bytes, sent["ring_kv"].messages), (110, 3));
        assert_eq!(sent["ring_kv"].to, BTreeMap::from([(1, 110), (2, 0)]));
        assert_eq!(now.total().wait, Duration::from_millis(3));
        let rest = now.since(&then);
        assert_eq!((rest.tally(Class::RingKv, 1).bytes, rest.class(Class::RingKv).messages), (10, 2));
        let mut both = then;
        both += &rest;
        assert_eq!(both, now);
    }

    #[test]
    fn names_of_classes_are_read_back() {
        for class in Class::ALL {
            assert_eq!(Class::of_name(class.name()), Some(class));
        }
        assert_eq!(Class::of_name("nothing"), None);
    }
}
