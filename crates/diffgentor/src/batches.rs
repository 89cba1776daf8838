//! Works through the batches of a plan: submit, watch, write, print. Several batches run at the same time; their
//! pictures are written and printed in the order of the prompts.

use crate::engine::{Cluster, Picture};
use crate::failure::Failure;
use crate::flight::{Flight, Told};
use crate::output::encode::{Encoded, encode};
use crate::output::metadata::Record;
use crate::output::printer::{Line, Printer};
use crate::output::{Format, write};
use crate::prepare::Prepared;
use crate::progress::Progress;
use crate::report::Recorder;
use crate::signals::{Signal, Stop};
use crate::trace::Account;
use crate::{log, plan};
use dg_config::Key;
use dg_core::report::{ImageReport, RankReport};
use dg_core::{ExitCode, StepEvent};
use std::collections::BTreeMap;
use std::fmt::Display;

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

    /// What every rank did.
    pub(crate) fn ranks(&mut self, ranks: Vec<RankReport>) {
        self.recorder.ranks(ranks);
    }

    /// Makes all pictures that are not finished. An error ends the run when its turn comes, a full disk too; the
    /// failure of a batch or of one file does not.
    pub(crate) async fn run(&mut self, cluster: &Cluster, stop: &mut Stop) -> Result<Ending, Failure> {
        let batches = std::mem::take(&mut self.batches);
        let result = self.work(&batches, cluster, stop).await;
        self.progress.finish();
        if let Some(signal) = result? {
            return Ok(Ending::Stopped { signal, there: self.there() });
        }
        self.print_skipped(self.prepared.plan.pictures.len());
        Ok(match self.failures.len() {
            0 => Ending::Done,
            failures => {
                let single = self.prepared.plan.pictures.len() == 1;
                Ending::Failed { failures, only: self.failures.pop().filter(|_| single) }
            }
        })
    }

    /// Hands in batches and takes what comes back, until all is done or a signal comes.
    async fn work(
        &mut self,
        batches: &[Vec<usize>],
        cluster: &Cluster,
        stop: &mut Stop,
    ) -> Result<Option<Signal>, Failure> {
        let mut flight = Flight::new(cluster);
        let mut account = self.prepared.settings.switch(Key::Debug).then(Account::default);
        let held_max = BATCHES_HELD * cluster.replicas();
        let (mut next, mut turn) = (0, 0);
        let mut held: BTreeMap<usize, (Result<Vec<Picture>, Failure>, f64)> = BTreeMap::new();
        while turn < batches.len() {
            let ends = held.values().any(|(outcome, _)| outcome.as_ref().is_err_and(ends_the_run));
            while next < batches.len() && !ends && !flight.is_full() && next < turn + held_max {
                self.submit(next, &batches[next], &mut flight);
                next += 1;
            }
            let told = tokio::select! {
                biased;
                signal = stop.wait() => {
                    flight.cancel();
                    return Ok(Some(signal));
                }
                told = flight.next() => told,
            };
            match told {
                Some(Told::Event(batch, event)) => self.event(batch, &event),
                Some(Told::Ended(batch, outcome, seconds)) => {
                    self.progress.ended(batch);
                    account.iter_mut().for_each(|account| account.job(batch as u64, cluster));
                    held.insert(batch, (outcome, seconds));
                }
                // what was handed in has been told, so it is one's turn
                None => return Err(Failure::failed("a batch got lost").hint("run the same command again")),
            }
            while let Some((outcome, seconds)) = held.remove(&turn) {
                self.take(&batches[turn], outcome, seconds)?;
                turn += 1;
            }
        }
        Ok(None)
    }

    fn submit(&mut self, number: usize, batch: &[usize], flight: &mut Flight<'_>) {
        let request = |i: &usize| self.prepared.plan.pictures[*i].request.clone();
        let requests: Vec<_> = batch.iter().map(request).collect();
        self.progress.batch(number, requests.len(), requests[0].steps(), flight.is_free());
        flight.submit(number, requests);
    }

    fn event(&mut self, batch: usize, event: &StepEvent) {
        self.progress.event(batch, event);
        self.recorder.step(event);
        if let StepEvent::PromptTruncated { encoder, tokens_max, cut } = event {
            let shown: String = cut.chars().take(CUT_CHARS).collect();
            let message = format!("{encoder} reads {tokens_max} tokens; cut off: `{shown}`");
            self.recorder.event("warning", &message);
            log::warn_once(message);
        }
    }

    /// Takes what came of a batch whose turn it is.
    fn take(
        &mut self,
        batch: &[usize],
        outcome: Result<Vec<Picture>, Failure>,
        seconds: f64,
    ) -> Result<(), Failure> {
        match outcome {
            Ok(pictures) => {
                let seconds = seconds / batch.len() as f64;
                for (i, picture) in batch.iter().zip(pictures) {
                    self.keep(*i, picture, seconds)?;
                }
                Ok(())
            }
            Err(failure) if ends_the_run(&failure) => Err(failure),
            Err(failure) => {
                batch.iter().for_each(|i| self.fail(*i, failure.clone()));
                Ok(())
            }
        }
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

/// Whether the failure of one batch means that the others fail too.
fn ends_the_run(failure: &Failure) -> bool {
    failure.exit != ExitCode::Failed
}

/// Batches per replica that may be handed in before the earliest is taken: their pictures are held in memory.
const BATCHES_HELD: usize = 4;
/// Characters of a cut-off prompt that a warning shows.
const CUT_CHARS: usize = 200;
