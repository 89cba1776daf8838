//! What ranks have done, written down while they work: for the report of a run and for its trace.

use dg_comm::{Counters, Event, Trace};
use dg_core::report::RankReport;
use dg_plan::{Coords, Dim, Layout, Traffic};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// Every message and job of every rank, on one clock that began with the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceLog {
    /// Messages.
    pub events: Vec<Event>,
    /// Jobs and loading.
    pub spans: Vec<RankSpan>,
    /// Whether something was left out because there was no room for it.
    pub is_cut: bool,
}

/// Something that a rank was busy with, waiting included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSpan {
    /// Rank, counted over all replicas.
    pub rank: u32,
    /// Number of the job; 0 for loading, which is none.
    pub job: u64,
    /// When it began.
    pub begin: Duration,
    /// When it was over.
    pub end: Duration,
    /// `job 3`, or `load`.
    pub name: String,
}

/// What a rank is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RankState {
    /// It loads its weights, for the first time or in the place of one that was lost.
    #[default]
    Loading,
    /// It waits for work.
    Idle,
    /// It works on a job.
    Busy {
        /// Number of the job.
        job: u64,
    },
    /// It is gone, and will be replaced.
    Lost,
}

/// One rank at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankStatus {
    /// Rank, counted over all replicas.
    pub rank: u32,
    /// Coordinates `[dp, cfg, pp, ring, ulysses]`.
    pub coords: [u32; 5],
    /// What it is at.
    pub state: RankState,
    /// Bytes of its weights.
    pub mapped_bytes: u64,
}

/// A rank has changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankEvent {
    /// Rank, counted over all replicas.
    pub rank: u32,
    /// What it is at now.
    pub state: RankState,
}

/// Shared by all ranks and the [`Cluster`](crate::Cluster).
pub(crate) struct Board {
    layout: Layout,
    ranks: Vec<Mutex<Tally>>,
    trace: Option<Trace>,
    spans: Mutex<Vec<RankSpan>>,
    events: broadcast::Sender<RankEvent>,
}

/// What one rank has done so far, its lost workers included.
#[derive(Default)]
struct Tally {
    state: RankState,
    mapped_bytes: u64,
    compute: Duration,
    wait: Duration,
    sent: Counters,
    predicted: BTreeMap<String, u64>,
}

impl Board {
    /// Nothing done yet.
    pub(crate) fn new(layout: Layout, trace: bool) -> Self {
        let ranks = (0..layout.ranks()).map(|_| Mutex::default()).collect();
        let events = broadcast::channel(EVENTS_KEPT).0;
        Self { layout, ranks, trace: trace.then(Trace::new), spans: Mutex::default(), events }
    }

    /// Degrees of all ranks.
    pub(crate) const fn layout(&self) -> Layout {
        self.layout
    }

    /// Where messages are written down, if they are.
    pub(crate) const fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// What a rank is called: its number and, of the degrees above 1, its place.
    pub(crate) fn name(&self, rank: usize) -> String {
        let number = u32::try_from(rank).unwrap_or(u32::MAX);
        let Coords { dp, cfg, pp, ring, ulysses } = self.layout.coords(number);
        let places = [
            (Dim::Dp, "replica", dp),
            (Dim::Cfg, "cfg", cfg),
            (Dim::Pp, "stage", pp),
            (Dim::Ring, "ring", ring),
            (Dim::Ulysses, "ulysses", ulysses),
        ];
        let places = places.into_iter().filter(|(dim, ..)| self.layout.degree(*dim) > 1);
        let places: Vec<_> = places.map(|(_, name, place)| format!("{name} {place}")).collect();
        if places.is_empty() {
            format!("rank {rank}")
        } else {
            format!("rank {rank} ({})", places.join(", "))
        }
    }

    /// The rank is at something else now.
    pub(crate) fn set(&self, rank: usize, state: RankState) {
        if let Some(mut tally) = self.tally(rank)
            && tally.state != state
        {
            tally.state = state;
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            // under the lock, so that events of a rank stand in their order; nobody listening is no matter
            let _ = self.events.send(RankEvent { rank, state });
        }
    }

    /// See [`Cluster::rank_events`](crate::Cluster::rank_events).
    pub(crate) fn listen(&self) -> broadcast::Receiver<RankEvent> {
        self.events.subscribe()
    }

    /// See [`Cluster::status`](crate::Cluster::status).
    pub(crate) fn status(&self) -> Vec<RankStatus> {
        let numbers = 0..u32::try_from(self.ranks.len()).unwrap_or(u32::MAX);
        let status = |rank: u32| {
            let tally = self.tally(rank as usize)?;
            let coords = self.layout.coords(rank).reported();
            Some(RankStatus { rank, coords, state: tally.state, mapped_bytes: tally.mapped_bytes })
        };
        numbers.filter_map(status).collect()
    }

    /// The rank holds so many bytes of weights.
    pub(crate) fn loaded(&self, rank: usize, mapped_bytes: u64) {
        if let Some(mut tally) = self.tally(rank) {
            tally.mapped_bytes = mapped_bytes;
        }
    }

    /// The rank has worked on a job for `wall`. `predicted` is given if it did so to the end.
    pub(crate) fn worked(
        &self,
        rank: usize,
        wall: Duration,
        counted: &Counters,
        predicted: Option<&Traffic>,
    ) {
        let Some(mut tally) = self.tally(rank) else { return };
        let wait = counted.total().wait;
        tally.wait += wait;
        tally.compute += wall.saturating_sub(wait);
        let Some(predicted) = predicted else { return };
        tally.sent += counted;
        for (class, bytes) in predicted.predicted() {
            *tally.predicted.entry(class).or_default() += bytes;
        }
    }

    /// The time of the trace, if there is one.
    pub(crate) fn now(&self) -> Duration {
        self.trace.as_ref().map_or(Duration::ZERO, Trace::now)
    }

    /// The rank was busy from `begin` until now; with a job unless it was loading.
    pub(crate) fn span(&self, rank: usize, job: Option<u64>, begin: Duration) {
        let Some(trace) = &self.trace else { return };
        let name = job.map_or_else(|| LOADING.to_owned(), |job| format!("job {job}"));
        let (rank, job) = (u32::try_from(rank).unwrap_or(u32::MAX), job.unwrap_or_default());
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() < SPANS_MAX {
            spans.push(RankSpan { rank, job, begin, end: trace.now(), name });
        }
    }

    /// See [`Cluster::trace`](crate::Cluster::trace).
    pub(crate) fn log(&self) -> Option<TraceLog> {
        let trace = self.trace.as_ref()?;
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_cut = trace.is_full() || spans.len() >= SPANS_MAX;
        Some(TraceLog { events: trace.events(), spans, is_cut })
    }

    /// See [`Cluster::trace_of`](crate::Cluster::trace_of).
    pub(crate) fn log_of(&self, job: u64, forget: bool) -> Option<TraceLog> {
        let trace = self.trace.as_ref()?;
        let events = trace.of_request(job, forget);
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        // loading is no job, and has the number of the first one
        let spans = spans.iter().filter(|span| span.job == job && span.name != LOADING).cloned().collect();
        Some(TraceLog { events, spans, is_cut: trace.is_full() })
    }

    /// See [`Cluster::rank_reports`](crate::Cluster::rank_reports).
    pub(crate) fn reports(&self) -> Vec<RankReport> {
        let numbers = 0..u32::try_from(self.ranks.len()).unwrap_or(u32::MAX);
        let report = |rank: u32| {
            let tally = self.tally(rank as usize)?;
            Some(RankReport {
                rank,
                coords: self.layout.coords(rank).reported(),
                node: NODE.to_owned(),
                pid: std::process::id(),
                mapped_bytes: tally.mapped_bytes,
                compute_s: tally.compute.as_secs_f64(),
                wait_s: tally.wait.as_secs_f64(),
                sent: tally.sent.sent(),
                predicted: tally.predicted.clone(),
                ..RankReport::default()
            })
        };
        numbers.filter_map(report).collect()
    }

    fn tally(&self, rank: usize) -> Option<MutexGuard<'_, Tally>> {
        Some(self.ranks.get(rank)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Events that wait for a slow listener; it then misses the oldest.
const EVENTS_KEPT: usize = 1024;
/// Spans that a trace holds; later ones are lost.
const SPANS_MAX: usize = 1 << 20;
/// Name of the span of loading.
const LOADING: &str = "load";
/// The node of ranks that are threads.
const NODE: &str = "local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_places_that_there_is_a_choice_of() {
        assert_eq!(Board::new(Layout::SERIAL, false).name(0), "rank 0");
        let layout = Layout { dp: 2, pp: 2, ulysses: 2, ..Layout::SERIAL };
        assert_eq!(Board::new(layout, false).name(7), "rank 7 (replica 1, stage 1, ulysses 1)");
    }
}
