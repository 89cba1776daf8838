//! Ranks that share a sequence against one rank.

use crate::model::{Job, Whole};
use crate::ranks::{Tables, bits, distance, in_bf16, plan, run, tables};
use dg_plan::{HeadSplit, Kind, Segment, SegmentTable};
use std::time::Duration;

/// Every (ring, Ulysses) with 2 to 8 ranks.
fn layouts() -> impl Iterator<Item = (u32, u32)> {
    (1..=8)
        .flat_map(|ring| (1..=8).map(move |ulysses| (ring, ulysses)))
        .filter(|(r, u)| (2..=8).contains(&(r * u)))
}

/// 15 tokens, 117 tokens, and prime numbers of them.
const SIZES: [(u32, u32); 4] = [(80, 48), (144, 208), (16, 16 * 13), (16 * 61, 16)];

fn check(job: &Job, whole: &Whole, serial: &[f32], (ring, ulysses): (u32, u32)) -> f32 {
    let plan = plan(job, ring, ulysses);
    let ran = run(job, whole, &tables(&plan), None);
    ran.check_bytes(&plan, job.images);
    let far = distance(serial, &ran.latents);
    if ring == 1 {
        assert!(bits(serial) == bits(&ran.latents), "ulysses {ulysses}, {job:?}: {far:e} apart");
    }
    assert!(far <= 1e-5, "ring {ring}, ulysses {ulysses}, {job:?}: {far:e}");
    far
}

/// Jobs of every size, text length and batch in turn; all layouts see each of them.
fn matrix(job: impl Fn(usize) -> Job) {
    let (mut worst, mut runs) = (0f32, 0);
    for i in 0..SIZES.len() {
        let job = job(i);
        let whole = job.whole();
        let serial = job.serial(&whole);
        for layout in layouts() {
            worst = worst.max(check(&job, &whole, &serial, layout));
            runs += 1;
        }
    }
    println!("{runs} runs, at most {worst:e} of the largest value apart");
}

#[test]
fn one_text_token() {
    matrix(|i| Job::new(SIZES[i], 1, 1 + i % 2));
}

#[test]
fn seven_text_tokens() {
    matrix(|i| Job::new(SIZES[i], 7, 2 - i % 2));
}

#[test]
fn seventy_seven_text_tokens() {
    matrix(|i| Job::new(SIZES[i], 77, 1 + i / 2 % 2));
}

#[test]
fn one_image_token_and_ranks_without_any() {
    let job = Job::new((16, 16), 2, 2);
    let whole = job.whole();
    let serial = job.serial(&whole);
    for layout in layouts() {
        check(&job, &whole, &serial, layout);
    }
}

#[test]
fn bfloat16_sends_half_the_bytes_and_loses_nothing() {
    let job = in_bf16(Job::new((80, 48), 7, 2));
    let whole = job.whole();
    let serial = job.serial(&whole);
    for ulysses in [2, 5, 8] {
        check(&job, &whole, &serial, (1, ulysses));
    }
    // a ring rounds to bfloat16 what differs in f32: one step of bfloat16 here and there
    let plan = plan(&job, 3, 2);
    let ran = run(&job, &whole, &tables(&plan), None);
    ran.check_bytes(&plan, job.images);
    let far = distance(&serial, &ran.latents);
    assert!(far < 0.03, "{far:e}");
}

#[test]
fn tables_of_ones_own() {
    // all text on the last rank, image in runs by turns, and one rank with nothing
    let job = Job::new((80, 48), 5, 2);
    let whole = job.whole();
    let serial = job.serial(&whole);
    let segment = |kind, tokens, owner| Segment { kind, tokens, patch: 0, owner };
    let image = [(0..1, 3), (1..4, 0), (4..5, 2), (5..9, 0), (9..14, 2), (14..15, 3)];
    let mut segments: Vec<_> =
        image.into_iter().map(|(tokens, owner)| segment(Kind::Image, tokens, owner)).collect();
    segments.extend([segment(Kind::Text, 0..2, 3), segment(Kind::Text, 2..5, 0)]);
    let segments = SegmentTable::new(segments, 5, 15, 4).expect("every token once");
    assert_eq!(segments.tokens_of(1), 0);
    for ulysses in [1, 2, 4] {
        let tables = Tables { segments: segments.clone(), heads: HeadSplit::new(9, ulysses) };
        let ran = run(&job, &whole, &tables, None);
        let far = distance(&serial, &ran.latents);
        assert!(far <= 1e-5, "ulysses {ulysses}: {far:e}");
        assert!(ulysses < 4 || bits(&serial) == bits(&ran.latents));
    }
}

#[test]
fn late_messages_change_nothing() {
    let job = Job::new((80, 48), 7, 1);
    let whole = job.whole();
    for (ring, ulysses) in [(1, 4), (4, 1), (3, 2), (2, 3)] {
        let tables = tables(&plan(&job, ring, ulysses));
        let first = run(&job, &whole, &tables, None).latents;
        for seed in 0..5 {
            let late = Some((seed, Duration::from_millis(3)));
            assert!(
                bits(&run(&job, &whole, &tables, late).latents) == bits(&first),
                "{ring} {ulysses} {seed}"
            );
        }
    }
}
