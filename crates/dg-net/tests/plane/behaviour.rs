//! What ranks that are processes promise beyond the suite.

use crate::mesh::{Kind, LONG, SHORT, mesh};
use dg_comm::{
    Block, BlockShape, Call, Class, CommError, Communicator, Deadline, Device, DeviceMemory, Gone, Op, Tag,
};
use dg_net::plane::{Options, Sockets};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn call(class: Class) -> Call {
    Call::within(LONG, class, Tag::new(1).step(2))
}

fn short(class: Class) -> Call {
    Call::within(SHORT, class, Tag::new(1).step(2))
}

fn two(kind: &Kind, options: impl Fn(Options) -> Options + Sync) -> [Sockets; 2] {
    mesh(kind, 2, |_, default| options(default)).try_into().ok().unwrap()
}

fn values(len: usize) -> Block {
    Block::from_f32((0..len).map(|i| i as f32).collect())
}

#[test]
fn large_messages_cross_each_other_over_every_kind() {
    let len = (5 << 20) + 3;
    for kind in [Kind::Abstract, Kind::Tcp, Kind::tls()] {
        let ranks = mesh(&kind, 2, |_, options| options);
        std::thread::scope(|scope| {
            for comm in ranks {
                scope.spawn(move || {
                    let peer = 1 - comm.rank();
                    for _ in 0..2 {
                        let got = comm.exchange(
                            &call(Class::RingKv),
                            vec![(peer, values(len))],
                            &[(peer, BlockShape::f32(len))],
                        );
                        assert!(got.unwrap()[0].same_bits(&values(len)));
                    }
                    comm.finish().unwrap();
                });
            }
        });
    }
}

/// A receiver that does not read stops the sender at the window, and one message larger than the window goes alone.
#[test]
fn unread_bytes_are_bounded() {
    let window = 1 << 20;
    let [zero, one] = two(&Kind::Abstract, |options| Options { unread_bytes_max: window, ..options });
    let quarter = values((window / 16) as usize);
    let mut sent = 0;
    let error = loop {
        match zero.send(1, &short(Class::PipeHidden), quarter.clone()) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!((4..=5).contains(&sent), "{sent} quarters of the window were sent");
    assert!(error.to_string().contains(&format!("has not read the last {sent} messages")), "{error}");
    assert!(zero.counters().tally(Class::PipeHidden, 1).wait >= SHORT);
    assert_eq!(zero.counters().tally(Class::PipeHidden, 1).bytes, sent * window / 4);
    for _ in 0..sent {
        one.recv(0, &call(Class::PipeHidden), quarter.shape()).unwrap();
    }
    let large = values(window as usize);
    for _ in 0..3 {
        zero.send(1, &call(Class::PipeHidden), large.clone()).unwrap();
        assert!(matches!(
            zero.send(1, &short(Class::RingKv), large.clone()),
            Err(CommError::Deadline { .. })
        ));
        one.recv(0, &call(Class::PipeHidden), large.shape()).unwrap();
    }
    let huge = Options { message_bytes_max: 100, ..Options::default() };
    let [zero, _one] =
        two(&Kind::Abstract, |options| Options { message_bytes_max: huge.message_bytes_max, ..options });
    zero.send(1, &call(Class::Gather), values(25)).unwrap();
    let error = zero.send(1, &call(Class::Gather), values(26)).unwrap_err();
    assert!(
        matches!(&error, CommError::Invalid { .. }) && error.to_string().contains("at most 100"),
        "{error}"
    );
}

#[test]
fn finish_waits_for_what_was_sent() {
    for kind in [Kind::Abstract, Kind::Tcp, Kind::tls()] {
        let [zero, one] = two(&kind, |options| options);
        let (len, count) = (1 << 20, 20);
        let sending = std::thread::spawn(move || {
            for _ in 0..count {
                zero.send(1, &call(Class::Gather), values(len)).unwrap();
            }
            zero.finish().unwrap();
            // Its process may end now.
        });
        sending.join().unwrap();
        for _ in 0..count {
            assert!(one.recv(0, &call(Class::Gather), BlockShape::f32(len)).unwrap().same_bits(&values(len)));
        }
        let over = one.recv(0, &call(Class::Gather), BlockShape::f32(len)).unwrap_err();
        assert!(matches!(over, CommError::PeerGone { how: Gone::Finished, .. }), "{over}");
        one.check().unwrap();
        one.finish().unwrap();
    }
}

/// The first cause is what everybody hears, also from those who gave up because of it.
#[test]
fn everybody_hears_the_first_cause_with_its_name() {
    let names = |options| Options {
        first: 10,
        names: (0..5).map(|rank| format!("rank {rank} of five")).collect(),
        ..options
    };
    for abort in [true, false] {
        let mut ranks = mesh(&Kind::Tcp, 5, |_, options| names(options));
        let dying = ranks.remove(3);
        let begin = Instant::now();
        let waiting: Vec<_> = ranks
            .into_iter()
            .map(|comm| std::thread::spawn(move || comm.barrier(&call(Class::Control)).unwrap_err()))
            .collect();
        std::thread::sleep(SHORT);
        let long = "no space left on device ".repeat(100);
        if abort {
            dying.abort(&long);
        } else {
            let panicked = std::thread::spawn(move || {
                let _dying = dying;
                std::panic::resume_unwind(Box::new("out of memory"));
            });
            panicked.join().unwrap_err();
        }
        for thread in waiting {
            let error = thread.join().unwrap();
            match &error {
                CommError::Aborted { by, cause, .. } if abort => {
                    assert_eq!((by.rank, &*by.name, cause.as_str()), (13, "rank 3 of five", &long[..1024]));
                }
                CommError::PeerGone { rank, how: Gone::Panicked, .. } if !abort => assert_eq!(rank.rank, 13),
                _ => panic!("{error}"),
            }
        }
        assert!(begin.elapsed() < LONG / 4, "{:?}", begin.elapsed());
    }
}

#[test]
fn after_its_end_a_rank_says_nothing_more() {
    let [zero, one] = two(&Kind::Abstract, |options| Options { flush_max: SHORT, ..options });
    let mut pending = zero.post_recv(1, &call(Class::Gather), BlockShape::f32(1)).unwrap();
    zero.finish().unwrap();
    zero.finish().unwrap();
    assert!(matches!(zero.send(1, &call(Class::Gather), values(1)), Err(CommError::Invalid { .. })));
    assert!(matches!(
        zero.send(0, &call(Class::Gather), values(1)),
        Err(CommError::Invalid { .. } | CommError::PeerGone { .. })
    ));
    assert!(!pending.is_ready());
    drop(one);
    let error = pending.wait(Deadline::after(LONG)).unwrap_err();
    assert!(matches!(&error, CommError::PeerGone { rank, how: Gone::Lost, .. } if rank.rank == 1), "{error}");
    assert!(pending.is_ready());
}

/// A handle that outlives its rank says how it ended.
#[test]
fn a_handle_does_not_keep_its_rank_alive() {
    let [zero, one] = two(&Kind::Abstract, |options| options);
    let mut pending = zero.post_recv(1, &call(Class::RingKv), BlockShape::f32(1)).unwrap();
    drop(zero);
    let begin = Instant::now();
    let error = one.recv(0, &call(Class::RingKv), BlockShape::f32(1)).unwrap_err();
    assert!(matches!(&error, CommError::PeerGone { rank, how: Gone::Lost, .. } if rank.rank == 0), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(pending.is_ready());
    pending.wait(Deadline::after(LONG)).unwrap_err();
    let error = one.check().unwrap_err();
    assert_eq!(error.place().unwrap().op, Op::Check);
}

/// All threads and connections of a rank end with it.
#[test]
fn nothing_is_left_of_a_rank() {
    let threads = || {
        let of_planes = |entry: &std::fs::DirEntry| {
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with("plane 77"))
        };
        std::fs::read_dir("/proc/self/task").unwrap().flatten().filter(of_planes).count()
    };
    let ranks = mesh(&Kind::tls(), 3, |_, options| Options { first: 770, ..options });
    // A thread gets its name when it runs first, and is listed until it has quite ended.
    let wait_for = |wanted| {
        let end = Instant::now() + LONG;
        while threads() != wanted && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(threads(), wanted);
    };
    wait_for(12);
    drop(ranks);
    wait_for(0);
}

#[derive(Debug)]
struct Gpu;

impl DeviceMemory for Gpu {
    fn to_host(&self) -> Result<bytes::Bytes, String> {
        Err("not asked for".to_owned())
    }

    fn slice(&self, _: std::ops::Range<usize>) -> Arc<dyn DeviceMemory> {
        Arc::new(Self)
    }
}

impl Device for Gpu {
    fn upload(&self, _: BlockShape, _: &bytes::Bytes) -> Result<Arc<dyn DeviceMemory>, String> {
        Ok(Arc::new(Self))
    }
}

#[test]
fn device_memory_is_refused() {
    let [zero, _one] = two(&Kind::Abstract, |options| options);
    let block = Block::on_device(BlockShape::f32(3), Arc::new(Gpu));
    let error = zero.send(1, &call(Class::RingKv), block).unwrap_err();
    assert!(
        matches!(&error, CommError::Invalid { .. }) && error.to_string().contains("HostStaged"),
        "{error}"
    );
    assert_eq!(zero.counters().total().messages, 0);
}
