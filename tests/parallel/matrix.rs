//! Every layout of up to 8 ranks gives the serial latents: the same bits without Ring, within rounding with it. And
//! every rank sends what the plan says, to the byte.
//!
//! A plain run takes a pairwise cover: each layout meets each size, text length, number of pictures, kind of CFG and
//! of pipeline, and each of these meets each other. `DG_FULL_MATRIX=1` runs the whole product, which takes hours:
//!
//! ```text
//! DG_FULL_MATRIX=1 cargo test --release --workspace --test parallel -- matrix
//! ```

use crate::engine::{Case, by_name, layouts, run};
use crate::ranks::{bits, distance};
use dg_plan::split::{Extra, split};
use dg_plan::{Ask, Layout, Passes, Pipeline, Plan};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Without Ring nothing, with it this part of the largest value.
const RING_MAX: f32 = 1e-5;

/// 16, 15 and 117 image tokens, and a prime number of them.
const SIZES: [(u32, u32); 4] = [(64, 64), (80, 48), (144, 208), (16, 16 * 13)];
const TEXTS: [u32; 5] = [1, 7, 77, 500, 512];
const IMAGES: [usize; 3] = [1, 2, 3];
const PIPELINES: [Pipeline; 3] = [Pipeline::Auto, Pipeline::Exact, Pipeline::Stale];

/// Number of the layout, then of size, text, pictures, true CFG and pipeline in the lists above.
type Row = [usize; 6];

fn all_layouts() -> Vec<Layout> {
    (1..=8).flat_map(layouts).collect()
}

fn case(row: Row) -> Case {
    let [_, size, text, images, cfg, _] = row;
    Case { true_cfg: cfg == 1, ..Case::new(SIZES[size], TEXTS[text], IMAGES[images]) }
}

/// With warm-up for all steps, so that PipeFusion is exact; with other patches than stages.
fn ask(layout: Layout, row: Row) -> Ask {
    let pipeline = PIPELINES[row[5]];
    let patches = (pipeline == Pipeline::Stale).then_some(layout.pp as usize + 1);
    Ask { pipeline, patches, warmup: 2, ..Ask::layout(layout) }
}

/// All rows of a layout that can run: two branches need true CFG, the exact pipeline as many streams as stages.
fn rows(number: usize, layout: Layout) -> Vec<Row> {
    let mut all = Vec::new();
    for size in 0..SIZES.len() {
        for text in 0..TEXTS.len() {
            for images in 0..IMAGES.len() {
                for cfg in 0..2 {
                    all.extend((0..PIPELINES.len()).map(|p| [number, size, text, images, cfg, p]));
                }
            }
        }
    }
    let streams = |row: &Row| IMAGES[row[3]] * (1 + row[4]) / layout.cfg as usize;
    let is_filled = |row: &Row| layout.pp == 1 || streams(row) >= layout.pp as usize;
    let is_legal = |row: &Row| {
        (row[4] == 1 || layout.cfg == 1) && (PIPELINES[row[5]] != Pipeline::Exact || is_filled(row))
    };
    all.retain(is_legal);
    all
}

/// The pairs of values in a row.
fn pairs(row: Row) -> impl Iterator<Item = [usize; 4]> {
    (0..row.len()).flat_map(move |i| (i + 1..row.len()).map(move |j| [i, row[i], j, row[j]]))
}

/// About how long a row takes.
fn cost(row: Row) -> usize {
    let case = case(row);
    let tokens = case.work().size.image_tokens() + case.text as usize;
    tokens * case.images * (1 + row[4])
}

/// Rows that together have every pair that can be had. Greedy: the next row is the one with most new pairs, of those
/// the cheapest.
fn cover() -> &'static [Row] {
    static COVER: OnceLock<Vec<Row>> = OnceLock::new();
    COVER.get_or_init(|| {
        let (mut seen, mut chosen) = (BTreeSet::new(), Vec::new());
        for (number, layout) in all_layouts().into_iter().enumerate() {
            let rows = rows(number, layout);
            // what other layouts can do is left to all of them together
            let gain = |row: Row, seen: &BTreeSet<[usize; 4]>| {
                pairs(row).filter(|p| p[0] == 0 && !seen.contains(p)).count()
            };
            while let Some(best) =
                rows.iter().copied().filter(|row| gain(*row, &seen) > 0).max_by_key(|row| {
                    let others = pairs(*row).filter(|p| p[0] != 0 && !seen.contains(p)).count();
                    (gain(*row, &seen), others, std::cmp::Reverse(cost(*row)))
                })
            {
                seen.extend(pairs(best));
                chosen.push(best);
            }
        }
        chosen
    })
}

/// Runs one row: each replica its pictures, whose latents are put together in order.
fn check(layout: Layout, row: Row) -> f32 {
    let (case, ask) = (case(row), ask(layout, row));
    let serial = case.serial();
    let whole = case.plan(&ask);
    let mut latents = Vec::new();
    let shares = split(case.images, layout.dp as usize, Extra::First);
    for (dp, images) in shares.into_iter().enumerate().filter(|(_, images)| !images.is_empty()) {
        let part = case.part(images);
        let plan = part.plan(&Ask { layout: Layout { dp: 1, ..layout }, ..ask.clone() });
        assert_eq!(plan.passes, whole.passes);
        let ran = run(&part, &plan);
        ran.check_bytes(&plan, part.images);
        check_replica(&whole, dp as u32, &plan, part.images);
        latents.extend(ran.latents);
    }
    let (far, passes) = (distance(&serial, &latents), whole.passes);
    let what = || format!("{layout} {passes:?} {case:?}: {far:e} apart");
    assert!(layout.ring > 1 || bits(&serial) == bits(&latents), "{}", what());
    assert!(far <= RING_MAX, "{}", what());
    far
}

/// Replica `dp` of `whole` sends what `plan`, that of the replica alone, says.
fn check_replica(whole: &Plan, dp: u32, plan: &Plan, images: usize) {
    let first = dp * plan.ranks();
    for rank in 0..plan.ranks() {
        let mut expected = by_name(plan.sent(rank, images));
        for sent in expected.values_mut() {
            sent.to = sent.to.iter().map(|(to, bytes)| (to + first, *bytes)).collect();
        }
        assert_eq!(by_name(whole.sent(first + rank, images)), expected, "rank {rank} of replica {dp}");
    }
}

fn matrix(ranks: std::ops::RangeInclusive<u64>) {
    let layouts = all_layouts();
    let all: Vec<Row> = match std::env::var_os("DG_FULL_MATRIX") {
        Some(_) => layouts.iter().enumerate().flat_map(|(number, layout)| rows(number, *layout)).collect(),
        None => cover().to_vec(),
    };
    let (mut worst, mut count) = (0f32, 0);
    for row in all.into_iter().filter(|row| ranks.contains(&layouts[row[0]].ranks())) {
        worst = worst.max(check(layouts[row[0]], row));
        count += 1;
    }
    println!("{count} runs of {ranks:?} ranks, at most {worst:e} of the largest value apart");
}

#[test]
fn up_to_four_ranks() {
    matrix(1..=4);
}

#[test]
fn five_and_six_ranks() {
    matrix(5..=6);
}

#[test]
fn seven_and_eight_ranks() {
    matrix(7..=8);
}

#[test]
fn the_cover_has_every_pair() {
    let layouts = all_layouts();
    assert_eq!(layouts.len(), 82);
    assert_eq!(layouts.iter().collect::<BTreeSet<_>>().len(), 82, "each once");
    let all: BTreeSet<_> =
        layouts.iter().enumerate().flat_map(|(n, l)| rows(n, *l)).flat_map(pairs).collect();
    let covered: BTreeSet<_> = cover().iter().copied().flat_map(pairs).collect();
    assert_eq!(all, covered);
    // each kind of pass is there, PipeFusion with warm-up for all steps
    let passes = |row: &Row| case(*row).plan(&ask(layouts[row[0]], *row)).passes;
    for kind in [Passes::Whole, Passes::Streams, Passes::Patches] {
        let count = cover().iter().filter(|row| passes(row) == kind).count();
        println!("{count} of {} rows are {kind:?}", cover().len());
        assert!(count >= 20);
    }
}
