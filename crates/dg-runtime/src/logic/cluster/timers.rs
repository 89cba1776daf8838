//! When the head has to look again at what.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// At most one time for each key.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    order: BTreeSet<(Duration, K)>,
    times: HashMap<K, Duration>,
}

impl<K: Copy + Ord + Hash> Timers<K> {
    /// Sets, moves or, with `None`, clears the time of `key`.
    pub fn set(&mut self, key: K, at: Option<Duration>) {
        let before = match at {
            Some(at) => self.times.insert(key, at),
            None => self.times.remove(&key),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, key));
        }
        if let Some(at) = at {
            self.order.insert((at, key));
        }
    }

    /// The earliest time.
    pub fn next(&self) -> Option<Duration> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes one key whose time has come.
    pub fn pop(&mut self, now: Duration) -> Option<K> {
        let (at, key) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.set(key, None);
        Some(key)
    }
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), times: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_time() {
        let at = Duration::from_secs;
        let mut timers = Timers::default();
        timers.set('a', Some(at(3)));
        timers.set('b', Some(at(2)));
        timers.set('a', Some(at(1)));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!((timers.pop(at(0)), timers.pop(at(9)), timers.pop(at(9))), (None, Some('a'), Some('b')));
        assert_eq!(timers.next(), None);
    }
}
