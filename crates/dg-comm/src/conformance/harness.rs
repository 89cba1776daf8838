//! Ranks as threads that cannot hang the suite.

use super::Ranks;
use crate::{CommError, Communicator};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// What went wrong, in words.
pub struct Fault(String);

/// Result of a check, or of one rank in it.
pub(super) type Outcome<T = ()> = Result<T, Fault>;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<CommError> for Fault {
    fn from(error: CommError) -> Self {
        Self(format!("unexpected error: {error}"))
    }
}

/// Runs `body` once per rank, each on its own thread, and returns what they return, by rank.
///
/// The body owns its communicator: it finishes it, or dies of not doing so. A rank that takes longer than `limit` is
/// left behind with its thread.
pub(super) fn run<T: Send + 'static>(
    ranks: Ranks,
    limit: Duration,
    body: impl Fn(Arc<dyn Communicator>) -> Outcome<T> + Send + Sync + 'static,
) -> Outcome<Vec<T>> {
    let size = ranks.len();
    let body = Arc::new(body);
    let (results, inbox) = mpsc::channel();
    for (rank, comm) in ranks.into_iter().enumerate() {
        let (body, results) = (body.clone(), results.clone());
        std::thread::spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| body(comm)));
            let outcome = outcome.unwrap_or_else(|_| Err(Fault("panicked".to_owned())));
            // Nobody listens any more once the limit has passed.
            let _ = results.send((rank, outcome));
        });
    }
    drop(results);
    let end = Instant::now() + limit;
    let mut done: Vec<Option<Outcome<T>>> = (0..size).map(|_| None).collect();
    while done.iter().any(Option::is_none) {
        match inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((rank, outcome)) => done[rank] = Some(outcome),
            Err(_) => break,
        }
    }
    gather(done, limit)
}

fn gather<T>(done: Vec<Option<Outcome<T>>>, limit: Duration) -> Outcome<Vec<T>> {
    let mut values = Vec::new();
    let mut faults = Vec::new();
    for (rank, outcome) in done.into_iter().enumerate() {
        match outcome {
            Some(Ok(value)) => values.push(value),
            Some(Err(fault)) => faults.push(format!("rank {rank}: {fault}")),
            None => faults.push(format!("rank {rank}: has not returned within {limit:?}")),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(Fault(faults.join("; "))) }
}

/// Where ranks wait for each other without the communicator under test.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<AtomicUsize>);

impl Gate {
    /// One more rank has come here.
    pub(super) fn pass(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How many have come.
    pub(super) fn passed(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Waits until `count` ranks have come.
    pub(super) fn wait_for(&self, count: usize, limit: Duration) -> Outcome {
        let end = Instant::now() + limit;
        while self.passed() < count {
            if Instant::now() > end {
                return Err(Fault(format!("only {} of {count} ranks came within {limit:?}", self.passed())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Fails with `what` unless `holds`.
pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Fault(what())) }
}
