//! What every communicator has to do, as a suite that takes any of them.
//!
//! A kind of rank is conformant when [`Suite::run`] returns `Ok` for a function that makes `n` connected communicators
//! of it. The suite runs each rank on a thread of its own, compares every result with a sequential model, and does not
//! hang on a communicator that does.
//!
//! # Layout
//! - `harness`: ranks as threads, with a limit on their time
//! - `data`: values that follow from a number, and their comparison
//! - `exchanging`: sizes, tags, groups, order of reduction, handles
//! - `failing`: deadlines, aborts, dead and finished ranks, wrong messages
//! - `counting`: counters against [`Counted`], a wrapper that keeps its own
//! - `schedule`: random programs against a sequential model
//!
//! The suite talks in host memory. A communicator of device memory takes it through [`OnDevice`].
//!
//! ```
//! use dg_comm::conformance::{Ranks, Suite};
//! use dg_comm::{Communicator, InProcess};
//! use std::sync::Arc;
//!
//! let make = |size| -> Ranks {
//!     InProcess::group(size).into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>).collect()
//! };
//! Suite::new(make).schedules(20).run().unwrap();
//! ```

mod counting;
mod data;
mod exchanging;
mod failing;
mod harness;
mod on_device;
mod schedule;

pub use counting::Counted;
pub use on_device::OnDevice;

use crate::Communicator;
use harness::Outcome;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Connected communicators; the i-th is rank i, and nothing else holds it, so that dropping it is its end.
pub type Ranks = Vec<Arc<dyn Communicator>>;

/// The suite for one kind of communicator.
pub struct Suite {
    make: Box<dyn Fn(usize) -> Ranks>,
    seed: u64,
    schedules: u64,
    patience: Duration,
    left_out: Vec<&'static str>,
    only: Option<&'static str>,
}

impl Suite {
    /// The suite for the communicators that `make(n)` makes: n connected ones, anew at each call.
    pub fn new(make: impl Fn(usize) -> Ranks + 'static) -> Self {
        let (schedules, patience) = (1000, Duration::from_secs(10));
        Self { make: Box::new(make), seed: 1, schedules, patience, left_out: Vec::new(), only: None }
    }

    /// The seed of random sizes and of the first schedule; schedule i has `seed + i`. Default 1.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Number of random schedules. Default 1 000.
    #[must_use]
    pub fn schedules(self, schedules: u64) -> Self {
        Self { schedules, ..self }
    }

    /// How long a call that should succeed may take, and how late one that should fail may be. Default 10 s.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Leaves out a check of [`CHECKS`]. The summary says so.
    #[must_use]
    pub fn without(mut self, check: &'static str) -> Self {
        self.left_out.push(check);
        self
    }

    /// Runs this check of [`CHECKS`] alone.
    #[must_use]
    pub fn only(self, check: &'static str) -> Self {
        Self { only: Some(check), ..self }
    }

    /// Runs the checks, up to the first that fails.
    ///
    /// # Errors
    /// [`Failure`] names the check and the seed.
    pub fn run(&self) -> Result<Summary, Failure> {
        let mut summary = Summary::default();
        for (check, function) in CHECKS {
            if self.only.is_some_and(|only| only != check) || self.left_out.contains(&check) {
                summary.left_out.push(check);
                continue;
            }
            function(self).map_err(|(seed, fault)| Failure { check, seed, message: fault.to_string() })?;
            summary.done.push(check);
        }
        Ok(summary)
    }

    fn make(&self, size: usize) -> Ranks {
        let ranks = (self.make)(size);
        assert_eq!(ranks.len(), size, "the factory makes as many communicators as it is asked for");
        ranks
    }
}

/// What has been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Checks that were passed.
    pub done: Vec<&'static str>,
    /// Checks that were left out.
    pub left_out: Vec<&'static str>,
}

/// A communicator does not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The check that failed, one of [`CHECKS`].
    pub check: &'static str,
    /// Seed with which it failed.
    pub seed: u64,
    /// What was expected and what happened, by rank.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, seed, message } = self;
        write!(f, "not conformant: {check} (seed {seed}; again: `.only({check:?}).seed({seed})`): {message}")
    }
}

impl std::error::Error for Failure {}

/// A check; its error is the seed and what went wrong.
type Check = fn(&Suite) -> Result<(), (u64, harness::Fault)>;

/// Every check by name, in the order in which they run.
pub const CHECKS: [(&str, Check); 19] = [
    ("one_rank", |suite| seeded(suite, exchanging::one_rank)),
    ("uneven_sizes", |suite| seeded(suite, exchanging::uneven_sizes)),
    ("same_bits_in_rank_order", |suite| seeded(suite, exchanging::same_bits_in_rank_order)),
    ("barrier", |suite| seeded(suite, exchanging::barrier)),
    ("tags_in_any_order", |suite| seeded(suite, exchanging::tags_in_any_order)),
    ("slow_receiver", |suite| seeded(suite, exchanging::slow_receiver)),
    ("handles", |suite| seeded(suite, exchanging::handles)),
    ("self_sends", |suite| seeded(suite, exchanging::self_sends)),
    ("concurrent_groups", |suite| seeded(suite, exchanging::concurrent_groups)),
    ("wrong_messages", |suite| seeded(suite, failing::wrong_messages)),
    ("wrong_arguments", |suite| seeded(suite, failing::wrong_arguments)),
    ("deadlines", |suite| seeded(suite, failing::deadlines)),
    ("late_messages", |suite| seeded(suite, failing::late_messages)),
    ("abort", |suite| seeded(suite, failing::abort)),
    ("dead_rank", |suite| seeded(suite, failing::dead_rank)),
    ("finished_rank", |suite| seeded(suite, failing::finished_rank)),
    ("finish_while_waiting", |suite| seeded(suite, failing::finish_while_waiting)),
    ("counters", |suite| seeded(suite, counting::counters)),
    ("schedules", schedule::schedules),
];

/// The most ranks that a check of [`CHECKS`] makes at once: machines with fewer devices leave it out.
pub fn ranks_needed(check: &str) -> usize {
    match check {
        "one_rank" => 1,
        "tags_in_any_order" | "slow_receiver" | "handles" | "wrong_messages" | "wrong_arguments" => 2,
        "late_messages" | "finished_rank" => 2,
        "self_sends" | "deadlines" | "abort" | "finish_while_waiting" => 3,
        "same_bits_in_rank_order" | "barrier" | "concurrent_groups" | "dead_rank" => 4,
        "uneven_sizes" | "counters" => 5,
        _ => RANKS_MAX,
    }
}

/// No check makes more ranks.
const RANKS_MAX: usize = 6;

fn seeded(suite: &Suite, check: fn(&Suite) -> Outcome) -> Result<(), (u64, harness::Fault)> {
    check(suite).map_err(|fault| (suite.seed, fault))
}
