//! The compute thread: owns the model, works through one job after the other.

use crate::job::JobSpec;
use crate::logic::queue::JobId;
use crate::{JobError, StartError};
use dg_core::{GenerateRequest, StepEvent};
use dg_flux::watch::Watch;
use dg_flux::{Picture, Pipeline, RunError};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// What makes pictures. A [`Pipeline`] is one.
pub(crate) trait Engine: Send {
    fn generate(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Picture>, RunError>;
}

impl Engine for Pipeline {
    fn generate(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Picture>, RunError> {
        Self::generate(self, batch, watch)
    }
}

/// Loads an engine, for the first worker and again for each that replaces a lost one.
pub(crate) type Load = Arc<dyn Fn() -> Result<Box<dyn Engine>, StartError> + Send + Sync>;

/// What the compute thread tells its actor.
pub(crate) enum Told {
    /// The model is loaded.
    Ready,
    /// The model could not be loaded.
    Broken(StartError),
    /// The job has ended; its owner has been told.
    Finished(JobId),
    /// The job panicked; its owner has been told and the thread has ended.
    Panicked,
}

/// Starts the thread. `tell` runs on it.
pub(crate) fn start(
    load: Load,
    threads: usize,
    tell: impl Fn(Told) + Send + 'static,
) -> Result<Sender<JobSpec>, StartError> {
    let refused = |reason: String| StartError::Threads { threads, reason };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("dg-rank0-{i}"))
        .build()
        .map_err(|e| refused(e.to_string()))?;
    let (sender, jobs) = channel();
    std::thread::Builder::new()
        .name("dg-rank0".into())
        .spawn(move || match catch_unwind(AssertUnwindSafe(|| pool.install(|| load()))) {
            Ok(Ok(mut engine)) => {
                tell(Told::Ready);
                work(&mut *engine, &pool, &jobs, &tell);
            }
            Ok(Err(e)) => tell(Told::Broken(e)),
            Err(panic) => tell(Told::Broken(StartError::Panicked(message(&*panic)))),
        })
        .map_err(|e| refused(e.to_string()))?;
    Ok(sender)
}

/// Until the other end hangs up or a job panics.
fn work(engine: &mut dyn Engine, pool: &rayon::ThreadPool, jobs: &Receiver<JobSpec>, tell: &impl Fn(Told)) {
    for job in jobs {
        let mut watch = Reporter { job: &job };
        let run = || pool.install(|| engine.generate(&job.batch, &mut watch));
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let panicked = outcome.is_err();
        let result = match outcome {
            Ok(Ok(pictures)) => Ok(pictures),
            Ok(Err(e)) => Err(e.into()),
            Err(panic) => Err(JobError::Panicked(message(&*panic))),
        };
        let id = job.id;
        job.end(result);
        if panicked {
            // the model may be in any state now
            return tell(Told::Panicked);
        }
        tell(Told::Finished(id));
    }
}

struct Reporter<'a> {
    job: &'a JobSpec,
}

impl Watch for Reporter<'_> {
    fn event(&mut self, event: StepEvent) {
        // nobody listening is no reason to stop
        let _ = self.job.events.send(event);
    }

    fn stop(&self) -> bool {
        self.job.canceller.is_cancelled()
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}
