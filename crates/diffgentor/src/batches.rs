//! Works through the batches of a plan: submit, watch, write, print. Several batches run at the same time; their
//! pictures are written as soon as they are there, and told of in the order of the prompts.

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
    /// Pictures that this run has written.
    written: usize,
    /// Batches that have ended before their turn, by number.
    held: BTreeMap<usize, Result<Vec<Drawn>, Failure>>,
}

/// What came of a picture that was drawn: it is written, or not.
struct Drawn {
    picture: usize,
    outcome: Result<(Line, ImageReport), Unwritten>,
}

/// Why a picture is not written.
struct Unwritten {
    failure: Failure,
    /// Whether the disk takes no more, so that no other one can be written either.
    is_full: bool,
}

impl<'a> Runner<'a> {
    /// Nothing is done yet.
    pub(crate) fn new(prepared: &'a Prepared, recorder: &'a mut Recorder) -> Self {
        let s = &prepared.settings;
        let todo = prepared.todo();
        let batches = plan::batches(&prepared.plan.pictures, &todo, prepared.batch_size());
        let silent = s.switch(Key::Quiet) || s.switch(Key::NoProgress) || todo.is_empty();
        let progress = Progress::new(silent, todo.len(), batches.len(), prepared.is_on_gpu());
        let printer = Printer::new(s.switch(Key::Json));
        let (failures, held) = (Vec::new(), BTreeMap::new());
        Self { prepared, recorder, batches, printer, progress, reached: 0, failures, written: 0, held }
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
        // after a signal or an error those whose turn did not come
        for (batch, drawn) in std::mem::take(&mut self.held) {
            if let Err(failure) = self.tell(&batches[batch], drawn) {
                tracing::debug!("batch {batch}: {}", failure.message);
            }
        }
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
        let settings = &self.prepared.settings;
        let keeps = settings.text(Key::Trace).is_some();
        let mut account = settings.switch(Key::Debug).then(|| Account::new(keeps));
        let held_max = BATCHES_HELD * cluster.replicas();
        let (mut next, mut turn) = (0, 0);
        while turn < batches.len() {
            let ends = self.held.values().any(|drawn| drawn.as_ref().is_err_and(ends_the_run));
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
            self.notice(cluster);
            match told {
                Some(Told::Event(batch, event)) => self.event(batch, &event),
                Some(Told::Ended(batch, outcome, seconds)) => {
                    self.progress.ended(batch);
                    account.iter_mut().for_each(|account| account.job(batch as u64, cluster));
                    let drawn = outcome.map(|pictures| self.write(&batches[batch], pictures, seconds));
                    self.held.insert(batch, drawn);
                }
                // what was handed in has been told, so it is one's turn
                None => return Err(Failure::failed("a batch got lost").hint("run the same command again")),
            }
            if let Some(failure) = self.no_room() {
                return Err(failure);
            }
            while let Some(drawn) = self.held.remove(&turn) {
                self.tell(&batches[turn], drawn)?;
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

    /// What befell the ranks of a cluster.
    fn notice(&mut self, cluster: &Cluster) {
        for event in cluster.take_notices() {
            tracing::info!("{}", event.message);
            self.recorder.event(&event.kind, event.message);
        }
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

    /// Writes the pictures of a batch.
    fn write(&mut self, batch: &[usize], pictures: Vec<Picture>, seconds: f64) -> Vec<Drawn> {
        let seconds = seconds / batch.len() as f64;
        let mut one = |(picture, drawn): (&usize, Picture)| {
            let outcome = self.write_one(*picture, drawn, seconds);
            self.written += usize::from(outcome.is_ok());
            Drawn { picture: *picture, outcome }
        };
        batch.iter().zip(pictures).map(&mut one).collect()
    }

    fn write_one(&self, i: usize, picture: Picture, seconds: f64) -> Result<(Line, ImageReport), Unwritten> {
        let path = self.prepared.path(i);
        let settings = &self.prepared.settings;
        let request = &self.prepared.plan.pictures[i].request;
        let record = Record::new(self.prepared.recipe(request, picture.vae_tiling));
        let record = (!settings.switch(Key::NoMetadata)).then_some(&record);
        let format = Format::named(settings.text(Key::OutputFormat));
        let failed = |reason: &dyn Display, is_full: bool, hint: &str| {
            let failure = Failure::failed(format!("cannot write {}: {reason}", path.display())).hint(hint);
            Unwritten { failure, is_full }
        };
        let Encoded { bytes, pixels_blake3, note } = encode(format, picture.size, &picture.rgb, record)
            .map_err(|reason| failed(&reason, false, "choose another --output_format"))?;
        note.into_iter().for_each(log::warn_once);
        write::atomically(&path, &bytes).map_err(|e| match write::is_no_room(&e) {
            true => failed(&e, true, "make room and run the same command again"),
            false => failed(&e, false, "check --output_dir, and run the same command again"),
        })?;
        let mut line = Line::new(path.display().to_string(), Some(picture.seed), picture.size);
        line.seconds = seconds;
        line.pixels_blake3 = Some(pixels_blake3);
        let image = ImageReport {
            path: line.path.clone(),
            seed: picture.seed.0,
            pixels_blake3: picture.pixels_blake3,
            latents_blake3: picture.latents_blake3,
        };
        Ok((line, image))
    }

    /// Tells what came of a batch whose turn it is.
    fn tell(&mut self, batch: &[usize], drawn: Result<Vec<Drawn>, Failure>) -> Result<(), Failure> {
        match drawn {
            Ok(all) => all.into_iter().for_each(|drawn| match drawn.outcome {
                Ok((line, image)) => self.tell_written(drawn.picture, &line, image),
                // the run ends with it
                Err(Unwritten { failure, is_full: true }) => self.tell_failed(drawn.picture, failure),
                Err(Unwritten { failure, .. }) => self.fail(drawn.picture, failure),
            }),
            Err(failure) if ends_the_run(&failure) => return Err(failure),
            Err(failure) => batch.iter().for_each(|i| self.fail(*i, failure.clone())),
        }
        Ok(())
    }

    fn tell_written(&mut self, i: usize, line: &Line, image: ImageReport) {
        self.print_skipped(i);
        self.reached = i + 1;
        self.printer.print(line);
        self.progress.picture();
        self.recorder.image(image);
    }

    /// The failure that ends the run because the disk takes no more, if it does not.
    fn no_room(&self) -> Option<Failure> {
        let drawn = self.held.values().flatten().flatten();
        let mut unwritten = drawn.filter_map(|drawn| drawn.outcome.as_ref().err());
        let Unwritten { failure, .. } = unwritten.find(|unwritten| unwritten.is_full)?;
        let (there, pictures) = (self.there(), self.prepared.plan.pictures.len());
        let message = match pictures {
            1 => failure.message.clone(),
            _ => format!("{}: {there} of {pictures} pictures are there", failure.message),
        };
        Some(Failure { message, ..failure.clone() })
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
        self.written + self.prepared.finished.iter().flatten().count()
    }
}

/// Whether the failure of one batch means that the others fail too.
fn ends_the_run(failure: &Failure) -> bool {
    failure.exit != ExitCode::Failed
}

/// Batches per replica that may be handed in before the earliest is told of.
const BATCHES_HELD: usize = 4;
/// Characters of a cut-off prompt that a warning shows.
const CUT_CHARS: usize = 200;
