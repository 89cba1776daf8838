//! The suite of dg-comm, over every kind of stream.

use crate::certificates::Authority;
use crate::mesh::{Kind, NAME, mesh, share};
use dg_comm::conformance::{CHECKS, Suite};
use dg_net::plane::Options;

fn passes(kind: Kind, seed: u64, schedules: u64, options: fn(Options) -> Options) {
    let make = move |size| share(mesh(&kind, size, |_, default| options(default)));
    let suite = Suite::new(make).seed(seed).schedules(schedules);
    let summary = suite.run().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(summary.done.len(), CHECKS.len());
}

#[test]
fn abstract_unix_sockets_pass() {
    passes(Kind::Abstract, 1, 300, |options| options);
}

#[test]
fn unix_sockets_with_small_windows_pass() {
    let folder = tempfile::tempdir().unwrap();
    // The suite sends up to 24 messages of 6000 bytes before anybody reads.
    let small = |options| Options { in_flight_max: 0, unread_bytes_max: 24 * 6000, ..options };
    passes(Kind::Unix(folder.path().into()), 2000, 150, small);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no socket is left over");
}

#[test]
fn tcp_passes() {
    passes(Kind::Tcp, 4000, 150, |options| options);
}

#[test]
fn tls_passes() {
    passes(Kind::tls(), 6000, 150, |options| options);
}

/// Unix sockets within a host and TLS between hosts, as the ranks 100, 101, … of a run.
#[test]
fn two_hosts_pass() {
    let folder = tempfile::tempdir().unwrap();
    let tls = Authority::new().tls(NAME);
    let part = |options| Options { first: 100, ..options };
    passes(Kind::Mixed(folder.path().into(), tls), 8000, 100, part);
}
