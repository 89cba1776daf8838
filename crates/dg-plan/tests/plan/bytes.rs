//! Bytes and messages against the published formulas, and senders against receivers.

use crate::support::{any_plan, dev, layout, plan};
use dg_plan::{Ask, Class, Coords, Dim, Layout, Passes, Pipeline, Plan, Traffic, Work};
use proptest::prelude::*;

const A: u64 = 4608 * 3072 * 2;
const L: u64 = 57;

fn step(plan: &Plan, rank: u32) -> Traffic {
    plan.sent_in_step(rank, 1, 0)
}

fn ulysses(traffic: &Traffic) -> u64 {
    traffic.bytes(Class::UlyssesQkv) + traffic.bytes(Class::UlyssesOut)
}

#[test]
fn even_shares_are_the_published_table() {
    let work = dev(1024);
    for (n, bytes) in [(2, 1_613_758_464), (4, 1_210_318_848), (8, 706_019_328)] {
        let plan = plan(&work, [1, 1, 1, 1, n]);
        for rank in 0..n {
            let sent = step(&plan, rank);
            assert_eq!((ulysses(&sent), sent.total()), (bytes, bytes), "ulysses {n}");
            let n = u64::from(n);
            assert_eq!(bytes, 4 * (A / n) * (n - 1) / n * L);
            assert_eq!(sent.bytes(Class::UlyssesQkv), 3 * sent.bytes(Class::UlyssesOut));
            assert_eq!(sent.messages(Class::UlyssesQkv), (n - 1) * L);
        }
    }
    for (n, mega) in [(2, 1613.8), (4, 2420.6), (8, 2824.1), (16, 3025.8)] {
        let plan = plan(&work, [1, 1, 1, n, 1]);
        let sent = step(&plan, n - 1);
        assert!((sent.total() as f64 / 1e6 - mega).abs() < 0.05, "ring {n}: {}", sent.total());
        assert_eq!(sent.messages(Class::RingKv), u64::from(n - 1) * L);
        assert_eq!(sent.0[&Class::RingKv].to.keys().copied().collect::<Vec<_>>(), [0], "to the next only");
    }
    for (u, r, to_heads, around) in
        [(2, 2, 806.9, 806.9), (4, 2, 605.2, 403.4), (2, 4, 403.4, 1210.3), (8, 2, 353.0, 201.7)]
    {
        let sent = step(&plan(&work, [1, 1, 1, r, u]), 1);
        assert!((ulysses(&sent) as f64 / 1e6 - to_heads).abs() < 0.06, "u{u} r{r}");
        assert!((sent.bytes(Class::RingKv) as f64 / 1e6 - around).abs() < 0.06, "u{u} r{r}");
    }
}

#[test]
fn a_pipeline_sends_activations_once_per_edge() {
    let work = dev(1024);
    let plan = plan(&work, [1, 1, 4, 1, 1]);
    assert_eq!((plan.passes, plan.warmup), (Passes::Patches, 1));
    let (image, text) = (4096 * 3072 * 2, 512 * 3072 * 2);
    for stage in 0..3 {
        for (step, messages) in [(0, 1), (1, 4)] {
            let sent = plan.sent_in_step(stage, 1, step);
            assert_eq!(sent.bytes(Class::PipeHidden), image);
            assert_eq!((sent.bytes(Class::PipeText), sent.messages(Class::PipeText)), (text, 1));
            assert_eq!((sent.total(), sent.messages(Class::PipeHidden)), (A, messages));
            assert_eq!(sent.0[&Class::PipeHidden].to.keys().copied().collect::<Vec<_>>(), [stage + 1]);
        }
    }
    let last = |step| plan.sent_in_step(3, 1, step).0.get(&Class::PipeLatents).cloned();
    let (warm, stale) = (last(0).unwrap(), last(5).unwrap());
    assert_eq!((warm.bytes, warm.messages, stale.bytes, stale.messages), (524_288, 1, 524_288, 4));
    assert_eq!(stale.to.keys().copied().collect::<Vec<_>>(), [0]);
    assert_eq!(last(27), None, "the last latents stay for decoding");
    assert_eq!(plan.sent(3, 1).bytes(Class::PipeLatents), 27 * 524_288);
}

#[test]
fn stages_divide_what_ulysses_and_ring_send() {
    let work = dev(1024);
    let whole = step(&plan(&work, [1, 1, 1, 2, 2]), 0);
    // with four patches all shares are even
    let ask = Ask { patches: Some(4), ..Ask::layout(layout([1, 1, 3, 2, 2])) };
    let staged = Plan::new(&work, &ask).unwrap();
    for (at, messages) in [(0, 1), (1, 4)] {
        let sent = staged.sent_in_step(0, 1, at);
        for class in [Class::UlyssesQkv, Class::UlyssesOut, Class::RingKv] {
            assert_eq!(3 * sent.bytes(class), whole.bytes(class), "{class:?}");
            assert_eq!(3 * sent.messages(class), messages * whole.messages(class), "{class:?}");
        }
        assert_eq!(sent.bytes(Class::PipeHidden), 1024 * 3072 * 2);
        assert_eq!(sent.bytes(Class::PipeText), 128 * 3072 * 2);
    }
}

#[test]
fn branches_exchange_noise_and_replicas_nothing() {
    let work = Work { true_cfg: true, ..dev(1024) };
    let plan = plan(&work, [2, 2, 1, 1, 1]);
    for (rank, other) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        let sent = step(&plan, rank);
        assert_eq!(sent.total(), 4096 * 64 * 2);
        assert_eq!(sent.0[&Class::CfgNoise].to.keys().copied().collect::<Vec<_>>(), [other]);
    }
    // both branches on one rank: no exchange, twice the passes
    let serial = crate::support::plan(&work, [1, 1, 1, 1, 2]);
    assert_eq!(serial.branches(), 2);
    assert_eq!(
        step(&serial, 0).total(),
        2 * step(&crate::support::plan(&dev(1024), [1, 1, 1, 1, 2]), 0).total()
    );
}

#[test]
fn embeddings_go_where_they_are_needed() {
    let work = Work { true_cfg: true, ..dev(1024) };
    let plan = plan(&work, [2, 2, 2, 1, 2]);
    let sent = plan.sent(0, 3);
    let embeds = &sent.0[&Class::Embeds];
    let (pooled, rows) = (768, 256 * 4096);
    let first_stage = 2 * 3 * (pooled + rows);
    let later = 2 * 3 * pooled;
    let expect = [
        (1, first_stage),
        (2, later),
        (3, later),
        (4, first_stage),
        (5, first_stage),
        (6, later),
        (7, later),
    ];
    assert_eq!(embeds.to.iter().map(|(to, bytes)| (*to, *bytes)).collect::<Vec<_>>(), expect);
    assert_eq!(plan.sent(8, 3).0[&Class::Embeds].to.keys().next(), Some(&9));
    assert_eq!(plan.sent(1, 3).bytes(Class::Embeds), 0);
    // latents: from the last stage's other rank of branch 0 to the one that decodes
    assert_eq!((plan.decoder_rank(5), plan.decoder_rank(13)), (2, 10));
    assert_eq!(plan.sent(3, 3).0[&Class::Gather].to, [(2, 3 * 2048 * 64 * 2)].into());
    assert!((0..8).filter(|r| *r != 3).all(|r| plan.sent(r, 3).bytes(Class::Gather) == 0));
}

#[test]
fn an_exact_pipeline_sends_picture_by_picture() {
    let work = Work { images: 4, request_images: 4, batch: 4, ..dev(512) };
    let ask = Ask { pipeline: Pipeline::Exact, ..Ask::layout(layout([1, 1, 4, 1, 1])) };
    let plan = Plan::new(&work, &ask).unwrap();
    assert_eq!((plan.passes, plan.is_exact()), (Passes::Streams, true));
    let sent = plan.sent_in_step(1, 4, 3);
    assert_eq!((sent.messages(Class::PipeHidden), sent.messages(Class::PipeText)), (4, 4));
    assert_eq!(sent.bytes(Class::PipeHidden), 4 * 1024 * 3072 * 2);
    let last = plan.sent_in_step(3, 4, 3);
    assert_eq!((last.messages(Class::PipeLatents), last.bytes(Class::PipeLatents)), (4, 4 * 1024 * 64 * 2));
}

#[test]
fn uneven_heads_are_counted_exactly() {
    // 24 heads over 5 members: 5, 5, 5, 5, 4
    let work = dev(1024);
    let plan = plan(&work, [1, 1, 1, 1, 5]);
    let sent = step(&plan, 4);
    let tokens: Vec<u64> = (0..5).map(|o| plan.segments.tokens_of(o) as u64).collect();
    assert_eq!(tokens.iter().sum::<u64>(), 4608);
    assert_eq!(sent.bytes(Class::UlyssesQkv), 3 * tokens[4] * 20 * 128 * 2 * L);
    assert_eq!(sent.bytes(Class::UlyssesOut), (4608 - tokens[4]) * 4 * 128 * 2 * L);
    assert_eq!(step(&plan, 0).bytes(Class::UlyssesQkv), 3 * tokens[0] * 19 * 128 * 2 * L);
}

/// What `rank` must get in one step, from its own view: what it lacks.
fn received(plan: &Plan, rank: u32, images: u64, last_step: bool) -> [(Class, u64); 6] {
    let (l, at, s) = (plan.layout, plan.layout.coords(rank), &plan.segments);
    let t = &plan.work.shape.transformer;
    let b = plan.work.dtype.bytes() * images;
    let passes = plan.branches() as u64 * plan.stages.ranges()[at.pp as usize].len() as u64;
    let heads = (plan.heads.of(at.ulysses as usize).len() * t.head_dim) as u64;
    let all = (t.heads * t.head_dim) as u64;
    let own = s.tokens_of(at.sequence(&l)) as u64;
    let image = s.image_of(at.sequence(&l)) as u64;
    let group: u64 = (0..l.ulysses).map(|u| s.tokens_of(at.with(Dim::Ulysses, u).sequence(&l)) as u64).sum();
    let is_last = at.pp + 1 == l.pp;
    let when = |is: bool, bytes: u64| if is { bytes * b } else { 0 };
    [
        (Class::UlyssesQkv, passes * 3 * (group - own) * heads * b),
        (Class::UlyssesOut, passes * own * (all - heads) * b),
        (Class::RingKv, passes * 2 * (s.tokens() as u64 - group) * heads * b),
        (Class::PipeHidden, when(at.pp > 0, plan.branches() as u64 * image * all)),
        (Class::PipeLatents, when(at.pp == 0 && l.pp > 1 && !last_step, image * t.in_channels as u64)),
        (Class::CfgNoise, when(is_last && l.cfg == 2, image * t.in_channels as u64)),
    ]
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_lacking(plan in any_plan(), images in 1usize..4, at in 0usize..6) {
        let step = at % plan.work.steps;
        let ranks = plan.ranks();
        let sent: Vec<Traffic> = (0..ranks).map(|rank| plan.sent_in_step(rank, images, step)).collect();
        let to = |rank: u32, class: Class| -> u64 {
            sent.iter().filter_map(|t| t.0.get(&class)?.to.get(&rank)).sum()
        };
        for rank in 0..ranks {
            for (class, bytes) in received(&plan, rank, images as u64, step + 1 == plan.work.steps) {
                prop_assert_eq!(to(rank, class), bytes, "{:?} to {}", class, rank);
            }
        }
        for traffic in &sent {
            for tally in traffic.0.values() {
                prop_assert_eq!(tally.bytes, tally.to.values().sum::<u64>());
                prop_assert!(tally.messages > 0 && tally.to.values().all(|bytes| *bytes > 0));
            }
        }
    }

    #[test]
    fn a_batch_is_the_sum_of_its_steps(plan in any_plan(), images in 1usize..4, pick in any::<u32>()) {
        let rank = pick % plan.ranks();
        for first in 0..=plan.work.steps {
            let mut sum = Traffic::default();
            if first < plan.work.steps {
                sum.add(&plan.sent_before(rank, images), 1);
            }
            for step in first..plan.work.steps {
                sum.add(&plan.sent_in_step(rank, images, step), 1);
            }
            sum.add(&plan.sent_after(rank, images), 1);
            prop_assert_eq!(plan.sent_from(rank, images, first), sum, "from {}", first);
        }
        prop_assert_eq!(plan.sent(rank, images), plan.sent_from(rank, images, 0));
    }

    #[test]
    fn messages_stay_in_their_group(plan in any_plan()) {
        for rank in 0..plan.ranks() {
            let sent = plan.sent(rank, 1);
            let inside = |class: Class, dim: Dim| {
                let group = plan.layout.group(rank, dim);
                sent.0.get(&class).is_none_or(|t| t.to.keys().all(|to| group.contains(to) && *to != rank))
            };
            prop_assert!(inside(Class::UlyssesQkv, Dim::Ulysses) && inside(Class::UlyssesOut, Dim::Ulysses));
            prop_assert!(inside(Class::RingKv, Dim::Ring) && inside(Class::CfgNoise, Dim::Cfg));
            prop_assert!(inside(Class::PipeHidden, Dim::Pp) && inside(Class::PipeLatents, Dim::Pp));
            let dp = plan.layout.coords(rank).dp;
            let replica = |to: &u32| plan.layout.coords(*to).dp == dp;
            prop_assert!(sent.0.values().all(|t| t.to.keys().all(replica)));
        }
    }

    #[test]
    fn patches_change_messages_not_bytes(like in any_plan(), patches in 1usize..4) {
        let work = Work { steps: 4, ..like.work };
        let ask = Ask { pipeline: Pipeline::Stale, patches: Some(patches), ..Ask::layout(like.layout) };
        let Ok(plan) = Plan::new(&work, &ask) else { return Ok(()) };
        for rank in 0..plan.layout.replica_ranks() as u32 {
            let (warm, stale) = (plan.sent_in_step(rank, 1, 0), plan.sent_in_step(rank, 1, 1));
            for class in Class::ALL {
                prop_assert_eq!(warm.bytes(class), stale.bytes(class), "{:?}", class);
                prop_assert!(warm.messages(class) <= stale.messages(class), "{:?}", class);
            }
        }
    }
}

#[test]
fn one_rank_sends_nothing() {
    let alone = Plan::new(&dev(256), &Ask::layout(Layout::SERIAL)).unwrap();
    assert_eq!(alone.sent(0, 2), Traffic::default());
    assert_eq!(alone.layout.coords(0), Coords::default());
}
