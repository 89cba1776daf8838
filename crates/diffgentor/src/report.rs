//! Collects what `--report` writes.

use crate::machine;
use dg_core::report::{EventReport, ImageReport, Layout, ModelFacts, RankReport, Report, SCHEMA, Seconds};
use dg_core::{DType, GenerateRequest, ModelId, StepEvent};
use std::time::Instant;

/// The report of a run while it runs.
pub(crate) struct Recorder {
    start: Instant,
    report: Report,
    rss_anon: u64,
}

impl Recorder {
    /// The process started at `start`.
    pub(crate) fn new(start: Instant) -> Self {
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
        Self { start, report, rss_anon: 0 }
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
        self.rss_anon = self.rss_anon.max(machine::rss_anon().unwrap_or(0));
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
        self.report.ranks.push(RankReport {
            node: "local".into(),
            pid: std::process::id(),
            mapped_bytes,
            rss_anon: self.rss_anon,
            compute_s: seconds.text + seconds.steps.iter().sum::<f64>() + seconds.decode,
            ..RankReport::default()
        });
        self.report
    }
}
