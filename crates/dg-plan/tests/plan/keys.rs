//! The tables partition what they should, and every query meets every key once.

use crate::support::any_plan;
use dg_plan::{Balance, Coords, Kind, Layout, Segment, SegmentTable, StageTable, known};
use proptest::prelude::*;

/// How often each token of the joint sequence, text first, occurs in `segments`.
fn occurrences<'a>(table: &SegmentTable, segments: impl IntoIterator<Item = &'a Segment>) -> Vec<u32> {
    let mut seen = vec![0; table.tokens()];
    for s in segments {
        let shift = if s.kind == Kind::Text { 0 } else { table.text_tokens() };
        s.tokens.clone().for_each(|token| seen[shift + token] += 1);
    }
    seen
}

/// Any table at all: owners change at random places.
fn any_table() -> impl Strategy<Value = (SegmentTable, usize)> {
    let run = (1usize..9, 0usize..6);
    (1usize..4, 1usize..3, prop::collection::vec(run.clone(), 0..6), prop::collection::vec(run, 1..9))
        .prop_map(|(ring, ulysses, text, image)| {
            let mut segments = Vec::new();
            let mut cut = |kind: Kind, runs: &[(usize, usize)]| {
                let mut start = 0;
                for (count, owner) in runs {
                    let tokens = start..start + count;
                    segments.push(Segment { kind, tokens, patch: 0, owner: owner % (ring * ulysses) });
                    start += count;
                }
                start
            };
            let (text, image) = (cut(Kind::Text, &text), cut(Kind::Image, &image));
            (SegmentTable::new(segments, text, image, ring * ulysses).unwrap(), ulysses)
        })
}

proptest! {
    #[test]
    fn every_key_is_attended_to_exactly_once(plan in any_plan()) {
        let once = vec![1; plan.segments.tokens()];
        for rank in 0..plan.layout.replica_ranks() as u32 {
            let ring = plan.layout.coords(rank).ring as usize;
            let blocks = plan.segments.attended(plan.layout.ulysses as usize, ring);
            prop_assert_eq!(blocks.len(), plan.layout.ring as usize);
            prop_assert_eq!(occurrences(&plan.segments, blocks.into_iter().flatten()), once.clone());
        }
        // and by one rank per head: the heads of a Ulysses group are all heads, each once
        let heads: Vec<usize> = plan.heads.ranges().iter().flat_map(Clone::clone).collect();
        prop_assert_eq!(heads, (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn that_holds_for_any_table((table, ulysses) in any_table()) {
        for ring in 0..table.owners() / ulysses {
            let blocks = table.attended(ulysses, ring);
            let once = vec![1; table.tokens()];
            prop_assert_eq!(occurrences(&table, blocks.into_iter().flatten()), once);
        }
    }

    #[test]
    fn tokens_and_patches_have_one_owner(plan in any_plan()) {
        let table = &plan.segments;
        prop_assert_eq!(occurrences(table, table.segments()), vec![1; table.tokens()]);
        let owners = 0..table.owners();
        prop_assert_eq!(owners.clone().map(|o| table.tokens_of(o)).sum::<usize>(), table.tokens());
        prop_assert!(table.segments().iter().all(|s| s.kind == Kind::Image || s.patch == 0));
        for (patch, run) in plan.patches.runs().iter().enumerate() {
            let shares: Vec<usize> = owners.clone().map(|o| table.image_in(o, patch)).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), run.len());
            let totals = owners.clone().map(|o| table.tokens_in(o, patch));
            let (most, least) = (totals.clone().max(), totals.min());
            prop_assert!(most.unwrap() - least.unwrap() <= 1);
        }
    }

    #[test]
    fn stages_partition_the_blocks(stages in 1usize..=57, by_memory: bool) {
        let balance = if by_memory { Balance::Memory } else { Balance::Time };
        let table = StageTable::new(&known::flux_dev(), stages, &balance).unwrap();
        let blocks: Vec<usize> = table.ranges().iter().flat_map(Clone::clone).collect();
        prop_assert_eq!(blocks, (0..57).collect::<Vec<_>>());
        prop_assert!(table.stages() == stages && table.ranges().iter().all(|r| !r.is_empty()));
    }

    #[test]
    fn roles_cover_the_model(plan in any_plan()) {
        let l = plan.layout;
        let mut replica: Vec<_> = (0..l.pp)
            .flat_map(|pp| plan.role(l.rank(Coords { pp, ..Coords::default() })))
            .collect();
        replica.sort_unstable();
        let mut stageless = replica.clone();
        stageless.dedup();
        // all but the embeddings of time and text, which every stage has, are on one stage
        prop_assert_eq!(replica.len() - stageless.len(), l.pp as usize - 1);
        let shape = &plan.work.shape;
        let weights: u64 = stageless.iter().filter(|p| p.is_transformer()).map(|p| p.parameters(shape)).sum();
        prop_assert_eq!(weights, shape.transformer.parameters());
        // ranks of a stage hold the same blocks
        let last = Layout { dp: 1, cfg: 1, ..l }.ranks() as u32 - 1;
        let blocks = |rank: u32| plan.stages.parts(shape, l.coords(rank).pp as usize);
        prop_assert_eq!(blocks(last), plan.stages.parts(shape, l.pp as usize - 1));
    }
}
