//! What goes wrong, and how often it did.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    AgentCrash,
    Cancel,
    DeviceLost,
    Drain,
    Flap,
    HangForEver,
    HeadRestart,
    Loss,
    NodeCrash,
    Oom,
    OneWayFromHead,
    OneWayToHead,
    Partition,
    Pause,
    RankCrash,
    Slow,
}

const ALL: [Fault; 16] = [
    Fault::AgentCrash,
    Fault::Cancel,
    Fault::DeviceLost,
    Fault::Drain,
    Fault::Flap,
    Fault::HangForEver,
    Fault::HeadRestart,
    Fault::Loss,
    Fault::NodeCrash,
    Fault::Oom,
    Fault::OneWayFromHead,
    Fault::OneWayToHead,
    Fault::Partition,
    Fault::Pause,
    Fault::RankCrash,
    Fault::Slow,
];

/// A fault with its time and place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    pub(crate) node: usize,
    pub(crate) slot: usize,
    pub(crate) lasts: Duration,
}

/// The faults of one seed, some seeds without.
pub(crate) fn plan(rng: &mut Rng, nodes: usize, slots: u16, until_ms: u64) -> Vec<Planned> {
    let count = if rng.percent(10) { 0 } else { rng.range(1, 10) };
    let one = |rng: &mut Rng| {
        let fault = ALL[rng.range(0, ALL.len() as u64) as usize];
        let lasts = match fault {
            Fault::Pause => rng.range(200, 1500),
            Fault::Flap => rng.range(100, 600),
            Fault::Partition | Fault::OneWayFromHead => rng.range(200, 15_000),
            _ => rng.range(200, 9000),
        };
        Planned {
            at: Duration::from_millis(rng.range(300, until_ms)),
            fault,
            node: rng.range(0, nodes as u64) as usize,
            slot: rng.range(0, u64::from(slots)) as usize,
            lasts: Duration::from_millis(lasts),
        }
    };
    let mut all: Vec<_> = (0..count).map(|_| one(rng)).collect();
    if count > 0 && rng.percent(10) {
        // All is slow, from the start on.
        let lasts = Duration::from_millis(until_ms);
        all.push(Planned { at: Duration::ZERO, fault: Fault::Slow, node: 0, slot: 0, lasts });
    }
    all
}

/// How often what went wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    pub(crate) events: u64,
    pub(crate) done: u64,
    pub(crate) cancelled: u64,
    pub(crate) failed: u64,
    pub(crate) failures: BTreeMap<&'static str, u64>,
    pub(crate) epochs: u64,
    pub(crate) resumed: u64,
    pub(crate) stale: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.sent += other.sent;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.events += other.events;
        self.done += other.done;
        self.cancelled += other.cancelled;
        self.failed += other.failed;
        for (failure, count) in &other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.epochs += other.epochs;
        self.resumed += other.resumed;
        self.stale += other.stale;
    }
}
