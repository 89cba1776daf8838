//! What only ranks of one process promise, and the wrappers around them.

mod support;

use dg_comm::{
    Block, BlockShape, Call, Class, CommError, Communicator, Deadline, Delayed, Device, EventKind, Gone,
    Group, HostStaged, InProcess, Options, Recording, Reduce, Tag, Trace,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{FakeGpu, VALUES_MAX};

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(20);

fn call(class: Class) -> Call {
    Call::within(LONG, class, Tag::new(1).step(2).layer(3))
}

/// Runs `body` on each rank and returns what it returns.
fn each<C: Communicator, T: Send>(ranks: Vec<C>, body: impl Fn(C) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |comm| scope.spawn(|| body(comm));
        let threads: Vec<_> = ranks.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics here")).collect()
    })
}

fn address(block: &Block) -> usize {
    block.host().unwrap().as_ptr().addr()
}

#[test]
fn the_receiver_reads_the_memory_of_the_sender() {
    let addresses = each(InProcess::group(3), |comm| {
        let mine = Block::from_f32(vec![comm.rank() as f32; 12]);
        let parts = mine.split(&[4, 4, 4]);
        let gathered = comm.all_gather(&call(Class::Gather), mine.clone(), &[12; 3]).unwrap();
        let exchanged = comm.all_to_all(&call(Class::UlyssesQkv), parts, &[4; 3]).unwrap();
        comm.finish().unwrap();
        let read: Vec<_> = gathered.iter().map(address).chain(exchanged.iter().map(address)).collect();
        // Kept until every rank has compared, so that no address is used twice.
        (comm.rank(), mine, read)
    });
    let own: Vec<_> = addresses.iter().map(|(_, mine, _)| address(mine)).collect();
    for (rank, _, read) in &addresses {
        let parts = own.iter().map(|at| at + rank * 4 * size_of::<f32>());
        assert_eq!(*read, own.iter().copied().chain(parts).collect::<Vec<_>>());
    }
}

#[test]
fn a_panic_ends_all_ranks_within_a_second_and_is_named() {
    let begin = Instant::now();
    let names = (0..8).map(|rank| format!("rank {rank} (ulysses {rank})")).collect();
    let ranks = InProcess::with(Options { names, ..Options::new(8) });
    let errors = each(ranks, |comm| {
        let rank = comm.rank();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            if rank == 5 {
                std::thread::sleep(SHORT);
                // Not `panic!`, whose message belongs on no terminal here.
                std::panic::resume_unwind(Box::new("out of memory"));
            }
            comm.barrier(&call(Class::Control)).unwrap_err()
        }));
        outcome.ok()
    });
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    for (rank, error) in errors.into_iter().enumerate().filter(|(rank, _)| *rank != 5) {
        let error = error.expect("only rank 5 panics");
        assert!(
            matches!(&error, CommError::PeerGone { rank, how: Gone::Panicked, .. } if rank.rank == 5),
            "{error}"
        );
        assert!(error.to_string().contains("rank 5 (ulysses 5) panicked"), "rank {rank}: {error}");
    }
}

#[test]
fn errors_say_which_call_failed_and_what_to_look_at() {
    let [zero, one]: [InProcess; 2] = InProcess::group(2).try_into().ok().unwrap();
    let short = |class| Call::new(class, Tag::new(9).layer(4), Deadline::after(SHORT));
    one.send(0, &short(Class::RingKv), Block::from_f32(vec![])).unwrap();
    let error = zero.all_gather(&short(Class::Gather), Block::from_f32(vec![1.0]), &[1, 1]).unwrap_err();
    let text = error.to_string();
    let begins =
        "all_gather gather (request 9, step 0, layer 4, patch 0, kind 0) from rank 1: gave up after ";
    let ends = "hint: rank 1 is elsewhere: it has sent message ring_kv (request 9, step 0, layer 4, patch 0, kind 0)";
    assert!(text.starts_with(begins) && text.ends_with(ends), "{text}");
    zero.abort("no space left on device");
    let text = one.check().unwrap_err().to_string();
    assert_eq!(
        text,
        "check: rank 0 aborted: no space left on device; hint: that rank's output has the details"
    );
}

/// Ranks 6 and 7 of a run, connected with one another only.
#[test]
fn a_part_of_all_ranks_speaks_of_their_numbers_in_the_run() {
    let trace = Trace::new();
    let record = |comm| Recording::new(comm, trace.clone());
    let ranks: Vec<_> = InProcess::with(Options::ranks(6..8)).into_iter().map(record).collect();
    let [six, seven]: [_; 2] = ranks.try_into().ok().unwrap();
    assert_eq!((six.rank(), six.world_rank(0), six.world_rank(1)), (0, 6, 7));
    let short = |class| Call::new(class, Tag::new(1), Deadline::after(SHORT));
    let block = || Block::from_f32(vec![1.0, 2.0]);

    six.send(1, &short(Class::RingKv), block()).unwrap();
    assert_eq!(six.counters().sent()["ring_kv"].to, std::collections::BTreeMap::from([(7, 8)]));
    seven.recv(0, &short(Class::RingKv), BlockShape::f32(2)).unwrap();
    let seen: Vec<_> = trace.events().iter().map(|event| (event.kind, event.rank, event.peer)).collect();
    assert_eq!(seen, [(EventKind::Send, 6, 7), (EventKind::Post, 7, 6), (EventKind::Wait, 7, 6)]);

    six.send(1, &short(Class::Embeds), block()).unwrap();
    let late = seven.recv(0, &short(Class::RingKv), BlockShape::f32(2)).unwrap_err();
    let text = late.to_string();
    assert!(text.contains("from rank 6: gave up") && text.contains("rank 6 is elsewhere"), "{text}");
    assert!(seven.counters().tally(Class::RingKv, 6).wait >= SHORT);
    let wrong = seven.recv(0, &short(Class::Embeds), BlockShape::f32(3)).unwrap_err();
    assert!(wrong.to_string().contains("from rank 6: expected"), "{wrong}");
    six.send(1, &short(Class::Gather), block()).unwrap();
    let unread = seven.finish().unwrap_err();
    assert!(matches!(&unread, CommError::Unread { rank, from: 6, .. } if rank.rank == 7), "{unread}");
    let over = six.send(1, &short(Class::Gather), block()).unwrap_err();
    assert!(matches!(&over, CommError::PeerGone { rank, .. } if rank.rank == 7), "{over}");
    assert!(over.to_string().contains("to rank 7: rank 7 has finished"), "{over}");
    six.abort("the disk is full");
    let error = seven.check().unwrap_err();
    assert!(matches!(&error, CommError::Aborted { by, .. } if by.rank == 6), "{error}");
}

#[test]
fn a_sender_waits_only_when_the_queue_is_full() {
    let options = Options { in_flight_max: 70, ..Options::new(2) };
    let [zero, one]: [InProcess; 2] = InProcess::with(options).try_into().ok().unwrap();
    let short = || Call::new(Class::PipeHidden, Tag::new(1), Deadline::after(SHORT));
    for _ in 0..70 {
        zero.send(1, &short(), Block::from_f32(vec![1.0])).unwrap();
    }
    assert_eq!(zero.counters().total().wait, Duration::ZERO);
    let error = zero.send(1, &short(), Block::from_f32(vec![1.0])).unwrap_err();
    assert!(matches!(error, CommError::Deadline { .. }), "{error}");
    assert!(error.to_string().contains("has not read the last 70 messages"), "{error}");
    assert!(zero.counters().tally(Class::PipeHidden, 1).wait >= SHORT);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            one.recv(0, &short(), BlockShape::f32(1)).unwrap();
        });
        zero.send(1, &call(Class::PipeHidden), Block::from_f32(vec![1.0])).unwrap();
    });
    assert_eq!(zero.counters().tally(Class::PipeHidden, 1).messages, 71);
}

/// One round trip of every block, with the next one on its way while this one is worked on.
fn ring(comm: &dyn Communicator) -> Vec<f32> {
    let (rank, size) = (comm.rank(), comm.size());
    let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
    let mut block = Block::from_f32(vec![rank as f32]);
    let mut seen = Vec::new();
    for round in 0..size {
        let envelope = call(Class::RingKv).envelope();
        let call = Call::within(LONG, envelope.class, envelope.tag.kind(round as u32));
        let last = round + 1 == size;
        let coming = (!last).then(|| comm.post_recv(before, &call, BlockShape::f32(1)).unwrap());
        if !last {
            comm.send(next, &call, block.clone()).unwrap();
        }
        seen.push(block.as_f32().unwrap()[0]);
        if let Some(mut coming) = coming {
            block = coming.wait(Deadline::after(LONG)).unwrap();
        }
    }
    seen
}

#[test]
fn a_trace_shows_a_ring() {
    let trace = Trace::new();
    let record = |comm| Recording::new(Delayed::new(comm, 3, Duration::from_millis(2)), trace.clone());
    let seen = each(InProcess::group(4).into_iter().map(record).collect(), |comm| {
        let seen = ring(&comm);
        comm.finish().unwrap();
        seen
    });
    assert_eq!(seen[1], [1.0, 0.0, 3.0, 2.0]);
    let events = trace.events();
    for rank in 0..4 {
        let of = |kind| events.iter().filter(move |event| event.rank == rank && event.kind == kind);
        assert_eq!(
            (of(EventKind::Post).count(), of(EventKind::Send).count(), of(EventKind::Wait).count()),
            (3, 3, 3)
        );
        let neighbour = |event: &dg_comm::Event| event.peer == (rank + 1) % 4 && event.bytes == 4 && event.ok;
        assert!(of(EventKind::Send).all(neighbour), "a ring sends to the next rank only");
        for (send, wait) in of(EventKind::Send).zip(of(EventKind::Wait)) {
            assert!(send.begin <= send.end && send.end <= wait.end, "{send:?} {wait:?}");
            assert_eq!(send.envelope, wait.envelope);
        }
    }
}

fn on_device(values: Vec<f32>) -> Block {
    let host = Block::from_f32(values);
    Block::on_device(host.shape(), FakeGpu.upload(host.shape(), host.host().unwrap()).unwrap())
}

fn download(block: &Block) -> Vec<f32> {
    let bytes = block.device().expect("on the device").to_host().unwrap();
    Block::from_bytes(block.dtype(), bytes).unwrap().as_f32().unwrap().to_vec()
}

#[test]
fn device_memory_goes_through_the_host() {
    each(InProcess::group(4), |comm| {
        let world: Arc<dyn Communicator> = Arc::new(comm);
        let pair = vec![world.rank() / 2 * 2, world.rank() / 2 * 2 + 1];
        let staged = HostStaged::new(Group::new(world.clone(), "pair", pair).unwrap(), Arc::new(FakeGpu));
        let (me, peer) = (staged.rank(), 1 - staged.rank());
        let parts = on_device(vec![me as f32; 5]).split(&[2, 3]);
        let got = staged.all_to_all(&call(Class::UlyssesOut), parts, &[2 + me, 2 + me]).unwrap();
        assert_eq!(download(&got[peer]), vec![peer as f32; 2 + me]);
        let sum = staged.reduce(&call(Class::Control), Reduce::Sum, on_device(vec![1.0, 2.0])).unwrap();
        assert_eq!(download(&sum), [2.0, 4.0]);
        staged.barrier(&call(Class::Control)).unwrap();
        assert_eq!(world.counters().class(Class::UlyssesOut).bytes, 4 * (2 + peer as u64));

        let many = Block::from_f32(vec![0.0; VALUES_MAX + 1]);
        staged.send(peer, &call(Class::Gather), many.clone()).unwrap();
        let refused = staged.recv(peer, &call(Class::Gather), many.shape()).unwrap_err();
        assert!(refused.to_string().contains("the device refused a copy: out of memory"), "{refused}");
        staged.barrier(&call(Class::Control)).unwrap();
        world.finish().unwrap();
    });
}

#[test]
fn ranks_that_share_a_device_pass_its_memory_on() {
    let [zero, one]: [InProcess; 2] = InProcess::group(2).try_into().ok().unwrap();
    let block = on_device(vec![1.0, 2.0]);
    zero.send(1, &call(Class::RingKv), block.clone()).unwrap();
    let got = one.recv(0, &call(Class::RingKv), BlockShape::f32(2)).unwrap();
    assert!(Arc::ptr_eq(got.device().unwrap(), block.device().unwrap()));
    let refused = zero.reduce(&call(Class::Control), Reduce::Sum, block).unwrap_err();
    assert!(matches!(refused, CommError::Invalid { .. }), "{refused}");
}

#[test]
fn a_handle_does_not_keep_its_rank_alive() {
    let [zero, one]: [InProcess; 2] = InProcess::group(2).try_into().ok().unwrap();
    let mut pending = zero.post_recv(1, &call(Class::RingKv), BlockShape::f32(1)).unwrap();
    drop(zero);
    let error = one.check().unwrap_err();
    assert!(matches!(&error, CommError::PeerGone { rank, how: Gone::Lost, .. } if rank.rank == 0), "{error}");
    assert!(pending.is_ready());
    pending.wait(Deadline::after(LONG)).unwrap_err();
}
