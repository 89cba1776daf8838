//! Which layout to use: all that can run, ranked by predicted time.

use crate::layout::Layout;
use crate::machine::Machine;
use crate::plan::{Ask, Passes, Pipeline, Plan, Work};
use crate::time::Prediction;
use serde::Serialize;

/// What may be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// How a pipeline is kept full. Only with [`Pipeline::Stale`] is a layout chosen that changes the picture; such
    /// layouts are ranked all the same.
    pub pipeline: Pipeline,
    /// Bytes that one rank may use; absent, not checked.
    pub memory_bytes: Option<u64>,
    /// Whether weights need not fit, see [`Ask::streams`].
    pub streams: bool,
}

/// A layout with what is predicted for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// The degrees.
    pub layout: Layout,
    /// How passes go through the ranks.
    pub passes: Passes,
    /// Whether the picture is the serial one.
    pub is_exact: bool,
    /// Predicted times.
    pub time: Prediction,
    /// The largest need of a rank in bytes, [`least`](crate::RankMemory::least), or
    /// [`streamed_least`](crate::RankMemory::streamed_least) where weights need not fit.
    pub memory: u64,
    /// Whether that is allowed.
    pub fits: bool,
}

/// The layouts of a number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Search {
    /// All valid layouts, the fastest first.
    pub candidates: Vec<Candidate>,
    /// The one to use: the fastest that fits and does what is allowed.
    pub chosen: Option<usize>,
    /// Why that one.
    pub reason: String,
}

/// A number of ranks and the best that it can do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scale {
    /// Number of ranks.
    pub ranks: u64,
    /// What would be chosen.
    pub layout: Layout,
    /// Denoising of all pictures of the run, in seconds.
    pub run_s: f64,
    /// How much faster than one rank.
    pub speedup: f64,
}

/// How far more ranks make a run faster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    /// Numbers of ranks, doubling up to the one asked for.
    pub points: Vec<Scale>,
    /// From here on twice the ranks are less than [`PAYS`] times as fast, if that happens.
    pub stops_paying: Option<u64>,
}

/// All layouts of `ranks` ranks that can run `work`, replicas without a picture included.
pub fn valid_layouts(work: &Work, ranks: u64) -> Vec<Layout> {
    let heads = work.shape.transformer.heads as u64;
    let stages = (work.blocks().min(work.size.image_tokens())) as u64;
    let mut found = Vec::new();
    if ranks == 0 || ranks > u64::from(u32::MAX) {
        return found;
    }
    let branches = if work.true_cfg { 2 } else { 1 };
    for cfg in divisors(ranks).into_iter().filter(|n| *n <= branches) {
        for pp in divisors(ranks / cfg).into_iter().filter(|n| *n <= stages) {
            for ulysses in divisors(ranks / cfg / pp).into_iter().filter(|n| *n <= heads) {
                let rest = ranks / cfg / pp / ulysses;
                for ring in divisors(rest) {
                    let [dp, cfg, pp, ring, ulysses] =
                        [rest / ring, cfg, pp, ring, ulysses].map(|n| n as u32);
                    found.push(Layout { dp, cfg, pp, ring, ulysses });
                }
            }
        }
    }
    found
}

fn divisors(n: u64) -> Vec<u64> {
    let small: Vec<u64> = (1..).take_while(|d| d * d <= n).filter(|d| n.is_multiple_of(*d)).collect();
    let large = small.iter().rev().map(|d| n / d).filter(|d| d * d > n);
    small.iter().copied().chain(large).collect()
}

/// Ranks all layouts of `ranks` ranks. Replicas without a picture are left out: fewer ranks would do the same.
pub fn search(work: &Work, ranks: u64, machine: &Machine, bounds: &Bounds) -> Search {
    let useful = |l: &Layout| l.dp as usize <= work.images;
    let mut layouts = valid_layouts(work, ranks);
    if layouts.iter().any(useful) {
        layouts.retain(useful);
    }
    let mut candidates: Vec<Candidate> =
        layouts.into_iter().filter_map(|layout| candidate(work, layout, machine, bounds)).collect();
    let key = |c: &Candidate| (c.time.run_s, c.memory as f64, f64::from(c.layout.ring));
    candidates.sort_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal));
    let is_allowed = |c: &Candidate| c.fits && (c.is_exact || bounds.pipeline == Pipeline::Stale);
    let chosen = candidates.iter().position(is_allowed);
    let reason = reason(&candidates, chosen, machine);
    Search { candidates, chosen, reason }
}

fn candidate(work: &Work, layout: Layout, machine: &Machine, bounds: &Bounds) -> Option<Candidate> {
    let ask = Ask { pipeline: bounds.pipeline, ..Ask::layout(layout) };
    let plan = Plan::unbounded(work, &ask).ok()?;
    let largest = plan.largest_memory().1;
    let streams = bounds.streams && work.is_in_place();
    let memory = if streams { largest.streamed_least() } else { largest.least() };
    Some(Candidate {
        layout,
        passes: plan.passes,
        is_exact: plan.is_exact(),
        time: plan.predict(machine),
        memory,
        fits: bounds.memory_bytes.is_none_or(|have| memory <= have),
    })
}

fn reason(candidates: &[Candidate], chosen: Option<usize>, machine: &Machine) -> String {
    let Some(at) = chosen else {
        if let Some(stale) = candidates.iter().find(|c| c.fits) {
            return format!(
                "no layout that keeps the picture fits; `{}` does but changes it (--pipeline stale)",
                stale.layout
            );
        }
        return match candidates.iter().map(|c| c.memory).min() {
            Some(least) => format!("no layout fits: the thriftiest needs {:.1} GiB per rank", gib(least)),
            None => "no layout can run".into(),
        };
    };
    let best = &candidates[at];
    let time = &best.time;
    let mut text = format!(
        "shortest predicted run, {:.2} s: {:.1} ms of a {:.1} ms step are not computing ({}, {})",
        time.run_s,
        1e3 * time.exposed_s,
        1e3 * time.step_s,
        machine.device.name,
        machine.links
    );
    let next = candidates[at + 1..].iter().find(|c| c.fits && c.is_exact == best.is_exact);
    if let Some(next) = next {
        text += &format!("; next is `{}` with {:.2} s", next.layout, next.time.run_s);
    }
    if let Some(faster) = candidates[..at].iter().find(|c| c.fits && !c.is_exact) {
        text += &format!(
            "; `{}` would take {:.2} s but changes the picture (--pipeline stale)",
            faster.layout, faster.time.run_s
        );
    }
    if candidates[..at].iter().any(|c| !c.fits) {
        text += "; faster ones do not fit into memory";
    }
    text
}

/// How the best run time falls with 1, 2, 4, … `ranks` ranks.
pub fn scaling(work: &Work, ranks: u64, machine: &Machine, bounds: &Bounds) -> Scaling {
    let doublings = std::iter::successors(Some(1u64), |n| n.checked_mul(2)).take_while(|n| *n < ranks);
    let mut points: Vec<Scale> = Vec::new();
    for n in doublings.chain([ranks]) {
        let found = search(work, n, machine, bounds);
        let Some(best) = found.chosen.map(|i| &found.candidates[i]) else { continue };
        let first = points.first().map_or(best.time.run_s, |p| p.run_s * p.ranks as f64);
        points.push(Scale {
            ranks: n,
            layout: best.layout,
            run_s: best.time.run_s,
            speedup: first / best.time.run_s,
        });
    }
    let pays =
        |w: &&[Scale]| w[0].run_s / w[1].run_s < PAYS.powf((w[1].ranks as f64 / w[0].ranks as f64).log2());
    let stops_paying = points.windows(2).find(pays).map(|w| w[0].ranks);
    Scaling { points, stops_paying }
}

fn gib(bytes: u64) -> f64 {
    crate::refuse::gib(bytes)
}

/// Twice the ranks pay if the run is at least this many times as fast.
pub const PAYS: f64 = 1.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_are_complete() {
        assert_eq!(divisors(12), [1, 2, 3, 4, 6, 12]);
        assert_eq!(divisors(1), [1]);
        assert_eq!(divisors(49), [1, 7, 49]);
    }
}
