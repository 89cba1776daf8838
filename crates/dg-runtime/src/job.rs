//! [`Job`]: one batch on its way, as its owner and as the actors see it.

use crate::JobError;
use crate::logic::queue::JobId;
use dg_core::{GenerateRequest, StepEvent, Steps};
use dg_flux::Picture;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, mpsc, oneshot};

/// A batch on its way. Dropping it cancels it.
pub struct Job {
    events: mpsc::UnboundedReceiver<StepEvent>,
    outcome: oneshot::Receiver<Result<Vec<Picture>, JobError>>,
    canceller: Canceller,
}

impl Job {
    /// The next thing that happens, or `None` when the job has ended.
    ///
    /// A job that loses one of its ranks through another job begins again, and so do its events.
    pub async fn next_event(&mut self) -> Option<StepEvent> {
        self.events.recv().await
    }

    /// Waits for the pictures, in the order of the requests.
    pub async fn finish(mut self) -> Result<Vec<Picture>, JobError> {
        (&mut self.outcome).await.unwrap_or(Err(JobError::Stopped))
    }

    /// Cancels it; [`finish`](Self::finish) then gives [`JobError::Cancelled`], unless it had ended before.
    pub fn cancel(&self) {
        self.canceller.cancel();
    }

    /// A handle that cancels the job from elsewhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

/// `job.await` is [`Job::finish`].
impl IntoFuture for Job {
    type Output = Result<Vec<Picture>, JobError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.finish())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.canceller.cancel();
    }
}

/// Cancels a job: it stops after the transformer block, text-encoder layer or VAE stage that it is in.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<Cancelling>);

#[derive(Debug, Default)]
struct Cancelling {
    is_cancelled: AtomicBool,
    told: Notify,
}

impl Canceller {
    /// Cancels; harmless when the job has ended.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        self.0.told.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Relaxed)
    }

    /// Waits for it.
    pub(crate) async fn cancelled(&self) {
        let told = self.0.told.notified();
        tokio::pin!(told);
        // From here on it is heard.
        told.as_mut().enable();
        if !self.0.is_cancelled.load(Ordering::SeqCst) {
            told.await;
        }
    }
}

/// A job as the actors see it. Dropping it ends it: the owner then sees [`JobError::Stopped`].
pub(crate) struct JobSpec {
    pub(crate) id: JobId,
    pub(crate) batch: Arc<[GenerateRequest]>,
    pub(crate) events: mpsc::UnboundedSender<StepEvent>,
    done: oneshot::Sender<Result<Vec<Picture>, JobError>>,
    pub(crate) canceller: Canceller,
    /// How often it has begun again, see [`BEGINNINGS_MAX`].
    pub(crate) restarts: u32,
}

/// How often a job may begin: each time but the last, a rank was lost through another job.
pub(crate) const BEGINNINGS_MAX: u32 = 4;

impl JobSpec {
    /// A job and its owner's end.
    pub(crate) fn new(id: JobId, batch: Vec<GenerateRequest>) -> (Self, Job) {
        let (events, incoming) = mpsc::unbounded_channel();
        let (done, outcome) = oneshot::channel();
        let canceller = Canceller::default();
        let spec = Self { id, batch: batch.into(), events, done, canceller: canceller.clone(), restarts: 0 };
        (spec, Job { events: incoming, outcome, canceller })
    }

    /// Why the batch cannot run, if so.
    pub(crate) fn fault(&self) -> Option<JobError> {
        fault(&self.batch)
    }

    /// Tells the owner how it ended.
    pub(crate) fn end(self, result: Result<Vec<Picture>, JobError>) {
        // an owner that has gone away does not care
        let _ = self.done.send(result);
    }
}

/// Why a batch cannot run, if so.
pub(crate) fn fault(batch: &[GenerateRequest]) -> Option<JobError> {
    let Some(first) = batch.first() else { return Some(JobError::Empty) };
    let bad = |s: &&f64| !(0.0..=1.0).contains(*s) || **s == 0.0;
    for sigmas in batch.iter().filter_map(|r| r.sigmas.as_ref()) {
        if sigmas.is_empty() || sigmas.len() > Steps::MAX as usize {
            return Some(JobError::Sigmas(format!("{} numbers", sigmas.len())));
        }
        if let Some(s) = sigmas.iter().find(bad) {
            return Some(JobError::Sigmas(s.to_string()));
        }
    }
    batch.iter().position(|r| !r.batches_with(first)).map(JobError::Unlike)
}
