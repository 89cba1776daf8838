//! Nobody waits for ever, and every error says what is wrong.

use super::Suite;
use super::harness::{Gate, Outcome, ensure, run};
use crate::{
    Block, BlockShape, Call, Class, CommError, Communicator, Deadline, Gone, Group, Op, Reduce, Result, Tag,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The calls that can wait for rank 0.
const BLOCKING: [Blocking; 7] = [
    Blocking::Receive,
    Blocking::Send,
    Blocking::AllToAll,
    Blocking::AllGather,
    Blocking::Broadcast,
    Blocking::Reduce,
    Blocking::Barrier,
];

#[derive(Clone, Copy, Debug)]
enum Blocking {
    Receive,
    Send,
    AllToAll,
    AllGather,
    Broadcast,
    Reduce,
    Barrier,
}

impl Blocking {
    const fn op(self) -> Op {
        match self {
            Self::Receive | Self::Send => Op::Message,
            Self::AllToAll => Op::AllToAll,
            Self::AllGather => Op::AllGather,
            Self::Broadcast => Op::Broadcast,
            Self::Reduce => Op::Reduce,
            Self::Barrier => Op::Barrier,
        }
    }

    /// Makes the call. It waits, because rank 0 does not take part.
    fn call(self, comm: &dyn Communicator, call: &Call) -> Result<()> {
        let (block, size) = (Block::from_f32(vec![1.0; 3]), comm.size());
        match self {
            Self::Receive => comm.recv(0, call, BlockShape::f32(3)).map(drop),
            Self::Send => (0..FLOOD).try_for_each(|_| comm.send(0, call, block.clone())),
            Self::AllToAll => comm.all_to_all(call, vec![block; size], &vec![3; size]).map(drop),
            Self::AllGather => comm.all_gather(call, block, &vec![3; size]).map(drop),
            Self::Broadcast => comm.broadcast(call, 0, None, BlockShape::f32(3)).map(drop),
            Self::Reduce => comm.reduce(call, Reduce::Sum, block).map(drop),
            Self::Barrier => comm.barrier(call),
        }
    }
}

/// Messages after which a queue that nobody reads has to be full.
const FLOOD: usize = 20_000;

const TAG: Tag = Tag { request: 11, step: 2, layer: 3, patch: 4, kind: 5 };

/// Each call gives up at its deadline and names rank 0, which does not come.
pub(super) fn deadlines(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    for blocking in BLOCKING {
        let gate = Gate::default();
        run(suite.make(3), patience * 2, move |comm| {
            if comm.rank() == 0 {
                gate.wait_for(2, patience * 2)?;
            } else {
                let (begin, allowed) = (Instant::now(), Duration::from_millis(60));
                let result = blocking.call(&*comm, &Call::within(allowed, Class::PipeHidden, TAG));
                let took = begin.elapsed();
                gate.pass();
                expect_deadline(&*comm, blocking, &result)?;
                ensure(took >= allowed && took < allowed + patience / 2, || {
                    format!("{blocking:?} had {allowed:?} and took {took:?}")
                })?;
            }
            // What was sent to ranks that did not come is still unread.
            let _ = comm.finish();
            Ok(())
        })?;
    }
    Ok(())
}

fn expect_deadline(comm: &dyn Communicator, blocking: Blocking, result: &Result<()>) -> Outcome {
    let Err(CommError::Deadline { place, waited, hint }) = result else {
        return Err(format!("{blocking:?} without rank 0: expected a deadline, got {result:?}").into());
    };
    let names = (place.op, place.class, place.tag, place.peer);
    let expected = (blocking.op(), Class::PipeHidden, TAG, Some(comm.world_rank(0)));
    ensure(names == expected, || format!("{blocking:?}: the error names {names:?}, not {expected:?}"))?;
    ensure(!hint.is_empty() && *waited > Duration::ZERO, || format!("{blocking:?}: no hint or no time"))
}

/// A message that comes after the deadline is still there for the next receive, or for the same handle.
pub(super) fn late_messages(suite: &Suite) -> Outcome {
    let (patience, gate) = (suite.patience, Gate::default());
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let call = Call::within(patience, Class::RingKv, TAG);
        let of = |x: f32| Block::from_f32(vec![x]);
        if comm.rank() == 0 {
            for i in 1..=2 {
                gate.wait_for(i, patience)?;
                comm.send(1, &call, of(i as f32))?;
            }
            return Ok(comm.finish()?);
        }
        let soon = || Deadline::after(Duration::from_millis(10));
        let short = Call::new(Class::RingKv, TAG, soon());
        let early = comm.recv(0, &short, BlockShape::f32(1));
        ensure(matches!(early, Err(CommError::Deadline { .. })), || {
            format!("nothing was sent, got {early:?}")
        })?;
        gate.pass();
        super::data::same("the next receive", &of(1.0), &comm.recv(0, &call, BlockShape::f32(1))?)?;
        let mut handle = comm.post_recv(0, &call, BlockShape::f32(1))?;
        let early = handle.wait(soon());
        ensure(matches!(early, Err(CommError::Deadline { .. })), || {
            format!("nothing was sent, got {early:?}")
        })?;
        gate.pass();
        super::data::same("the same handle", &of(2.0), &handle.wait(Deadline::after(patience))?)?;
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// An abort wakes every call with the name and the cause of the first who aborted, and later calls fail too.
pub(super) fn abort(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    for blocking in BLOCKING {
        let gate = Gate::default();
        run(suite.make(3), patience * 3, move |comm| {
            if comm.rank() == 0 {
                gate.wait_for(2, patience)?;
                std::thread::sleep(Duration::from_millis(15));
                comm.abort("the disk is full");
                gate.wait_for(4, patience * 2)?;
                return Ok(());
            }
            gate.pass();
            let begin = Instant::now();
            let result = blocking.call(&*comm, &Call::within(patience, Class::Gather, TAG));
            let took = begin.elapsed();
            expect_abort(&*comm, blocking, &result)?;
            ensure(took < patience / 2, || format!("{blocking:?} was woken after {took:?} only"))?;
            comm.abort("me too");
            expect_abort(&*comm, blocking, &comm.check())?;
            expect_abort(
                &*comm,
                blocking,
                &comm.send(0, &Call::within(patience, Class::Gather, TAG), Block::from_f32(vec![])),
            )?;
            expect_abort(
                &*comm,
                blocking,
                &blocking.call(&*comm, &Call::within(patience, Class::Gather, TAG)),
            )?;
            gate.pass();
            Ok(())
        })?;
    }
    // Nobody to talk to is no reason to go on.
    let outcome = run(suite.make(1), patience * 2, move |comm| {
        comm.abort("the disk is full");
        let call = Call::within(patience, Class::Gather, TAG);
        for blocking in [Blocking::AllToAll, Blocking::AllGather, Blocking::Reduce, Blocking::Barrier] {
            expect_abort(&*comm, blocking, &blocking.call(&*comm, &call))?;
        }
        Ok(())
    });
    outcome.map(drop)
}

fn expect_abort(comm: &dyn Communicator, blocking: Blocking, result: &Result<()>) -> Outcome {
    match result {
        Err(CommError::Aborted { by, cause, .. })
            if by.rank == comm.world_rank(0) && cause == "the disk is full" =>
        {
            Ok(())
        }
        other => Err(format!("{blocking:?}: expected the abort of rank 0, got {other:?}").into()),
    }
}

/// A rank that disappears without finishing wakes every call, those that wait for other ranks too.
pub(super) fn dead_rank(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    for blocking in BLOCKING {
        let gate = Gate::default();
        run(suite.make(4), patience * 3, move |comm| {
            if comm.rank() == 0 {
                gate.wait_for(3, patience)?;
                std::thread::sleep(Duration::from_millis(15));
                return Ok(());
            }
            gate.pass();
            let begin = Instant::now();
            let call = Call::within(patience, Class::Gather, TAG);
            // Rank 3 waits for rank 1, which is alive.
            let result = match comm.rank() {
                3 => comm.recv(1, &call, BlockShape::f32(1)).map(drop),
                _ => blocking.call(&*comm, &call),
            };
            let took = begin.elapsed();
            expect_dead(&*comm, blocking, &result)?;
            ensure(took < patience / 2, || format!("{blocking:?} was woken after {took:?} only"))?;
            expect_dead(&*comm, blocking, &comm.check())?;
            gate.pass();
            gate.wait_for(6, patience)
        })?;
    }
    Ok(())
}

fn expect_dead(comm: &dyn Communicator, blocking: Blocking, result: &Result<()>) -> Outcome {
    match result {
        Err(CommError::PeerGone { rank, how: Gone::Lost | Gone::Panicked, .. })
            if rank.rank == comm.world_rank(0) =>
        {
            Ok(())
        }
        other => Err(format!("{blocking:?}: expected that rank 0 is lost, got {other:?}").into()),
    }
}

/// What a rank sent before it finished arrives; after that it is gone, without a wait. Unread messages are told.
pub(super) fn finished_rank(suite: &Suite) -> Outcome {
    let (patience, gate) = (suite.patience, Gate::default());
    let outcome = run(suite.make(2), patience * 3, move |comm| {
        let call = |kind| Call::within(patience, Class::Embeds, TAG.kind(kind));
        let of = |x: f32| Block::from_f32(vec![x]);
        if comm.rank() == 0 {
            // Messages of one rank come in order, so the one that is not read is here as well.
            comm.recv(1, &call(1), BlockShape::f32(1))?;
            comm.send(1, &call(2), of(2.0))?;
            comm.send(1, &call(3), of(3.0))?;
            let finish = comm.finish();
            let told = matches!(&finish, Err(CommError::Unread { rank, messages: 1, from, first })
                if rank.rank == comm.world_rank(0) && *from == comm.world_rank(1) && first.tag == TAG.kind(0));
            ensure(told, || format!("one message was not read, and finish says {finish:?}"))?;
            ensure(comm.finish().is_ok(), || "finish cannot be called again".into())?;
            gate.pass();
            return gate.wait_for(2, patience);
        }
        comm.send(0, &call(0), of(0.0))?;
        comm.send(0, &call(1), of(1.0))?;
        gate.wait_for(1, patience)?;
        for kind in [3, 2] {
            let expected = of(kind as f32);
            super::data::same(
                "sent before the end",
                &expected,
                &comm.recv(0, &call(kind), expected.shape())?,
            )?;
        }
        let begin = Instant::now();
        for result in [comm.recv(0, &call(4), BlockShape::f32(1)).map(drop), comm.send(0, &call(5), of(5.0))]
        {
            let told = matches!(&result, Err(CommError::PeerGone { rank, how: Gone::Finished, .. }) if rank.rank == comm.world_rank(0));
            ensure(told, || format!("rank 0 has finished, and the call says {result:?}"))?;
        }
        ensure(begin.elapsed() < patience / 2, || "waited for a rank that has finished".into())?;
        comm.check()?;
        gate.pass();
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// A rank that finishes wakes those who wait for it, and only them.
pub(super) fn finish_while_waiting(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    for blocking in [Blocking::Receive, Blocking::Send] {
        let gate = Gate::default();
        run(suite.make(3), patience * 3, move |comm| {
            let call = Call::within(patience, Class::Embeds, TAG);
            if comm.rank() == 0 {
                gate.wait_for(2, patience)?;
                std::thread::sleep(Duration::from_millis(15));
                // What the flood has left here is unread.
                let _ = comm.finish();
                return gate.wait_for(3, patience * 2);
            }
            gate.pass();
            if comm.rank() == 2 {
                comm.recv(1, &call, BlockShape::f32(1))?;
                return Ok(comm.finish()?);
            }
            let begin = Instant::now();
            let result = blocking.call(&*comm, &call);
            let told = matches!(&result, Err(CommError::PeerGone { rank, how: Gone::Finished, .. }) if rank.rank == comm.world_rank(0));
            ensure(told, || format!("rank 0 finished during {blocking:?}, which says {result:?}"))?;
            ensure(begin.elapsed() < patience / 2, || format!("{blocking:?} was woken late"))?;
            comm.send(2, &call, Block::from_f32(vec![1.0]))?;
            gate.pass();
            Ok(comm.finish()?)
        })?;
    }
    Ok(())
}

/// A message of another length or format is refused with both shapes.
pub(super) fn wrong_messages(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let shapes = [
            (BlockShape::f32(3), BlockShape::f32(4)),
            (BlockShape::f32(0), BlockShape::f32(1)),
            (BlockShape::f32(1), BlockShape::f32(0)),
            (BlockShape::f32(2), BlockShape::bf16(4)),
            (BlockShape::bf16(2), BlockShape::f32(2)),
        ];
        for (sent, expected) in shapes {
            let call = Call::within(patience, Class::PipeText, TAG);
            if comm.rank() == 0 {
                comm.send(1, &call, super::data::block(1, sent))?;
                continue;
            }
            let result = comm.recv(0, &call, expected);
            let told = matches!(&result, Err(CommError::Mismatch { place, expected: e, got })
                if (*e, *got, place.peer, place.tag) == (expected, sent, Some(comm.world_rank(0)), TAG));
            ensure(told, || format!("{sent} was sent, {expected} expected: {result:?}"))?;
        }
        // Ranks that disagree about a collective.
        let len = 1 + comm.rank();
        let call = Call::within(patience, Class::Gather, TAG);
        let result = comm.all_gather(&call, Block::from_f32(vec![0.0; len]), &[len, len]);
        let told = matches!(result, Err(CommError::Mismatch { .. }));
        ensure(told, || format!("rank 0 has 1 value and rank 1 has 2: {result:?}"))?;
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// What cannot work is refused at once, on every rank alone, and does no harm.
pub(super) fn wrong_arguments(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let call = Call::within(patience, Class::Gather, TAG);
        let (one, shape) = (Block::from_f32(vec![1.0]), BlockShape::f32(1));
        let root = |block| if comm.rank() == 0 { None } else { Some(block) };
        let mixed = vec![one.clone(), Block::empty(dg_core::DType::Bfloat16)];
        let refused: [(&str, Result<()>); 9] = [
            ("send to rank 2 of 2", comm.send(2, &call, one.clone())),
            ("recv from rank 2 of 2", comm.recv(2, &call, shape).map(drop)),
            (
                "all_to_all with 1 block for 2 ranks",
                comm.all_to_all(&call, vec![one.clone()], &[1, 1]).map(drop),
            ),
            ("all_to_all with 3 lengths", comm.all_to_all(&call, vec![one.clone(); 2], &[1, 1, 1]).map(drop)),
            ("all_to_all with two formats", comm.all_to_all(&call, mixed, &[1, 1]).map(drop)),
            ("all_gather with 1 length", comm.all_gather(&call, one.clone(), &[1]).map(drop)),
            ("broadcast from rank 2", comm.broadcast(&call, 2, Some(one.clone()), shape).map(drop)),
            ("broadcast by everybody but the root", comm.broadcast(&call, 0, root(one), shape).map(drop)),
            ("a group with a rank twice", Group::new(comm.clone(), "g", vec![0, 1, 0]).map(drop)),
        ];
        for (what, result) in refused {
            ensure(matches!(result, Err(CommError::Invalid { .. })), || format!("{what}: {result:?}"))?;
        }
        let stranger = Group::new(comm.clone(), "g", vec![1 - comm.rank()]);
        ensure(stranger.is_err(), || "a group without this rank was made".into())?;
        let outside = Group::new(Arc::clone(&comm), "g", vec![comm.rank(), 2]);
        ensure(outside.is_err(), || "a group with rank 2 of 2 was made".into())?;
        // Rank 1 does not take part: rank 0 has to see by itself that its block is not what it says.
        if comm.rank() == 0 {
            let result = comm.all_gather(&call, Block::from_f32(vec![1.0]), &[2, 1]);
            let told = matches!(result, Err(CommError::Mismatch { .. }));
            ensure(told, || format!("all_gather of 1 value that should be 2: {result:?}"))?;
        }
        comm.barrier(&call)?;
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}
