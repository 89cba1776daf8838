//! Who sends when and to whom.

use crate::model::{Job, STEPS, shape};
use crate::ranks::{plan, run, tables};
use dg_comm::{Class, Event, EventKind, Op};
use dg_plan::Dim;
use std::collections::{BTreeMap, BTreeSet};

fn events(ring: u32, ulysses: u32) -> (Vec<Event>, dg_plan::Plan) {
    let job = Job::new((144, 208), 7, 1);
    let plan = plan(&job, ring, ulysses);
    (run(&job, &job.whole(), &tables(&plan), None).events, plan)
}

fn blocks() -> usize {
    shape().double_blocks + shape().single_blocks
}

#[test]
fn a_ring_sends_to_the_next_place_only() {
    for (ring, ulysses) in [(2, 1), (5, 1), (3, 2), (4, 2)] {
        let (events, plan) = events(ring, ulysses);
        let mut sends = BTreeMap::<_, usize>::new();
        for e in events.iter().filter(|e| e.envelope.class == Class::RingKv) {
            let group = plan.layout.group(e.rank as u32, Dim::Ring);
            let place = group.iter().position(|rank| *rank as usize == e.rank).expect("one of its group");
            let size = group.len();
            let (next, previous) = (group[(place + 1) % size], group[(place + size - 1) % size]);
            let expected = if e.kind == EventKind::Send { next } else { previous };
            assert_eq!(e.peer, expected as usize, "{e:?}");
            if e.kind == EventKind::Send {
                *sends.entry((e.rank, e.envelope.tag.step, e.envelope.tag.layer)).or_default() += 1;
            }
        }
        assert!(sends.values().all(|n| *n == ring as usize - 1), "{ring} {ulysses}: {sends:?}");
        assert_eq!(sends.len(), plan.ranks() as usize * STEPS * blocks());
    }
}

#[test]
fn the_next_block_is_on_its_way_before_this_one_is_computed_with() {
    let (events, plan) = events(4, 1);
    for rank in 0..plan.ranks() as usize {
        let of = events.iter().filter(|e| e.rank == rank && e.envelope.class == Class::RingKv);
        // one receive is out at a time: with the own block and that in hand three are alive
        let order: Vec<_> = of.map(|e| e.kind).collect();
        let hop = [EventKind::Post, EventKind::Send, EventKind::Wait];
        assert!(order.chunks(3).all(|three| three == hop), "rank {rank}: {order:?}");
        assert_eq!(order.len(), 3 * 3 * STEPS * blocks());
    }
    // it computes after handing over and before waiting, not between a wait and the next receive
    let ring: Vec<_> = events.iter().filter(|e| e.rank == 0 && e.envelope.class == Class::RingKv).collect();
    let gaps = |from: EventKind, to: EventKind| {
        let both = |w: &&[&Event]| {
            let (a, b) = (w[0], w[1]);
            a.kind == from && b.kind == to && a.envelope.tag.layer == b.envelope.tag.layer
        };
        let mut gaps: Vec<_> = ring.windows(2).filter(both).map(|w| w[1].begin - w[0].end).collect();
        gaps.sort_unstable();
        gaps[gaps.len() / 2]
    };
    let (computing, idle) = (gaps(EventKind::Send, EventKind::Wait), gaps(EventKind::Wait, EventKind::Post));
    assert!(computing > 2 * idle, "{computing:?} {idle:?}");
}

#[test]
fn ulysses_takes_two_exchanges_per_block() {
    let (events, plan) = events(1, 4);
    for rank in 0..plan.ranks() as usize {
        let mut exchanges = BTreeSet::new();
        for e in events.iter().filter(|e| e.rank == rank && e.envelope.op == Op::AllToAll) {
            exchanges.insert((e.envelope.class, e.envelope.tag));
        }
        assert_eq!(exchanges.len(), 2 * STEPS * blocks());
    }
}
