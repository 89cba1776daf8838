//! Every query attends to every key exactly once, whoever owns what.
//!
//! Queries are 0, so that all keys weigh the same and the output is the mean of the values; a value is 1 in the channel
//! that its token has for itself. So channel t of the output says how often token t was attended to. Where every key
//! counts S times as it should, it is there once: a key twice, or none, shifts all channels.

use crate::ranks::{PATIENCE, alone};
use dg_comm::{Communicator, InProcess};
use dg_flux::attend::{Attend, Pass, Projected};
use dg_flux::cpu;
use dg_flux::parallel::{Job, Sequence, on_rank};
use dg_kernels::{Precision, from_vec, to_vec};
use dg_plan::{HeadSplit, Kind, PatchTable, Segment, SegmentTable};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// More than 8 members, so that some have one and some have two at every degree.
const HEADS: usize = 9;

/// Who owns what, and the passes that are made.
struct Rounds<'a> {
    table: &'a SegmentTable,
    ulysses: usize,
    /// The whole sequence first, or one of its patches after the other. With patches, keys are kept.
    passes: &'a [Option<usize>],
    /// The channel of a token of the joint sequence.
    channel: &'a (dyn Fn(usize) -> usize + Sync),
    channels: usize,
}

/// What one query saw: in which round, and for each channel the weight of that token.
struct Seen {
    round: usize,
    head: usize,
    weights: Vec<f32>,
}

impl Rounds<'_> {
    /// Runs all passes on threads: what every query of every rank saw, in every round.
    fn run(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        std::thread::scope(|scope| {
            let spawn = |comm: InProcess| {
                scope.spawn(move || {
                    let comm: Arc<dyn Communicator> = Arc::new(comm);
                    let work = || on_rank(comm.as_ref(), || Ok(self.rank(&comm)));
                    alone(work).expect("nothing is left unread")
                })
            };
            let threads: Vec<_> = InProcess::group(self.table.owners()).into_iter().map(spawn).collect();
            threads.into_iter().for_each(|thread| all.extend(thread.join().expect("no rank panics")));
        });
        all
    }

    fn rank(&self, comm: &Arc<dyn Communicator>) -> Vec<Seen> {
        let heads = HeadSplit::new(HEADS, self.ulysses);
        let job = Job { request: 3, patience: PATIENCE };
        let mut sequence = Sequence::new(comm.clone(), self.table, &heads, job).expect("tables that fit");
        if self.passes.iter().any(Option::is_some) {
            sequence = sequence.keeping(self.table, &heads);
        }
        let mut seen = Vec::new();
        for (round, patch) in self.passes.iter().enumerate() {
            sequence.begin(Pass { step: round, patch: *patch, ..Pass::default() });
            // as in a double block, then as in a single one
            let [text, image] = [Kind::Text, Kind::Image].map(|kind| self.tokens(comm.rank(), kind, *patch));
            let joint = text.iter().chain(&image).copied().collect();
            for parts in [vec![text, image], vec![joint]] {
                let parts = parts.into_iter().map(|tokens| self.projected(&tokens, round)).collect();
                let outputs = sequence.attend(parts, 1.0, Precision::F32).expect("nobody stops it");
                for output in outputs {
                    let values = to_vec(output);
                    let rows = values.chunks(self.channels).enumerate();
                    seen.extend(rows.map(|(i, row)| Seen { round, head: i % HEADS, weights: row.to_vec() }));
                }
            }
        }
        seen
    }

    /// The joint numbers of the tokens that `owner` brings.
    fn tokens(&self, owner: usize, kind: Kind, patch: Option<usize>) -> Vec<usize> {
        let first = if kind == Kind::Text { 0 } else { self.table.text_tokens() };
        let of = |s: &&Segment| s.kind == kind && patch.is_none_or(|patch| s.patch == patch);
        self.table.of(owner).filter(of).flat_map(|s| s.tokens.clone()).map(|t| t + first).collect()
    }

    /// Queries of 0, and values by which token, head and round are known.
    fn projected(&self, tokens: &[usize], round: usize) -> Projected {
        let dims = [1, tokens.len(), HEADS, self.channels];
        let zeros = || from_vec(vec![0.0; dims.iter().product()], dims, &cpu());
        let mut values = vec![0.0; dims.iter().product()];
        for (i, token) in tokens.iter().enumerate() {
            for head in 0..HEADS {
                values[(i * HEADS + head) * self.channels + (self.channel)(*token)] = value(head, round);
            }
        }
        Projected { q: zeros(), k: zeros(), v: from_vec(values, dims, &cpu()) }
    }

    /// Fails unless every query saw each token that is there once, as it was in the round that is due: of its own
    /// patch and of earlier ones this step's, of the others the last known.
    fn check(&self) -> Result<(), String> {
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        let (mut due, mut queries) = (Vec::new(), 0);
        for (round, patch) in self.passes.iter().enumerate() {
            for owner in 0..self.table.owners() {
                let kinds = [Kind::Text, Kind::Image];
                let tokens = kinds.into_iter().flat_map(|kind| self.tokens(owner, kind, *patch));
                let tokens: Vec<_> = tokens.map(|token| (token, round)).collect();
                // of every head, in both kinds of block
                queries += tokens.len() * HEADS * 2;
                last.extend(tokens);
            }
            due.push(last.clone());
        }
        let all = self.run();
        if all.len() != queries {
            return Err(format!("{} answers for {queries} queries", all.len()));
        }
        for Seen { round, head, weights } in all {
            let there = due[round].len().min(self.channels);
            let mut right = vec![0.0; self.channels];
            for (token, when) in &due[round] {
                right[(self.channel)(*token)] = value(head, *when) / there as f32;
            }
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * value(head, round);
            if !weights.iter().zip(&right).all(near) {
                return Err(format!("round {round}, head {head}: {weights:?}, should be {right:?}"));
            }
        }
        Ok(())
    }
}

fn value(head: usize, round: usize) -> f32 {
    (1 + head) as f32 * (1 + 3 * round) as f32
}

fn check(table: &SegmentTable, ulysses: usize, passes: &[Option<usize>]) -> Result<(), String> {
    let channels = table.tokens();
    Rounds { table, ulysses, passes, channel: &|token| token, channels }.check()
}

/// The whole sequence, then every patch twice; or patches from the first pass on.
fn stale(table: &SegmentTable, is_warm: bool) -> Vec<Option<usize>> {
    let patches = (0..table.patches()).map(Some);
    is_warm.then_some(None).into_iter().chain(patches.clone()).chain(patches).collect()
}

/// A sequence, cut at random places into segments of random owners and, if there are several, patches.
#[derive(Clone, Debug)]
struct Cut {
    text: usize,
    image: usize,
    owners: usize,
    /// Whether a segment ends after a token, and whose the next one is.
    ends: Vec<(bool, usize)>,
    patches: usize,
}

impl Cut {
    fn table(&self) -> SegmentTable {
        let patches = PatchTable::new(self.image, self.patches.min(self.image)).expect("patches have tokens");
        let mut runs: Vec<(Kind, Range<usize>, usize)> = vec![(Kind::Text, 0..self.text, 0)];
        runs.extend(patches.runs().iter().cloned().enumerate().map(|(p, run)| (Kind::Image, run, p)));
        let mut ends = self.ends.iter().cycle();
        let mut segments = Vec::new();
        for (kind, run, patch) in runs {
            let mut start = run.start;
            for token in run.clone() {
                let (is_end, owner) = ends.next().expect("a cycle");
                if *is_end || token + 1 == run.end {
                    let owner = owner % self.owners;
                    segments.push(Segment { kind, tokens: start..token + 1, patch, owner });
                    start = token + 1;
                }
            }
        }
        SegmentTable::new(segments, self.text, self.image, self.owners).expect("every token once")
    }

    /// Degrees that divide the owners.
    fn degrees(&self) -> impl Iterator<Item = usize> {
        let owners = self.owners;
        (1..=owners).filter(move |ulysses| owners.is_multiple_of(*ulysses))
    }
}

fn any_cut() -> impl Strategy<Value = Cut> {
    let ends = proptest::collection::vec((any::<bool>(), 0..8usize), 40);
    let sizes = (1..7usize, 1..20usize, 1..=8usize, 1..6usize);
    let cut = |((text, image, owners, patches), ends)| Cut { text, image, owners, ends, patches };
    (sizes, ends).prop_map(cut)
}

fn property(check: impl Fn(&Cut) -> Result<(), String>) {
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
    let test = |cut: Cut| check(&cut).map_err(TestCaseError::fail);
    runner.run(&any_cut(), test).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_key_once_in_any_table() {
    property(|cut| cut.degrees().try_for_each(|ulysses| check(&cut.table(), ulysses, &[None, None])));
}

#[test]
fn every_key_once_in_patches() {
    property(|cut| {
        let table = cut.table();
        let warm = |ulysses| check(&table, ulysses, &stale(&table, true));
        let cold = |ulysses| check(&table, ulysses, &stale(&table, false));
        cut.degrees().try_for_each(warm)?;
        cut.degrees().try_for_each(cold)
    });
}

#[test]
fn every_key_once_in_even_tables() {
    for (text, image, patches, owners) in
        [(7, 15, 1, 6), (1, 13, 4, 8), (2, 1, 1, 4), (5, 16, 7, 6), (3, 9, 3, 2)]
    {
        let table = SegmentTable::even(text, &PatchTable::new(image, patches).expect("patches"), owners);
        for ulysses in (1..=owners).filter(|ulysses| owners.is_multiple_of(*ulysses)) {
            for passes in [vec![None], stale(&table, true), stale(&table, false)] {
                check(&table, ulysses, &passes).unwrap_or_else(|e| panic!("{e}"));
            }
        }
    }
}

/// The fault of engines that copy the text to all ranks: each of its keys is there once for each rank.
#[test]
fn copied_text_is_found() {
    let (text, image, owners) = (3, 8, 4);
    let copies =
        |owner| Segment { kind: Kind::Text, tokens: text * owner..text * (owner + 1), patch: 0, owner };
    let images = |owner| Segment { kind: Kind::Image, tokens: 2 * owner..2 * (owner + 1), patch: 0, owner };
    let segments = (0..owners).flat_map(|owner| [copies(owner), images(owner)]).collect();
    let table = SegmentTable::new(segments, text * owners, image, owners).expect("every copy once");
    let channel = |token: usize| match token.checked_sub(text * owners) {
        Some(image) => text + image,
        None => token % text,
    };
    for ulysses in [1, 2, 4] {
        let rounds =
            Rounds { table: &table, ulysses, passes: &[None], channel: &channel, channels: text + image };
        assert!(rounds.check().is_err(), "ulysses {ulysses}");
    }
}

/// A token that nobody owns, and one that two own.
#[test]
fn a_missing_and_a_double_token_are_found() {
    let even = |image| SegmentTable::even(3, &PatchTable::new(image, 1).expect("a patch"), 4);
    for ulysses in [1, 2, 4] {
        let identity = |token: usize| token;
        let missing = even(8);
        let rounds = Rounds {
            table: &missing,
            ulysses,
            passes: &[None],
            channel: &identity,
            channels: missing.tokens(),
        };
        assert_eq!(rounds.check(), Ok(()));
        // 12 tokens are there, of which two are the same one
        let twice = |token: usize| token.min(10);
        let double = even(9);
        let rounds = Rounds { table: &double, ulysses, passes: &[None], channel: &twice, channels: 11 };
        assert!(rounds.check().is_err(), "ulysses {ulysses}");
        // each is expected, and one is not among the keys
        let all = rounds_without_last(&missing, ulysses);
        assert!(all.is_err(), "ulysses {ulysses}");
    }
}

/// What the oracle says if the sequence has a token more than the table.
fn rounds_without_last(table: &SegmentTable, ulysses: usize) -> Result<(), String> {
    let (channels, there) = (table.tokens() + 1, table.tokens() as f32 + 1.0);
    let rounds = Rounds { table, ulysses, passes: &[None], channel: &|token| token, channels };
    let is_right = |seen: Seen| seen.weights.iter().all(|w| (w - value(seen.head, 0) / there).abs() <= 1e-5);
    if rounds.run().into_iter().all(is_right) { Ok(()) } else { Err("a key is missing".into()) }
}
