//! What every rank did when: for chrome://tracing (`--trace`), and in words for `DG_DEBUG`.

use crate::engine::{Cluster, RankSpan, TraceLog};
use crate::ranks::Planned;
use dg_comm::{Event, EventKind};
use dg_core::report::RankReport;
use dg_plan::Layout;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// A stretch of a rank's time.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    rank: u32,
    begin: Duration,
    end: Duration,
    /// The message that was sent or waited for; none while computing.
    message: Option<&'a Event>,
    /// What the rank was at.
    span: &'a RankSpan,
}

impl Piece<'_> {
    fn name(&self) -> &'static str {
        match self.message.map(|event| event.kind) {
            None => "compute",
            Some(EventKind::Wait) => "wait",
            Some(_) => "send",
        }
    }

    fn seconds(&self) -> f64 {
        self.end.saturating_sub(self.begin).as_secs_f64()
    }
}

/// The time of all ranks in pieces, rank by rank and in order. Where spans overlap, the one that began first counts.
fn pieces(log: &TraceLog) -> Vec<Piece<'_>> {
    let mut events: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
    for event in log.events.iter().filter(|event| event.kind != EventKind::Post) {
        events.entry(event.rank as u32).or_default().push(event);
    }
    events.values_mut().for_each(|of_rank| of_rank.sort_by_key(|event| event.begin));
    let mut spans: Vec<&RankSpan> = log.spans.iter().collect();
    spans.sort_by_key(|span| (span.rank, span.begin));
    let mut pieces = Vec::new();
    let mut reached: BTreeMap<u32, (Duration, usize)> = BTreeMap::new();
    for span in spans {
        let (time, at) = reached.entry(span.rank).or_default();
        *time = (*time).max(span.begin);
        let of_rank = events.get(&span.rank).map_or(&[][..], Vec::as_slice);
        let piece = |begin, end, message| Piece { rank: span.rank, begin, end, message, span };
        while let Some(event) = of_rank.get(*at).filter(|event| event.begin < span.end) {
            *at += 1;
            if event.end < *time {
                continue;
            }
            if event.begin > *time {
                pieces.push(piece(*time, event.begin, None));
            }
            pieces.push(piece(event.begin.max(*time), event.end, Some(*event)));
            *time = event.end;
        }
        if span.end > *time {
            pieces.push(piece(*time, span.end, None));
            *time = span.end;
        }
    }
    pieces
}

/// The trace in the form that chrome://tracing and Perfetto read.
pub(crate) fn chrome(log: &TraceLog, layout: &Layout) -> String {
    let ranks = u32::try_from(layout.ranks()).unwrap_or(u32::MAX);
    let mut events = vec![json!({
        "ph": "M", "pid": 0, "tid": 0, "name": "process_name", "args": {"name": "diffgentor"},
    })];
    events.extend((0..ranks).map(|rank| {
        json!({
            "ph": "M", "pid": 0, "tid": rank, "name": "thread_name", "args": {"name": rank_name(layout, rank)},
        })
    }));
    events.extend(pieces(log).iter().map(of_piece));
    json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string() + "\n"
}

fn of_piece(piece: &Piece<'_>) -> Value {
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    let args = match piece.message {
        None => json!({"job": piece.span.job, "part": piece.span.name}),
        Some(event) => {
            let (class, tag) = (event.envelope.class, event.envelope.tag);
            json!({
                "job": piece.span.job, "part": piece.span.name, "class": class.name(), "step": tag.step,
                "layer": tag.layer, "patch": tag.patch, "peer": event.peer, "bytes": event.bytes, "ok": event.ok,
            })
        }
    };
    json!({
        "ph": "X", "pid": 0, "tid": piece.rank, "name": piece.name(), "cat": piece.name(),
        "ts": micros(piece.begin), "dur": micros(piece.end.saturating_sub(piece.begin)), "args": args,
    })
}

fn rank_name(layout: &Layout, rank: u32) -> String {
    let at = layout.coords(rank);
    format!("rank {rank} [dp {} cfg {} pp {} ring {} ulysses {}]", at.dp, at.cfg, at.pp, at.ring, at.ulysses)
}

/// Why a trace is not there.
pub(crate) fn unwritable(path: &str, e: &std::io::Error) -> String {
    format!("cannot write the trace {path}: {e}")
}

/// Logs who owns what.
pub(crate) fn tell_plan(planned: &Planned) {
    for line in planned.page().lines().filter(|line| !line.is_empty()) {
        tracing::debug!("{line}");
    }
    for segment in planned.plan.segments.segments() {
        let kind = match segment.kind {
            dg_plan::Kind::Text => "text",
            dg_plan::Kind::Image => "image",
        };
        let tokens = &segment.tokens;
        tracing::debug!(
            "segment: {kind} tokens {}-{} in patch {} belong to place {} of the sequence",
            tokens.start,
            tokens.end.saturating_sub(1),
            segment.patch,
            segment.owner
        );
    }
}

/// What was told about ranks so far.
pub(crate) struct Account {
    ranks: Vec<RankReport>,
    /// Whether nobody wants the trace afterwards.
    forgets: bool,
}

impl Account {
    /// Nothing was told. Messages of jobs that were told of are dropped if nobody `keeps` them.
    pub(crate) fn new(keeps: bool) -> Self {
        Self { ranks: Vec::new(), forgets: !keeps }
    }

    /// Logs what every rank did since the last job and, where there is a trace, in every step of this one.
    pub(crate) fn job(&mut self, job: u64, cluster: &Cluster) {
        let ranks = cluster.rank_reports();
        for now in &ranks {
            let then = self.ranks.iter().find(|then| then.rank == now.rank);
            tracing::debug!("job {job}, rank {}: {}", now.rank, since(then, now));
        }
        self.ranks = ranks;
        let Some(of_job) = cluster.trace_of(job, self.forgets) else { return };
        for ((step, rank), sum) in steps(&of_job) {
            tracing::debug!(
                "job {job}, step {step}, rank {rank}: compute {:.1} ms, wait {:.1} ms, sent {} bytes",
                1e3 * sum.compute_s,
                1e3 * sum.wait_s,
                sum.bytes
            );
        }
    }
}

fn since(then: Option<&RankReport>, now: &RankReport) -> String {
    let zero = RankReport::default();
    let then = then.unwrap_or(&zero);
    let sent = |report: &RankReport| report.sent.values().map(|sent| sent.bytes).sum::<u64>();
    format!(
        "compute {:.3} s, wait {:.3} s, sent {} bytes",
        now.compute_s - then.compute_s,
        now.wait_s - then.wait_s,
        sent(now).saturating_sub(sent(then))
    )
}

/// What a rank did in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    compute_s: f64,
    wait_s: f64,
    bytes: u64,
}

/// Sums by step and rank. What is computed belongs to the step of the message that follows, or else of the one before.
fn steps(log: &TraceLog) -> BTreeMap<(u32, u32), Sum> {
    let pieces = pieces(log);
    let mut sums: BTreeMap<(u32, u32), Sum> = BTreeMap::new();
    for (i, piece) in pieces.iter().enumerate() {
        let of =
            |i: usize| pieces.get(i).filter(|other| other.rank == piece.rank).and_then(|other| other.message);
        let near = piece.message.or_else(|| of(i + 1)).or_else(|| of(i.wrapping_sub(1)));
        let sum = sums.entry((near.map_or(0, |event| event.envelope.tag.step), piece.rank)).or_default();
        match piece.message {
            None => sum.compute_s += piece.seconds(),
            Some(event) if event.kind == EventKind::Wait => sum.wait_s += piece.seconds(),
            // handing a message over is work
            Some(event) => {
                sum.compute_s += piece.seconds();
                sum.bytes += event.bytes;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use dg_comm::{Call, Class, Tag};

    fn event(rank: usize, kind: EventKind, begin: u64, end: u64, step: u32) -> Event {
        let call = Call::within(Duration::from_secs(1), Class::UlyssesQkv, Tag::new(0).step(step).layer(3));
        let (begin, end) = (Duration::from_millis(begin), Duration::from_millis(end));
        Event { begin, end, rank, kind, envelope: call.envelope(), peer: 1 - rank, bytes: 40, ok: true }
    }

    fn log() -> TraceLog {
        let span = |rank, begin, end, name: &str| RankSpan {
            rank,
            job: 0,
            begin: Duration::from_millis(begin),
            end: Duration::from_millis(end),
            name: name.into(),
        };
        let events = vec![
            event(0, EventKind::Post, 5, 6, 0),
            event(0, EventKind::Send, 10, 11, 0),
            event(1, EventKind::Wait, 2, 12, 0),
            event(0, EventKind::Wait, 20, 25, 1),
        ];
        TraceLog {
            events,
            spans: vec![span(1, 0, 30, "job"), span(0, 0, 30, "job"), span(0, 4, 8, "inner")],
            is_cut: false,
        }
    }

    #[test]
    fn a_trace_is_what_the_viewer_reads() {
        let layout = Layout { ulysses: 2, ..Layout::SERIAL };
        let trace: Value = serde_json::from_str(&chrome(&log(), &layout)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let names: Vec<_> = events.iter().filter(|e| e["ph"] == "M").map(|e| &e["args"]["name"]).collect();
        assert_eq!(names[2], "rank 1 [dp 0 cfg 0 pp 0 ring 0 ulysses 1]");
        let of_rank = |rank: u32| {
            let of = events.iter().filter(move |e| e["ph"] == "X" && e["tid"] == rank);
            of.map(|e| (e["name"].as_str().unwrap(), e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap()))
                .collect::<Vec<_>>()
        };
        let expect = [
            ("compute", 0.0, 10e3),
            ("send", 10e3, 1e3),
            ("compute", 11e3, 9e3),
            ("wait", 20e3, 5e3),
            ("compute", 25e3, 5e3),
        ];
        assert_eq!(of_rank(0), expect);
        assert_eq!(of_rank(1), [("compute", 0.0, 2e3), ("wait", 2e3, 10e3), ("compute", 12e3, 18e3)]);
        let send = events.iter().find(|e| e["name"] == "send").unwrap();
        let args = &send["args"];
        assert_eq!(
            (&args["class"], &args["bytes"], &args["peer"]),
            (&"ulysses_qkv".into(), &40.into(), &1.into())
        );
        assert_eq!((&args["step"], &args["layer"], &args["patch"]), (&0.into(), &3.into(), &0.into()));
    }

    #[test]
    fn steps_have_their_computing_waiting_and_bytes() {
        let sums = steps(&log());
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let (first, second) = (sums[&(0, 0)], sums[&(1, 0)]);
        assert!(near(first.compute_s, 0.011) && first.bytes == 40 && near(first.wait_s, 0.0), "{first:?}");
        assert!(near(second.compute_s, 0.014) && near(second.wait_s, 0.005), "{second:?}");
    }
}
