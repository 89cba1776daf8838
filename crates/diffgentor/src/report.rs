//! Collects what `--report` writes.

use dg_core::report::{EventReport, ImageReport, Layout, ModelFacts, RankReport, Report, SCHEMA, Seconds};
use dg_core::{DType, GenerateRequest, ModelId, StepEvent};
use dg_runtime::memory::{self, ProcessMemory, Sampler};
use std::time::Instant;

/// The report of a run while it runs.
pub(crate) struct Recorder {
    start: Instant,
    report: Report,
    sampler: Option<Sampler>,
}

impl Recorder {
    /// The process started at `start`. Memory is watched only if there will be a `report`.
    pub(crate) fn new(start: Instant, report: bool) -> Self {
        let sampler = if report { Sampler::start() } else { None };
        let report = Report {
            schema: SCHEMA,
            request: None,
            model: ModelFacts::default(),
            layout: Layout::SERIAL,
            seconds: Seconds::default(),
            ranks: Vec::new(),
            images: Vec::new(),
            events: Vec::new(),
        };
        Self { start, report, sampler }
    }

    /// How the run is spread over ranks.
    pub(crate) fn layout(&mut self, layout: Layout) {
        self.report.layout = layout;
    }

    /// What every rank did.
    pub(crate) fn ranks(&mut self, ranks: Vec<RankReport>) {
        self.report.ranks = ranks;
    }

    /// The model and the first request.
    pub(crate) fn begin(&mut self, model: &ModelId, dtype: DType, first: Option<&GenerateRequest>) {
        self.report.model = ModelFacts { id: model.id.clone(), hash: model.hash.clone(), dtype };
        self.report.request = first.cloned();
    }

    /// The model is ready, after this many seconds of loading.
    pub(crate) fn loaded(&mut self, seconds: f64) {
        self.report.seconds.load = seconds;
    }

    /// Something happened in a batch.
    pub(crate) fn step(&mut self, event: &StepEvent) {
        let seconds = &mut self.report.seconds;
        match event {
            StepEvent::TextEncoded { seconds: s, .. } => seconds.text += s,
            StepEvent::Step { seconds: s, .. } => {
                seconds.first_step.get_or_insert_with(|| self.start.elapsed().as_secs_f64());
                seconds.steps.push(*s);
            }
            StepEvent::Decoded { seconds: s, .. } => seconds.decode += s,
            StepEvent::PromptTruncated { .. } => (),
        }
    }

    /// A picture is there.
    pub(crate) fn image(&mut self, image: ImageReport) {
        self.report.images.push(image);
    }

    /// Something worth knowing.
    pub(crate) fn event(&mut self, kind: &str, message: impl Into<String>) {
        let t = self.start.elapsed().as_secs_f64();
        self.report.events.push(EventReport { t, kind: kind.into(), message: message.into() });
    }

    /// The whole report.
    pub(crate) fn finish(mut self, mapped_bytes: u64) -> Report {
        let seconds = &mut self.report.seconds;
        seconds.total = self.start.elapsed().as_secs_f64();
        let ProcessMemory { rss_anon, rss_file, peak_rss, .. } =
            self.sampler.map_or_else(ProcessMemory::default, Sampler::finish);
        let read_bytes = memory::read_bytes();
        if self.report.ranks.is_empty() {
            // no rank has started, or the only one keeps no account
            let compute_s = seconds.text + seconds.steps.iter().sum::<f64>() + seconds.decode;
            self.report.ranks.push(RankReport { mapped_bytes, compute_s, ..RankReport::default() });
        }
        for rank in &mut self.report.ranks {
            // ranks are threads of this process: its memory is theirs together
            if rank.pid != 0 && rank.pid != std::process::id() {
                // of a cluster: it has told about itself
                continue;
            }
            rank.node = "local".into();
            rank.pid = std::process::id();
            (rank.rss_anon, rank.rss_file) = (rss_anon, rss_file);
            (rank.peak_rss, rank.read_bytes) = (peak_rss, read_bytes);
        }
        self.report
    }
}
