//! Over the host's plane that ranks of a cluster have: sockets between processes.

use crate::conformance::with_host_memory;
use crate::stub::Stub;
use dg_comm::conformance::{CHECKS, Ranks, Suite};
use dg_comm::{Block, Call, Class, CommError, Communicator, Deadline, Tag};
use dg_core::DType;
use dg_nccl::{Nccl, Options, agree};
use dg_net::plane::{self, EpochKey, Listener, Member, Rendezvous};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ranks of this process, connected as if they were processes.
fn sockets(size: usize, listen: Listen, options: fn(plane::Options) -> plane::Options) -> Ranks {
    let listen = |_| {
        let listener = listen();
        let member = Member::at(listener.address().clone());
        (vec![listener], member)
    };
    let (listeners, members): (Vec<_>, Vec<_>) = (0..size).map(listen).unzip();
    let key = EpochKey::generate();
    std::thread::scope(|scope| {
        let connect = |(me, listeners): (usize, Vec<Listener>)| {
            let rendezvous = Rendezvous { epoch: 3, key: key.clone(), members: members.clone(), me };
            scope.spawn(move || rendezvous.connect(listeners, options(plane::Options::default())))
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(connect).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("no panic").expect("a group"));
        joined.map(|rank| Arc::new(rank) as Arc<dyn Communicator>).collect()
    })
}

type Listen = fn() -> Listener;

fn unix() -> Listener {
    Listener::abstract_unix().expect("a socket")
}

fn tcp() -> Listener {
    Listener::tcp((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket")
}

fn passes(listen: Listen, options: fn(plane::Options) -> plane::Options) {
    let stub = Arc::new(Stub::new());
    let its = stub.clone();
    let make =
        move |size| with_host_memory(&its, its.over(sockets(size, listen, options), Options::default()));
    let summary = Suite::new(make).schedules(SCHEDULES).run().unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(summary.done.len(), CHECKS.len());
    let counts = stub.counts();
    assert_eq!((counts.wrong, counts.communicators), (0, 0));
}

#[test]
fn nccl_is_conformant_over_unix_sockets() {
    passes(unix, |options| options);
}

/// With the smallest window that the plane allows, the thread that makes the calls to NCCL still never waits.
#[test]
fn nccl_is_conformant_over_tcp_with_small_windows() {
    passes(tcp, |options| plane::Options { in_flight_max: 0, ..options });
}

/// What a rank does when a job begins and when it is stopped.
#[test]
fn ranks_agree_on_nccl_and_an_abort_reaches_all_that_wait() {
    let stub = Stub::new();
    let version = stub.nccl().version();
    let inner = sockets(3, unix, |options| options);
    let agreed = std::thread::scope(|scope| {
        let threads: Vec<_> = inner
            .iter()
            .map(|rank| scope.spawn(|| agree::versions(&**rank, Some(version), Deadline::after(LONG))))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(agreed.iter().all(|all| all.as_ref().is_ok_and(|all| *all == [Some(version); 3])), "{agreed:?}");
    let ranks: Vec<Nccl> = stub.over(inner, Options::default());
    std::thread::scope(|scope| {
        for rank in &ranks[1..] {
            scope.spawn(|| {
                let call = Call::within(LONG, Class::RingKv, Tag::new(1));
                let begin = Instant::now();
                let error = rank.recv(0, &call, dg_comm::BlockShape::f32(4)).expect_err("nobody sends");
                assert!(matches!(&error, CommError::Aborted { cause, .. } if cause == "stop"), "{error}");
                assert!(begin.elapsed() < LONG / 2, "{:?}", begin.elapsed());
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        ranks[0].abort("stop");
    });
    drop(ranks);
    assert_eq!(stub.counts().communicators, 0);
}

/// Ranks with the smallest window.
fn narrow(stub: &Stub, size: usize) -> Vec<Nccl> {
    stub.over(
        sockets(size, unix, |options| plane::Options { in_flight_max: 0, ..options }),
        Options::default(),
    )
}

fn call(within: Duration, step: u32) -> Call {
    Call::within(within, Class::RingKv, Tag::new(1).step(step))
}

/// Messages without values from rank 0 to rank 1, of the steps from `first` on, until there is no room for more; the first
/// step that found none.
fn fill(ranks: &[Nccl], first: u32) -> u32 {
    let short = Duration::from_millis(300);
    for step in first..100_000 {
        match ranks[0].send(1, &call(short, step), Block::empty(DType::Float32)) {
            Ok(()) => {}
            Err(CommError::Deadline { .. }) => return step,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("there is always room");
}

/// Rank 1 reads nothing: there is no room left to tell it that its message has arrived, and rank 2 is served all the same.
#[test]
fn a_plane_that_is_full_to_one_rank_holds_up_no_other() {
    let stub = Stub::new();
    let ranks = narrow(&stub, 3);
    fill(&ranks, 0);
    let served = |from: usize| {
        let (begin, block) = (Instant::now(), Block::from_f32(vec![from as f32; 1000]));
        ranks[from].send(0, &call(LONG, 0), block.clone()).expect("there is room this way");
        ranks[0].recv(from, &call(LONG, 0), block.shape()).expect("it comes");
        begin.elapsed()
    };
    served(1);
    // The thread has looked at what it has to say.
    std::thread::sleep(Duration::from_millis(100));
    let took = served(2);
    assert!(took < LONG / 5, "{took:?}");
    ranks[0].abort("it was enough");
}

/// The first message with values finds room for its announcement and for nothing more. When there is room again, the next
/// one comes: where it is waited for was not lost.
#[test]
fn a_direction_that_begins_on_a_full_plane_is_opened_later() {
    let stub = Stub::new();
    let ranks = narrow(&stub, 2);
    let values = Block::from_f32(vec![3.0; 1000]);
    let read = |step| {
        let shape = Block::empty(DType::Float32).shape();
        ranks[1].recv(0, &call(LONG, step), shape).expect("it is there");
    };
    // Room comes back for a quarter of the window at once: all of it but for one message is taken again.
    let full = fill(&ranks, 0);
    let batch = full / 4;
    (0..batch).for_each(read);
    let again = fill(&ranks, full);
    (batch..2 * batch).for_each(read);
    let last = again + (again - full) - 1;
    for step in again..last {
        ranks[0].send(1, &call(LONG, step), Block::empty(DType::Float32)).expect("room for these");
    }
    let lost = ranks[0].send(1, &call(Duration::from_secs(6), last), values.clone());
    assert!(matches!(lost, Err(CommError::Deadline { .. })), "{lost:?}");
    (2 * batch..last).for_each(read);
    ranks[0].send(1, &call(LONG, last + 1), values.clone()).expect("there is room again");
    ranks[1].recv(0, &call(LONG, last + 1), values.shape()).expect("it comes");
    drop(ranks);
    assert_eq!(stub.counts().communicators, 0);
}

/// Few: the suite runs over everything else at length.
const SCHEDULES: u64 = 10;
const LONG: Duration = Duration::from_secs(20);
