//! The compute thread: owns the model, works through one job after the other.

use crate::cluster::{EngineOptions, JobSpec};
use crate::logic::queue::JobId;
use crate::{JobError, StartError};
use dg_core::StepEvent;
use dg_flux::watch::Watch;
use dg_flux::{ModelRepo, Pipeline, PipelineOptions};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

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
    repo: Arc<ModelRepo>,
    options: EngineOptions,
    tell: impl Fn(Told) + Send + 'static,
) -> Result<Sender<JobSpec>, StartError> {
    let threads = options.threads.get();
    let refused = |reason: String| StartError::Threads { threads, reason };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("dg-rank0-{i}"))
        .build()
        .map_err(|e| refused(e.to_string()))?;
    let (sender, jobs) = channel();
    std::thread::Builder::new()
        .name("dg-rank0".into())
        .spawn(move || {
            let load = || pool.install(|| load(&repo, &options));
            match catch_unwind(AssertUnwindSafe(load)) {
                Ok(Ok(pipeline)) => {
                    tell(Told::Ready);
                    work(pipeline, &pool, &jobs, &tell);
                }
                Ok(Err(e)) => tell(Told::Broken(e)),
                Err(panic) => tell(Told::Broken(StartError::Panicked(message(&*panic)))),
            }
        })
        .map_err(|e| refused(e.to_string()))?;
    Ok(sender)
}

fn load(repo: &ModelRepo, options: &EngineOptions) -> Result<Pipeline, StartError> {
    let options = PipelineOptions {
        device: dg_flux::cpu(),
        dtype: options.dtype,
        time_dtype: options.time_dtype,
        vae_tiling: options.vae_tiling,
    };
    Ok(Pipeline::load(repo, options)?)
}

/// Until the other end hangs up or a job panics.
fn work(mut pipeline: Pipeline, pool: &rayon::ThreadPool, jobs: &Receiver<JobSpec>, tell: &impl Fn(Told)) {
    for job in jobs {
        let mut watch = Reporter { job: &job };
        let run = || pool.install(|| pipeline.generate(&job.batch, &mut watch));
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let panicked = outcome.is_err();
        let result = match outcome {
            Ok(Ok(pictures)) => Ok(pictures),
            Ok(Err(dg_flux::watch::Cancelled)) => Err(JobError::Cancelled),
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
