//! Works through the batches of a plan: submit, watch, write, print.

use crate::engine::{Cluster, Job, Picture};
use crate::failure::Failure;
use crate::output::encode::{Encoded, encode};
use crate::output::metadata::Record;
use crate::output::printer::{Line, Printer};
use crate::output::{Format, write};
use crate::prepare::Prepared;
use crate::progress::Progress;
use crate::report::Recorder;
use crate::signals::{Signal, Stop};
use crate::{log, plan};
use dg_config::Key;
use dg_core::report::ImageReport;
use dg_core::{ExitCode, GenerateRequest, StepEvent};
use std::fmt::Display;
use std::time::Instant;

/// How a run ended.
pub(crate) enum Ending {
    /// Every picture is there.
    Done,
    /// Some pictures are not.
    Failed {
        /// How many.
        failures: usize,
        /// The failure of the only picture of the run.
        only: Option<Failure>,
    },
    /// A signal came.
    Stopped {
        /// Which.
        signal: Signal,
        /// Pictures that are there.
        there: usize,
    },
}

/// A run at work.
pub(crate) struct Runner<'a> {
    prepared: &'a Prepared,
    recorder: &'a mut Recorder,
    batches: Vec<Vec<usize>>,
    printer: Printer,
    progress: Progress,
    /// Pictures up to here are printed or failed.
    reached: usize,
    failures: Vec<Failure>,
}

impl<'a> Runner<'a> {
    /// Nothing is done yet.
    pub(crate) fn new(prepared: &'a Prepared, recorder: &'a mut Recorder) -> Self {
        let s = &prepared.settings;
        let todo = prepared.todo();
        let batches = plan::batches(&prepared.plan.pictures, &todo, prepared.batch_size());
        let silent = s.switch(Key::Quiet) || s.switch(Key::NoProgress) || todo.is_empty();
        let progress = Progress::new(silent, todo.len(), batches.len());
        let printer = Printer::new(s.switch(Key::Json));
        Self { prepared, recorder, batches, printer, progress, reached: 0, failures: Vec::new() }
    }

    /// The model is being loaded.
    pub(crate) fn loading(&self) {
        self.progress.stage(&format!("loading {}", self.prepared.model.id));
    }

    /// The model is ready.
    pub(crate) fn loaded(&mut self, seconds: f64) {
        self.recorder.loaded(seconds);
    }

    /// Makes all pictures that are not finished. An error ends the run at once, a full disk too; the
    /// failure of a batch or of one file does not.
    pub(crate) async fn run(&mut self, cluster: &Cluster, stop: &mut Stop) -> Result<Ending, Failure> {
        for batch in std::mem::take(&mut self.batches) {
            let start = Instant::now();
            let requests: Vec<GenerateRequest> =
                batch.iter().map(|i| self.prepared.plan.pictures[*i].request.clone()).collect();
            self.progress.batch(requests.len(), requests[0].steps());
            let job = cluster.submit(requests);
            let canceller = job.canceller();
            let outcome = tokio::select! {
                biased;
                signal = stop.wait() => {
                    canceller.cancel();
                    self.progress.finish();
                    return Ok(Ending::Stopped { signal, there: self.there() });
                }
                outcome = self.watch(job) => outcome,
            };
            match outcome {
                Ok(pictures) => {
                    let seconds = start.elapsed().as_secs_f64() / batch.len() as f64;
                    for (i, picture) in batch.into_iter().zip(pictures) {
                        self.keep(i, picture, seconds).inspect_err(|_| self.progress.finish())?;
                    }
                }
                Err(failure) if failure.exit == ExitCode::Failed => {
                    batch.into_iter().for_each(|i| self.fail(i, failure.clone()));
                }
                Err(failure) => {
                    self.progress.finish();
                    return Err(failure);
                }
            }
        }
        self.print_skipped(self.prepared.plan.pictures.len());
        self.progress.finish();
        Ok(match self.failures.len() {
            0 => Ending::Done,
            failures => {
                let single = self.prepared.plan.pictures.len() == 1;
                Ending::Failed { failures, only: self.failures.pop().filter(|_| single) }
            }
        })
    }

    async fn watch(&mut self, mut job: Job) -> Result<Vec<Picture>, Failure> {
        while let Some(event) = job.next_event().await {
            self.progress.event(&event);
            self.recorder.step(&event);
            if let StepEvent::PromptTruncated { encoder, tokens_max, cut } = &event {
                let shown: String = cut.chars().take(CUT_CHARS).collect();
                let message = format!("{encoder} reads {tokens_max} tokens; cut off: `{shown}`");
                self.recorder.event("warning", &message);
                log::warn_once(message);
            }
        }
        Ok(job.finish().await?)
    }

    /// Writes a picture and tells about it. An error if no other picture could be written either.
    fn keep(&mut self, i: usize, picture: Picture, seconds: f64) -> Result<(), Failure> {
        let path = self.prepared.path(i);
        let settings = &self.prepared.settings;
        let request = &self.prepared.plan.pictures[i].request;
        let record = Record::new(self.prepared.recipe(request, picture.vae_tiling));
        let record = (!settings.switch(Key::NoMetadata)).then_some(&record);
        let format = Format::named(settings.text(Key::OutputFormat));
        let failed =
            |reason: &dyn Display| Failure::failed(format!("cannot write {}: {reason}", path.display()));
        let pixels_blake3 = match encode(format, picture.size, &picture.rgb, record) {
            Ok(Encoded { bytes, pixels_blake3, note }) => {
                note.into_iter().for_each(log::warn_once);
                match write::atomically(&path, &bytes) {
                    Ok(()) => pixels_blake3,
                    Err(e) if write::is_no_room(&e) => return Err(self.no_room(i, failed(&e))),
                    Err(e) => {
                        self.fail(i, failed(&e).hint("check --output_dir, and run the same command again"));
                        return Ok(());
                    }
                }
            }
            Err(reason) => {
                self.fail(i, failed(&reason).hint("choose another --output_format"));
                return Ok(());
            }
        };
        self.print_skipped(i);
        self.reached = i + 1;
        let mut line = Line::new(path.display().to_string(), Some(picture.seed), picture.size);
        line.seconds = seconds;
        line.pixels_blake3 = Some(pixels_blake3);
        self.printer.print(&line);
        self.progress.picture();
        self.recorder.image(ImageReport {
            path: line.path,
            seed: picture.seed.0,
            pixels_blake3: picture.pixels_blake3,
            latents_blake3: picture.latents_blake3,
        });
        Ok(())
    }

    /// The disk takes no more: the failure that ends the run.
    fn no_room(&mut self, i: usize, failure: Failure) -> Failure {
        let message = failure.message.clone();
        self.tell_failed(i, failure);
        let (there, pictures) = (self.there(), self.prepared.plan.pictures.len());
        let message = match pictures {
            1 => message,
            _ => format!("{message}: {there} of {pictures} pictures are there"),
        };
        Failure::failed(message).hint("make room and run the same command again")
    }

    /// Fails if lines for standard output were lost.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.printer.finish()
    }

    /// Tells about the finished pictures before `end`.
    pub(crate) fn print_skipped(&mut self, end: usize) {
        for i in self.reached..end {
            let Some(found) = &self.prepared.finished[i] else { continue };
            let path = self.prepared.path(i).display().to_string();
            self.recorder.event("skipped", &path);
            let mut line = Line::new(path, found.seed, self.prepared.plan.pictures[i].request.size);
            line.pixels_blake3 = Some(found.pixels_blake3.clone());
            line.skipped = true;
            self.printer.print(&line);
        }
        self.reached = self.reached.max(end);
    }

    fn fail(&mut self, i: usize, failure: Failure) {
        if self.prepared.plan.pictures.len() > 1 {
            tracing::error!("{}: {}", self.prepared.path(i).display(), failure.message);
        }
        self.tell_failed(i, failure);
    }

    fn tell_failed(&mut self, i: usize, failure: Failure) {
        self.print_skipped(i);
        self.reached = i + 1;
        let picture = &self.prepared.plan.pictures[i];
        let path = self.prepared.path(i).display().to_string();
        self.recorder.event("failed", format!("{path}: {}", failure.message));
        let mut line = Line::new(path, Some(picture.request.seed), picture.request.size);
        line.error = Some(failure.message.clone());
        self.printer.print(&line);
        self.failures.push(failure);
    }

    fn there(&self) -> usize {
        let before = self.reached - self.failures.len();
        let finished = &self.prepared.finished;
        before + finished[self.reached..].iter().filter(|f| f.is_some()).count()
    }
}

/// Characters of a cut-off prompt that a warning shows.
const CUT_CHARS: usize = 200;
