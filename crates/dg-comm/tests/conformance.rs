//! In-process ranks pass the suite, bare and wrapped.

mod support;

use dg_comm::conformance::{CHECKS, OnDevice, Ranks, Suite, ranks_needed};
use dg_comm::{Communicator, Delayed, HostStaged, InProcess, Options, Recording, Trace};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::FakeGpu;

fn share<C: Communicator + 'static>(ranks: impl IntoIterator<Item = C>) -> Ranks {
    ranks.into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>).collect()
}

#[test]
fn threads_pass() {
    let summary =
        Suite::new(|size| share(InProcess::group(size))).run().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(summary.done.len(), CHECKS.len());
}

#[test]
fn threads_with_the_smallest_queues_pass() {
    let make = |size| share(InProcess::with(Options { in_flight_max: 0, ..Options::new(size) }));
    Suite::new(make).seed(50_000).schedules(100).run().unwrap_or_else(|error| panic!("{error}"));
}

/// The suite's ranks as those of the second of several replicas.
#[test]
fn a_part_of_all_threads_passes() {
    let make = |size| share(InProcess::with(Options::ranks(size..2 * size)));
    Suite::new(make).seed(90_000).schedules(60).run().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn delayed_threads_pass() {
    let delayed = |comm| Delayed::new(comm, 7, Duration::from_millis(1));
    let make = move |size| share(InProcess::group(size).into_iter().map(delayed));
    Suite::new(make).seed(60_000).schedules(60).run().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn recorded_threads_pass() {
    let make = |size| {
        let trace = Trace::new();
        share(InProcess::group(size).into_iter().map(|comm| Recording::new(comm, trace.clone())))
    };
    Suite::new(make).seed(70_000).schedules(60).run().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_device_over_threads_passes() {
    let staged = |comm| OnDevice::new(HostStaged::new(comm, Arc::new(FakeGpu)), Arc::new(FakeGpu));
    let make = move |size| share(InProcess::group(size).into_iter().map(staged));
    Suite::new(make).seed(80_000).schedules(60).run().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_check_says_how_many_ranks_it_needs() {
    for (check, _) in CHECKS {
        let most = Arc::new(AtomicUsize::new(0));
        let seen = most.clone();
        let make = move |size| {
            seen.fetch_max(size, Ordering::Relaxed);
            share(InProcess::group(size))
        };
        Suite::new(make).schedules(200).only(check).run().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(most.load(Ordering::Relaxed), ranks_needed(check), "{check}");
    }
}
