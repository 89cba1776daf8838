//! [`Cluster`]: a model that is ready to work, and the jobs it is given.

use crate::logic::queue::JobId;
use crate::supervisor::{self, Supervisor};
use crate::{JobError, StartError};
use dg_core::{DType, GenerateRequest, StepEvent, TimeDtype};
use dg_flux::{ModelRepo, Picture};
use ractor::{Actor, ActorRef};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How a rank computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Format of the arithmetic.
    pub dtype: DType,
    /// Format of time and guidance in a bfloat16 run.
    pub time_dtype: TimeDtype,
    /// Threads of the rank's pool.
    pub threads: NonZeroUsize,
    /// Decode in tiles: yes, no, or above [`dg_flux::tiling::PIXELS_MAX`] pixels.
    pub vae_tiling: Option<bool>,
}

impl Default for EngineOptions {
    /// float32, one thread, tiling above the limit only.
    fn default() -> Self {
        Self {
            dtype: DType::Float32,
            time_dtype: TimeDtype::Model,
            threads: NonZeroUsize::MIN,
            vae_tiling: None,
        }
    }
}

/// A supervisor, its worker and the loaded model. One rank, in this process.
pub struct Cluster {
    supervisor: ActorRef<supervisor::Message>,
    stopped: JoinHandle<()>,
    next: AtomicU64,
}

impl Cluster {
    /// Starts the actors and loads the model. Call it inside a tokio runtime.
    pub async fn start(repo: ModelRepo, options: EngineOptions) -> Result<Self, StartError> {
        let (started, result) = oneshot::channel();
        let threads = options.threads.get();
        let args = supervisor::Arguments { repo: Arc::new(repo), options, started };
        let (supervisor, stopped) = Actor::spawn(None, Supervisor, args)
            .await
            .map_err(|e| StartError::Threads { threads, reason: e.to_string() })?;
        match result.await {
            Ok(Ok(())) => Ok(Self { supervisor, stopped, next: AtomicU64::new(0) }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(StartError::Panicked("the supervisor stopped".into())),
        }
    }

    /// Hands in one batch. It runs after those that were handed in before it.
    pub fn submit(&self, batch: Vec<GenerateRequest>) -> Job {
        let id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let (events, incoming) = mpsc::unbounded_channel();
        let (done, outcome) = oneshot::channel();
        let canceller = Canceller::default();
        let spec = JobSpec { id, batch, events, done, canceller: canceller.clone() };
        if let Some(error) = spec.fault() {
            spec.end(Err(error));
        } else if let Err(e) = self.supervisor.cast(supervisor::Message::Submit(spec)) {
            tracing::debug!("submitted to a stopped cluster: {e}");
        }
        Job { events: incoming, outcome, canceller }
    }

    /// Stops the actors. Jobs that wait end with [`JobError::Stopped`]; a running one ends when it is
    /// finished, or when its owner cancels or drops it.
    pub async fn shutdown(self) {
        self.supervisor.stop(None);
        if let Err(e) = self.stopped.await {
            tracing::debug!("supervisor: {e}");
        }
    }
}

/// A job as the actors see it. Dropping it ends it: the owner then sees [`JobError::Stopped`].
pub(crate) struct JobSpec {
    pub(crate) id: JobId,
    pub(crate) batch: Vec<GenerateRequest>,
    pub(crate) events: mpsc::UnboundedSender<StepEvent>,
    done: oneshot::Sender<Result<Vec<Picture>, JobError>>,
    pub(crate) canceller: Canceller,
}

impl JobSpec {
    fn fault(&self) -> Option<JobError> {
        let Some(first) = self.batch.first() else { return Some(JobError::Empty) };
        self.batch.iter().position(|r| !r.batches_with(first)).map(JobError::Unlike)
    }

    /// Tells the owner how it ended.
    pub(crate) fn end(self, result: Result<Vec<Picture>, JobError>) {
        // an owner that has gone away does not care
        let _ = self.done.send(result);
    }
}

/// A batch on its way. Dropping it cancels it.
pub struct Job {
    events: mpsc::UnboundedReceiver<StepEvent>,
    outcome: oneshot::Receiver<Result<Vec<Picture>, JobError>>,
    canceller: Canceller,
}

impl Job {
    /// The next thing that happens, or `None` when the job has ended.
    pub async fn next_event(&mut self) -> Option<StepEvent> {
        self.events.recv().await
    }

    /// Waits for the pictures, in the order of the requests.
    pub async fn finish(mut self) -> Result<Vec<Picture>, JobError> {
        (&mut self.outcome).await.unwrap_or(Err(JobError::Stopped))
    }

    /// A handle that cancels the job from elsewhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.canceller.cancel();
    }
}

/// Cancels a job: it stops after the transformer block that it is in.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Cancels; harmless when the job has ended.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
