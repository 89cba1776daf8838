//! Everything arrives where it should, whatever its size, tag and group.

use super::Suite;
use super::data::{Random, block, reduced, same, word};
use super::harness::{Gate, Outcome, ensure, run};
use crate::{Block, BlockShape, Call, Class, Communicator, Deadline, Group, IN_FLIGHT_MIN, Reduce, Tag};
use dg_core::DType;
use std::sync::Arc;
use std::time::Duration;

/// A rank alone gets back what it has.
pub(super) fn one_rank(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    let outcome = run(suite.make(1), patience * 2, move |comm| {
        let call = Call::within(patience, Class::Gather, Tag::new(1));
        ensure((comm.rank(), comm.size()) == (0, 1), || "is not rank 0 of 1".into())?;
        let mine = block(3, BlockShape::f32(5));
        for len in [0, 5] {
            let mine = mine.slice(0..len);
            same("all_to_all", &mine, &comm.all_to_all(&call, vec![mine.clone()], &[len])?[0])?;
            same("all_gather", &mine, &comm.all_gather(&call, mine.clone(), &[len])?[0])?;
            same("broadcast", &mine, &comm.broadcast(&call, 0, Some(mine.clone()), mine.shape())?)?;
            same("reduce", &mine, &comm.reduce(&call, Reduce::Sum, mine.clone())?)?;
            comm.send(0, &call, mine.clone())?;
            same("a message to itself", &mine, &comm.recv(0, &call, mine.shape())?)?;
        }
        comm.barrier(&call)?;
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// Collectives with random lengths, 0 among them, for both number formats.
pub(super) fn uneven_sizes(suite: &Suite) -> Outcome {
    let (seed, patience) = (suite.seed, suite.patience);
    for round in 0..6 {
        let size = 2 + round % 4;
        run(suite.make(size), patience * 2, move |comm| {
            for dtype in [DType::Float32, DType::Bfloat16] {
                uneven_round(&*comm, word(&[seed, round as u64, dtype.bytes()]), dtype, patience)?;
            }
            Ok(comm.finish()?)
        })?;
    }
    Ok(())
}

fn uneven_round(comm: &dyn Communicator, seed: u64, dtype: DType, patience: Duration) -> Outcome {
    let (me, size) = (comm.rank(), comm.size());
    let mut random = Random(seed);
    let lens: Vec<Vec<usize>> = (0..size).map(|_| (0..size).map(|_| random.len()).collect()).collect();
    let shape = |len| BlockShape { dtype, len };
    let of = |from: usize, to: usize| block(word(&[seed, from as u64, to as u64]), shape(lens[from][to]));
    let call = Call::within(patience, Class::UlyssesQkv, Tag::new(2));

    let lengths: Vec<_> = (0..size).map(|from| lens[from][me]).collect();
    let got = comm.all_to_all(&call, (0..size).map(|to| of(me, to)).collect(), &lengths)?;
    ensure(got.len() == size, || format!("all_to_all returned {} blocks for {size} ranks", got.len()))?;
    for (from, got) in got.iter().enumerate() {
        same(&format!("all_to_all from rank {from}"), &of(from, me), got)?;
    }
    let lengths: Vec<_> = (0..size).map(|from| lens[from][0]).collect();
    let got = comm.all_gather(&call, of(me, 0), &lengths)?;
    ensure(got.len() == size, || format!("all_gather returned {} blocks for {size} ranks", got.len()))?;
    for (from, got) in got.iter().enumerate() {
        same(&format!("all_gather from rank {from}"), &of(from, 0), got)?;
    }
    for (root, len) in lens[0].iter().enumerate() {
        let sent = of(root, root);
        let got = comm.broadcast(&call, root, (root == me).then(|| sent.clone()), sent.shape())?;
        same(&format!("broadcast from rank {root}"), &sent, &got)?;
        let part = |rank: usize| block(word(&[seed, 9, rank as u64]), shape(*len));
        for how in [Reduce::Sum, Reduce::Max] {
            let model = reduced(how, &(0..size).map(part).collect::<Vec<_>>());
            same(&format!("reduce {how:?}"), &model, &comm.reduce(&call, how, part(me))?)?;
        }
    }
    Ok(())
}

/// Sums are those of rank 0 + rank 1 + …, in f32, with the same bits everywhere; NaN stays.
pub(super) fn same_bits_in_rank_order(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    let columns: [[f32; 4]; 5] = [
        [1e8, 1.0, -1e8, 1.0],
        [1.0, 1e8, 1.0, -1e8],
        [0.1, 0.2, 0.3, 1e-9],
        [-0.0, 0.0, -0.0, -0.0],
        [1.0, f32::NAN, f32::INFINITY, 2.0],
    ];
    let sums = columns.map(|[a, b, c, d]| ((a + b) + c) + d);
    let maxima = [1e8, 1e8, 0.3, 0.0, f32::NAN];
    let outcome = run(suite.make(4), patience * 2, move |comm| {
        let mine = Block::from_f32(columns.map(|column| column[comm.rank()]).to_vec());
        for (how, model) in [(Reduce::Sum, sums), (Reduce::Max, maxima)] {
            let call = Call::within(patience, Class::Control, Tag::new(3));
            let got = comm.reduce(&call, how, mine.clone())?;
            let got: Vec<f32> = got.as_f32().unwrap_or_default().to_vec();
            let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            let all = got.len() == model.len() && got.iter().zip(&model).all(equal);
            ensure(all, || format!("reduce {how:?}: expected {model:?} by order of rank, got {got:?}"))?;
        }
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// Nobody leaves a barrier before everybody has come.
pub(super) fn barrier(suite: &Suite) -> Outcome {
    let (patience, gate) = (suite.patience, Gate::default());
    let outcome = run(suite.make(4), patience * 2, move |comm| {
        for round in 1..=8 {
            if (round + comm.rank()).is_multiple_of(3) {
                std::thread::sleep(Duration::from_millis(3));
            }
            gate.pass();
            comm.barrier(&Call::within(patience, Class::Control, Tag::new(4)))?;
            let passed = gate.passed();
            ensure(passed >= 4 * round, || {
                format!("left barrier {round} when {passed} had come, not 4 × {round}")
            })?;
        }
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// As many messages as may be on their way, received in another order; collectives under the same tags do not mind.
pub(super) fn tags_in_any_order(suite: &Suite) -> Outcome {
    let (seed, patience) = (suite.seed, suite.patience);
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let peer = 1 - comm.rank();
        // One place is left for the message of the reduction.
        let count = (IN_FLIGHT_MIN as u64 - 1) / 2 * 2;
        let tag = |i: u64| match i % 4 {
            0 => Tag::new(5).step(i as u32),
            1 => Tag::new(5).layer(i as u32),
            2 => Tag::new(5).patch(i as u32),
            _ => Tag::new(5 + i).kind(2),
        };
        let call = |i: u64| Call::within(patience, Class::ALL[(i % 3) as usize], tag(i / 2));
        let of = |from: usize, i: u64| block(word(&[from as u64, i]), BlockShape::f32((i % 7) as usize));
        for i in 0..count {
            comm.send(peer, &call(i), of(comm.rank(), i))?;
        }
        let one = comm.reduce(&call(0), Reduce::Sum, Block::from_f32(vec![1.0]))?;
        same("reduce with messages on their way", &Block::from_f32(vec![2.0]), &one)?;
        let mut order: Vec<u64> = (0..count).collect();
        Random(word(&[seed, comm.rank() as u64])).shuffle(&mut order);
        for i in order {
            let expected = of(peer, i);
            same(&format!("message {i}"), &expected, &comm.recv(peer, &call(i), expected.shape())?)?;
        }
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// A receiver that is far behind makes the sender wait, and nothing is lost.
pub(super) fn slow_receiver(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let call = Call::within(patience, Class::PipeHidden, Tag::new(9));
        let of = |i: u64| block(i, BlockShape::f32((i % 5) as usize));
        let count = 20 * IN_FLIGHT_MIN as u64;
        if comm.rank() == 0 {
            for i in 0..count {
                comm.send(1, &call, of(i))?;
            }
            return Ok(comm.finish()?);
        }
        std::thread::sleep(Duration::from_millis(30));
        for i in 0..count {
            same(&format!("message {i}"), &of(i), &comm.recv(0, &call, of(i).shape())?)?;
        }
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// Receives that are posted early get their messages in the order of posting; one that is dropped gives way.
pub(super) fn handles(suite: &Suite) -> Outcome {
    let (patience, gate) = (suite.patience, Gate::default());
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let call = Call::within(patience, Class::RingKv, Tag::new(6));
        let of = |i: u64| block(i, BlockShape::bf16(i as usize));
        if comm.rank() == 0 {
            gate.wait_for(1, patience)?;
            for i in 0..4 {
                comm.send(1, &call, of(i))?;
            }
            return Ok(comm.finish()?);
        }
        let post = |i: u64| comm.post_recv(0, &call, of(i).shape());
        let (mut zero, dropped, mut two) = (post(0)?, post(1)?, post(2)?);
        ensure(!two.is_ready(), || "a receive is ready before anything was sent".into())?;
        drop(dropped);
        gate.pass();
        let wait = || Deadline::after(patience);
        same("the third posted", &of(2), &two.wait(wait())?)?;
        ensure(zero.is_ready(), || {
            "a later message is here, an earlier one of the same tag is not ready".into()
        })?;
        same("the first posted", &of(0), &zero.wait(wait())?)?;
        ensure(zero.wait(wait()).is_err(), || "one handle received twice".into())?;
        same("the place of the dropped one", &of(1), &post(1)?.wait(wait())?)?;
        same("the last", &of(3), &post(3)?.wait(wait())?)?;
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// Messages to itself, empty ones among them, while others send under the same tag.
pub(super) fn self_sends(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    let outcome = run(suite.make(3), patience * 2, move |comm| {
        let (me, call) = (comm.rank(), Call::within(patience, Class::Embeds, Tag::new(7)));
        let of =
            |from: usize, to: usize| block(word(&[from as u64, to as u64]), BlockShape::f32((from + to) % 3));
        for to in 0..3 {
            comm.send(to, &call, of(me, to))?;
        }
        for from in (0..3).rev() {
            let expected = of(from, me);
            same(&format!("from rank {from}"), &expected, &comm.recv(from, &call, expected.shape())?)?;
        }
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// Groups that overlap, with the same tags, some with the same ranks, and groups of groups, all at once.
pub(super) fn concurrent_groups(suite: &Suite) -> Outcome {
    let (seed, patience) = (suite.seed, suite.patience);
    let outcome = run(suite.make(4), patience * 2, move |comm| {
        let me = comm.rank();
        let call = Call::within(patience, Class::Gather, Tag::new(8));
        let group = |name: &str, ranks: &[usize]| Group::new(comm.clone(), name, ranks.to_vec());
        // Rows, columns (backwards), and everybody in another order.
        let row = group("row", &[me / 2 * 2, me / 2 * 2 + 1])?;
        let column = group("column", &[me % 2 + 2, me % 2])?;
        let all = group("all", &[2, 0, 3, 1])?;
        let mut random = Random(word(&[seed, me as u64]));
        for round in 0..6u64 {
            std::thread::sleep(Duration::from_micros(random.below(700) as u64));
            gathers(&row, &call, round)?;
            gathers(&*comm, &call, round)?;
            gathers(&column, &call, round)?;
            gathers(&all, &call, round)?;
        }
        much_alike(comm.clone(), &call)?;
        let nested: Arc<dyn Communicator> = Arc::new(all);
        let inner = Group::new(nested, "row", [vec![1, 0], vec![2, 3]][usize::from(me % 2 == 1)].clone())?;
        gathers(&inner, &call, 99)?;
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}

/// Every rank of the group brings its number in the world.
fn gathers(comm: &dyn Communicator, call: &Call, round: u64) -> Outcome {
    let of = |world: usize| block(word(&[round, world as u64]), BlockShape::f32(1 + world));
    let world: Vec<_> = (0..comm.size()).map(|rank| comm.world_rank(rank)).collect();
    let lengths: Vec<_> = world.iter().map(|world| 1 + world).collect();
    let got = comm.all_gather(call, of(world[comm.rank()]), &lengths)?;
    for (world, got) in world.into_iter().zip(got) {
        same(&format!("round {round}, rank {world} of {lengths:?}"), &of(world), &got)?;
    }
    Ok(())
}

/// Groups that could be taken for each other: what is sent first in one may be received last.
fn much_alike(comm: Arc<dyn Communicator>, call: &Call) -> Outcome {
    let (mine, others) = (comm.rank() % 2, 1 - comm.rank() % 2);
    let pair = || vec![mine, mine + 2];
    let world: Arc<dyn Communicator> = Arc::new(Group::new(comm.clone(), "world", vec![0, 1, 2, 3])?);
    let groups = [
        Group::new(comm.clone(), "a", pair())?,
        Group::new(comm.clone(), "b", pair())?,
        Group::new(comm.clone(), "a", vec![mine, mine + 2, others, others + 2])?,
        Group::new(world.clone(), "a", pair())?,
        Group::new(world, "b", pair())?,
    ];
    let of = |group: usize, kind: u64| block(word(&[group as u64, kind]), BlockShape::f32(3));
    if groups[0].rank() == 0 {
        for (i, group) in groups.iter().enumerate() {
            group.send(1, call, of(i, 0))?;
            if group.size() == 2 {
                group.broadcast(call, 0, Some(of(i, 1)), of(i, 1).shape())?;
            }
        }
        return Ok(());
    }
    for (i, group) in groups.iter().enumerate().rev() {
        if group.size() == 2 {
            let got = group.broadcast(call, 0, None, of(i, 1).shape())?;
            same(&format!("broadcast in group {i}"), &of(i, 1), &got)?;
        }
        same(&format!("message in group {i}"), &of(i, 0), &group.recv(0, call, of(i, 0).shape())?)?;
    }
    Ok(())
}
