//! What every communicator has to do.

use crate::stub::Stub;
use dg_comm::conformance::{OnDevice, Ranks, Suite};
use dg_comm::{Block, Call, Class, Communicator, Tag};
use dg_nccl::memory::{Pool, Upload};
use dg_nccl::{Nccl, Options};
use std::sync::Arc;
use std::time::Duration;

/// Communicators that take and give host memory, so that the suite can look at it.
fn on_device(stub: &Stub, size: usize, options: Options) -> Ranks {
    with_host_memory(stub, stub.ranks(size, options))
}

pub(crate) fn with_host_memory(stub: &Stub, ranks: Vec<Nccl>) -> Ranks {
    let pool = Arc::new(Pool::new(stub.context()));
    let wrap = |rank| Arc::new(OnDevice::new(rank, Arc::new(Upload(pool.clone())))) as Arc<dyn Communicator>;
    ranks.into_iter().map(wrap).collect()
}

#[test]
fn nccl_is_conformant() {
    let stub = Arc::new(Stub::new());
    let its = stub.clone();
    let schedules = std::env::var("DG_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let suite = Suite::new(move |size| on_device(&its, size, Options::default())).schedules(schedules);
    let summary = suite.run().unwrap_or_else(|failure| panic!("{failure}"));
    assert!(summary.left_out.is_empty(), "{summary:?}");
    let counts = stub.counts();
    println!("{schedules} schedules: {counts:?}");
    assert_eq!((counts.wrong, counts.communicators), (0, 0));
    assert!(counts.groups < counts.calls, "calls that are ready together are one launch");
}

/// With room for a few unread messages only, everything still arrives.
#[test]
fn little_room_for_unread_messages_changes_nothing() {
    let stub = Arc::new(Stub::new());
    let its = stub.clone();
    let options = Options { untaken_bytes_max: 4 << 10, ..Options::default() };
    let suite = Suite::new(move |size| on_device(&its, size, options)).schedules(30);
    suite.run().unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((stub.counts().wrong, stub.counts().communicators), (0, 0));
}

#[test]
fn values_stay_on_the_device_and_its_memory_comes_back() {
    let stub = Stub::new();
    std::thread::scope(|scope| {
        for comm in stub.ranks(3, Options::default()) {
            scope.spawn(move || {
                let call =
                    |step| Call::within(Duration::from_secs(20), Class::RingKv, Tag::new(1).step(step));
                let next = (comm.rank() + 1) % 3;
                let mut block = Block::from_f32((0..5000).map(|i| (i + comm.rank() * 7) as f32).collect());
                for step in 0..6 {
                    let from = (comm.rank() + 2) % 3;
                    let got =
                        comm.exchange(&call(step), vec![(next, block.clone())], &[(from, block.shape())]);
                    block = got.unwrap().pop().unwrap();
                    assert!(block.host().is_none(), "it lies on the device");
                }
                let bytes = block.slice(10..12).device().unwrap().to_host().unwrap();
                let values: Vec<f32> = bytes.as_chunks().0.iter().copied().map(f32::from_ne_bytes).collect();
                let first = (10 + comm.rank() * 7) as f32;
                assert_eq!(values, [first, first + 1.0], "twice round the ring");
                let sent = comm.counters().class(Class::RingKv);
                assert_eq!((sent.bytes, sent.messages), (6 * 20_000, 6));
                drop(block);
                comm.finish().unwrap();
            });
        }
    });
    let counts = stub.counts();
    assert_eq!((counts.communicators, counts.allocated, counts.wrong), (0, 0, 0));
}
