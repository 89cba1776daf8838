//! What breaks below, and how soon everybody knows.

use crate::stub::Stub;
use dg_comm::{Block, BlockShape, Call, Class, CommError, Communicator, InProcess, Tag};
use dg_nccl::error::Result;
use dg_nccl::memory::Owner;
use dg_nccl::{Arena, Nccl, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn call(patience: u64) -> Call {
    Call::within(Duration::from_millis(patience), Class::PipeHidden, Tag::new(3))
}

fn block(len: usize) -> Block {
    Block::from_f32(vec![1.5; len])
}

/// Runs each rank on a thread; gives what they say.
fn each<T: Send>(ranks: Vec<Nccl>, body: impl Fn(&Nccl) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || body(&rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn an_error_of_nccl_ends_the_job_on_all_ranks_with_its_words() {
    let stub = Stub::new();
    stub.fail_after(2);
    let begin = Instant::now();
    let errors = each(stub.ranks(3, Options::default()), |comm| {
        let (next, from) = ((comm.rank() + 1) % 3, (comm.rank() + 2) % 3);
        let error = (0..10).find_map(|_| {
            comm.exchange(&call(20_000), vec![(next, block(100))], &[(from, BlockShape::f32(100))]).err()
        });
        error.expect("one of the sends fails")
    });
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    for error in &errors {
        let CommError::Aborted { cause, .. } = error else { panic!("{error:?}") };
        assert!(cause.contains("unhandled system error") && cause.contains("cable was pulled"), "{cause}");
    }
    assert_eq!(stub.counts().communicators, 0, "all are given up");
    assert_eq!(stub.counts().allocated, 0);
}

/// NCCL waits for an end that never comes, in its own threads and on the device; the ranks do not.
#[test]
fn what_never_connects_ends_at_the_deadline_and_is_given_up() {
    let stub = Stub::new();
    stub.no_peer(true);
    let begin = Instant::now();
    let results = each(stub.ranks(2, Options::default()), |comm| {
        if comm.rank() == 0 {
            comm.send(1, &call(5000), block(10)).unwrap();
            let error = comm.recv(1, &call(20_000), BlockShape::f32(1)).err().unwrap();
            return error.to_string();
        }
        let error = comm.recv(0, &call(200), BlockShape::f32(10)).err().unwrap();
        assert!(matches!(error, CommError::Deadline { .. }), "{error}");
        comm.abort("rank 1 has had enough");
        error.to_string()
    });
    assert!(results[0].contains("rank 1 has had enough"), "{results:?}");
    assert!(results[1].contains("still on the way between the devices"), "{results:?}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!((stub.counts().communicators, stub.counts().allocated, stub.counts().wrong), (0, 0, 0));
}

/// An abort frees ranks whose devices wait for each other.
#[test]
fn an_abort_frees_a_device_that_waits() {
    let stub = Stub::new();
    let results = each(stub.ranks(2, Options::default()), |comm| {
        // First a message, so that the communicators are there.
        let first = comm.exchange(
            &call(10_000),
            vec![(1 - comm.rank(), block(4))],
            &[(1 - comm.rank(), BlockShape::f32(4))],
        );
        assert!(first.is_ok());
        if comm.rank() == 0 {
            std::thread::sleep(Duration::from_millis(50));
            comm.abort("no more");
            return Duration::ZERO;
        }
        let begin = Instant::now();
        let error = comm.recv(0, &call(30_000), BlockShape::f32(4)).err().unwrap();
        assert!(error.to_string().contains("no more"), "{error}");
        begin.elapsed()
    });
    assert!(results[1] < Duration::from_secs(5), "{results:?}");
    assert_eq!((stub.counts().communicators, stub.counts().allocated), (0, 0));
}

#[test]
fn memory_that_is_short_on_the_receiver_is_an_abort_with_numbers() {
    let stub = Stub::new();
    let mebibytes = |count: usize| block(count << 18);
    stub.memory(24 << 20);
    let results = each(stub.ranks(2, Options::default()), |comm| {
        if comm.rank() == 0 {
            // The other may have run out of it before this call is over.
            let sent = comm.send(1, &call(5000), mebibytes(16));
            let received = sent.and_then(|()| comm.recv(1, &call(20_000), BlockShape::f32(1)));
            return received.err().unwrap().to_string();
        }
        comm.recv(0, &call(20_000), mebibytes(16).shape()).err().unwrap().to_string()
    });
    for result in results {
        assert!(
            result.contains("has no 16777216 bytes left") && result.contains("of 25165824 are free"),
            "{result}"
        );
    }
}

#[test]
fn memory_that_is_short_on_the_sender_is_its_own_error() {
    let stub = Stub::new();
    stub.memory(1 << 20);
    let ranks = stub.ranks(2, Options::default());
    let error = ranks[0].send(1, &call(1000), block(1 << 20)).err().unwrap();
    assert!(
        matches!(error, CommError::Invalid { .. }) && error.to_string().contains("bytes left"),
        "{error}"
    );
    ranks[0].check().unwrap();
}

/// A rank that dies takes its device along; the others are free at once.
#[test]
fn a_rank_that_is_dropped_is_lost_for_those_who_wait_for_its_data() {
    let stub = Stub::new();
    let mut ranks = stub.ranks(3, Options::default());
    let last = ranks.pop().unwrap();
    let dies = std::thread::spawn(move || {
        last.send(0, &call(5000), block(3)).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        drop(last);
    });
    let results =
        each(ranks, |comm| comm.recv(1 - comm.rank(), &call(20_000), BlockShape::f32(2)).err().unwrap());
    dies.join().unwrap();
    for error in results {
        assert!(matches!(&error, CommError::PeerGone { rank, .. } if rank.rank == 2), "{error:?}");
    }
    assert_eq!((stub.counts().communicators, stub.counts().allocated), (0, 0));
}

/// An end that finalizes waits for the other one: ranks that did so one communicator after the other would wait crosswise.
#[test]
fn communicators_of_a_job_that_is_done_end_in_order() {
    let stub = Stub::new();
    let begin = Instant::now();
    each(stub.ranks(3, Options::default()), |comm| {
        let others = (0..3).filter(|rank| *rank != comm.rank());
        let sent = others.clone().map(|rank| (rank, block(4))).collect();
        let wanted: Vec<_> = others.map(|rank| (rank, BlockShape::f32(4))).collect();
        comm.exchange(&call(10_000), sent, &wanted).unwrap();
        comm.finish().unwrap();
    });
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let counts = stub.counts();
    assert_eq!((counts.ended, counts.communicators, counts.wrong), (12, 0, 0), "both ends of six directions");
}

/// Whoever waits hears of a fault in the thread that makes room.
#[test]
fn a_panic_of_the_arena_ends_the_job() {
    struct Broken;
    impl Arena for Broken {
        fn room(&self, _: BlockShape) -> Result<Arc<dyn Owner>> {
            panic!("no room in the arena")
        }
        fn filled(&self, _: BlockShape, _: &[u8]) -> Result<Arc<dyn Owner>> {
            panic!("never asked")
        }
    }
    let stub = Stub::new();
    let (library, context) = (stub.nccl(), stub.context());
    let ranks: Vec<_> = InProcess::group(2)
        .into_iter()
        .map(|inner| {
            let arena = (inner.rank() == 1).then(|| Arc::new(Broken) as Arc<dyn Arena>);
            Nccl::new(Arc::new(inner), library, &context, arena, Options::default()).unwrap()
        })
        .collect();
    let begin = Instant::now();
    let errors = each(ranks, |comm| match comm.rank() {
        0 => comm
            .send(1, &call(60_000), block(4))
            .and_then(|()| comm.recv(1, &call(60_000), BlockShape::f32(1))),
        _ => comm.recv(0, &call(60_000), BlockShape::f32(4)),
    });
    for error in errors {
        let error = error.err().unwrap().to_string();
        assert!(error.contains("no room in the arena"), "{error}");
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// NCCL hangs where it is to give up: the rank goes on without it, and the process is known to be of no use.
#[test]
fn what_is_not_even_given_up_makes_the_process_one_to_end() {
    let stub = Stub::new();
    let ranks = stub.ranks(2, Options::default());
    let both = std::sync::Barrier::new(2);
    let first = each(ranks, |comm| {
        let other = 1 - comm.rank();
        let met = comm.exchange(&call(10_000), vec![(other, block(4))], &[(other, BlockShape::f32(4))]);
        assert!(met.is_ok() && !dg_nccl::nccl::is_stuck());
        both.wait();
        stub.keep(true);
        comm.abort("no more");
        Instant::now()
    });
    // Both ranks were dropped at the end of their threads.
    for begin in first {
        assert!(begin.elapsed() < Duration::from_secs(5 * 10), "{:?}", begin.elapsed());
    }
    assert!(dg_nccl::nccl::is_stuck());
    stub.keep(false);
    let until = Instant::now() + Duration::from_secs(10);
    while stub.counts().communicators > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(stub.counts().communicators, 0, "its thread lives on, and ends when NCCL goes on");
}
