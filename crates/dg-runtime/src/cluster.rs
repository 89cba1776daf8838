//! [`Cluster`]: a model that is ready to work.

use crate::StartError;
use crate::board::{Board, RankEvent, RankStatus, TraceLog};
use crate::builder::{BuildError, Builder};
use crate::compute::{Engine, Load};
use crate::fleet::client::{HeadClient, RemoteBoard};
use crate::fleet::job::{JobBody, ModelCard};
use crate::job::{Job, JobSpec};
use crate::logic::queue::JobId;
use crate::plan::{job_plan, load_plan};
use crate::supervisor::{self, Supervisor};
use dg_core::report::{EventReport, RankReport};
use dg_core::{DType, GenerateRequest, ModelId, ModelShape, TimeDtype};
use dg_flux::{DeviceKind, ModelRepo, ModelSource, Pipeline, PipelineOptions};
use dg_plan::{Ask, Layout, Plan, Refusal};
use ractor::{Actor, ActorRef};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

/// How a rank computes.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Format of the arithmetic.
    pub dtype: DType,
    /// Format of time and guidance in a bfloat16 run.
    pub time_dtype: TimeDtype,
    /// Multiply float32 matrices as TF32 on GPUs. Of a whole process: the last one that was started says it.
    pub tf32: bool,
    /// Threads of each rank's pool.
    pub threads: NonZeroUsize,
    /// Decode in tiles: yes, no, or above [`dg_flux::tiling::PIXELS_MAX`] pixels.
    pub vae_tiling: Option<bool>,
    /// Give back the memory of the text encoders after each batch of prompts: for machines that are short of it.
    pub release_encoders: bool,
    /// How pictures are shared out among ranks.
    pub parallel: Parallel,
    /// What ranks of this process compute on. Those of a cluster have what its file says.
    pub device: DeviceKind,
    /// On a cluster of processes: which of its ranks make the pictures; absent, those on GPUs if it has any.
    pub ranks_on: Option<DeviceKind>,
    /// On a cluster of processes: jobs of a higher priority begin before all that wait with a lower one, up to
    /// [`PRIORITY_MAX`].
    pub priority: u8,
}

/// The highest priority of a job.
pub const PRIORITY_MAX: u8 = 9;

/// How pictures are shared out among ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Parallel {
    /// Degrees, patches, warm-up, pipeline, balance of stages, memory of a rank.
    pub ask: Ask,
    /// Pictures of one request (`num_images_per_prompt`): whether a pipeline can be exact depends on it.
    pub request_images: usize,
    /// How long one message between ranks may be waited for; see [`RankJob::patience`](dg_flux::parallel::RankJob). As
    /// the ranks of a replica go on with the next job while one of them decodes, that has to fit in too.
    pub patience: Duration,
    /// Whether every message and job of every rank is written down, for [`Cluster::trace`].
    pub trace: bool,
}

impl Default for Parallel {
    /// One rank.
    fn default() -> Self {
        Self { ask: Ask::layout(Layout::SERIAL), request_images: 1, patience: PATIENCE, trace: false }
    }
}

/// How long one message between ranks may be waited for, unless [`Parallel`] says otherwise. A rank that dies is noticed
/// at once; this is for one that hangs. A stage waits for all that the one before computes, of a whole batch while
/// PipeFusion warms up: FLUX.1 at 1024×1024 takes two CPU cores some nine minutes per picture and step.
pub const PATIENCE: Duration = Duration::from_secs(6 * 3600);

impl Default for EngineOptions {
    /// float32, one thread, tiling above the limit only.
    fn default() -> Self {
        Self {
            dtype: DType::Float32,
            time_dtype: TimeDtype::Model,
            tf32: false,
            threads: NonZeroUsize::MIN,
            vae_tiling: None,
            release_encoders: false,
            parallel: Parallel::default(),
            device: DeviceKind::Cpu,
            ranks_on: None,
            priority: 0,
        }
    }
}

/// Ranks that make pictures: threads of this process under a supervisor, or the processes of a cluster.
///
/// Dropping it stops what is in this process as [`Cluster::shutdown`] does, without waiting for it.
pub struct Cluster {
    place: Place,
    shape: ModelShape,
    options: EngineOptions,
    next: AtomicU64,
}

/// The ranks of a cluster of processes.
struct There {
    head: HeadClient,
    model: ModelId,
    /// What jobs call the model; absent, they have that of the cluster's file.
    name: Option<String>,
    board: RemoteBoard,
}

/// Where the ranks are.
enum Place {
    /// Threads of this process.
    Here {
        supervisor: ActorRef<supervisor::Message>,
        /// Until [`Cluster::shutdown`] waits for it.
        stopped: Option<JoinHandle<()>>,
        board: Arc<Board>,
    },
    /// Processes of nodes, behind a head.
    There(Box<There>),
}

impl Cluster {
    /// Starts the actors and loads the model: each rank what it needs, all at a time, out of one map of each file. Call
    /// it inside a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] for a layout in which no picture can be made, and for a model that cannot be loaded.
    pub async fn start(repo: impl Into<Arc<ModelRepo>>, options: EngineOptions) -> Result<Self, StartError> {
        let repo = repo.into();
        let shape = repo.shape().clone();
        let plan = load_plan(&shape, &options.parallel.ask, options.dtype)?;
        let all = options.parallel.ask.layout.ranks();
        dg_flux::allow_tf32(options.tf32);
        let device = dg_flux::device(options.device).map_err(StartError::Device)?;
        let computing = PipelineOptions {
            free_memory: crate::memory::free(options.device, &device),
            // ranks that are threads, replicas too, use the same maps: none can tell what the others still need
            weights_memory: (all == 1)
                .then(|| crate::memory::share(options.device, crate::memory::Others::default()))
                .flatten(),
            device,
            dtype: options.dtype,
            time_dtype: options.time_dtype,
            vae_tiling: options.vae_tiling,
            release_encoders: options.release_encoders,
        };
        let load = move |rank| load_rank(&repo, computing.clone(), &plan, rank);
        Self::with_engine(Arc::new(load), shape, options).await
    }

    pub(crate) async fn with_engine(
        load: Load,
        shape: ModelShape,
        options: EngineOptions,
    ) -> Result<Self, StartError> {
        let threads = options.threads.get();
        let board = Arc::new(Board::new(options.parallel.ask.layout, options.parallel.trace));
        let (started, result) = oneshot::channel();
        let args = supervisor::Arguments {
            load,
            shape: shape.clone(),
            options: options.clone(),
            board: board.clone(),
            started,
        };
        let (supervisor, stopped) = Actor::spawn(None, Supervisor, args)
            .await
            .map_err(|e| StartError::Threads { threads, reason: e.to_string() })?;
        match result.await {
            Ok(Ok(())) => {
                let place = Place::Here { supervisor, stopped: Some(stopped), board };
                Ok(Self { place, shape, options, next: AtomicU64::new(0) })
            }
            Ok(Err(e)) => Err(e),
            Err(_) => Err(StartError::Panicked("the supervisor stopped".into())),
        }
    }

    /// A cluster whose head this is. Jobs are laid out as `options` say, on its nodes; they name the model `model`, or
    /// that of the cluster's file. `card` is what the nodes know of it ([`HeadClient::model`]).
    pub fn connect(head: HeadClient, model: Option<String>, card: ModelCard, options: EngineOptions) -> Self {
        let (shape, board) = (card.shape, RemoteBoard::default());
        let place = Place::There(Box::new(There { head, model: card.id, name: model, board }));
        Self { place, shape, options, next: AtomicU64::new(0) }
    }

    /// How many jobs can be worked on at a time: the data parallel degree.
    pub fn replicas(&self) -> usize {
        self.options.parallel.ask.layout.dp as usize
    }

    /// What happened in a cluster of processes since this was asked last: ranks that were lost, jobs that went on.
    pub fn take_notices(&self) -> Vec<EventReport> {
        match &self.place {
            Place::Here { .. } => Vec::new(),
            Place::There(there) => there.board.take_notices(),
        }
    }

    /// Hands in one batch. It begins after those that were handed in before it, on the first replica that is free.
    pub fn submit(&self, batch: Vec<GenerateRequest>) -> Job {
        let id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let (spec, job) = JobSpec::new(id, batch);
        if let Some(error) = spec.fault() {
            spec.end(Err(error));
            return job;
        }
        match &self.place {
            Place::Here { supervisor, .. } => {
                if let Err(e) = supervisor.cast(supervisor::Message::Submit(spec)) {
                    tracing::debug!("submitted to a stopped cluster: {e}");
                }
            }
            Place::There(there) => {
                let body = self.body(&spec, there);
                tokio::spawn(there.head.clone().follow(spec, body, there.board.clone()));
            }
        }
        job
    }

    /// A job as it travels.
    fn body(&self, spec: &JobSpec, there: &There) -> JobBody {
        let EngineOptions { dtype, time_dtype, tf32, vae_tiling, parallel, ranks_on, priority, .. } =
            &self.options;
        let layout = Layout { dp: 1, ..parallel.ask.layout };
        JobBody {
            batch: spec.batch.to_vec(),
            model: there.name.clone(),
            model_hash: Some(there.model.hash.clone()),
            ask: Ask { layout, num_gpus: None, memory_bytes: None, ..parallel.ask.clone() },
            request_images: parallel.request_images,
            dtype: *dtype,
            time_dtype: *time_dtype,
            tf32: *tf32,
            vae_tiling: *vae_tiling,
            ranks_on: *ranks_on,
            priority: *priority,
        }
    }

    /// What a cluster is made of, to be said bit by bit.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts `ranks` ranks in this process, in the best layout that keeps the picture.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn local(source: ModelSource, id: impl Into<String>, ranks: u32) -> Result<Self, BuildError> {
        Self::builder().model(source, id).ranks(ranks).start().await
    }

    /// What each rank of this process is at; those of a cluster are told by [`HeadClient::status`].
    pub fn status(&self) -> Vec<RankStatus> {
        self.board().map(|board| board.status()).unwrap_or_default()
    }

    fn board(&self) -> Option<&Arc<Board>> {
        match &self.place {
            Place::Here { board, .. } => Some(board),
            Place::There(_) => None,
        }
    }

    /// Every change of a rank's state from now on: ready, busy, lost, replaced. A listener that is 1024 events behind
    /// misses the oldest. Nothing comes from a cluster of processes, see [`take_notices`](Self::take_notices).
    pub fn rank_events(&self) -> broadcast::Receiver<RankEvent> {
        self.board().map_or_else(|| broadcast::channel(1).1, |board| board.listen())
    }

    /// How a batch would be made: the plan of one replica.
    ///
    /// # Errors
    /// [`Refusal`] if it cannot be made in this layout.
    ///
    /// # Panics
    /// For an empty batch.
    pub fn plan(&self, batch: &[GenerateRequest]) -> Result<Plan, Refusal> {
        job_plan(&self.shape, &self.options, batch)
    }

    /// What each rank has held, done and sent so far, in the order of the ranks. Does not wait; whatever belongs to a
    /// job is in it as soon as [`Job::finish`] returns.
    ///
    /// `sent` and `predicted` are those of the jobs that ran to their end on the rank, times those of all jobs in which
    /// it did not panic. What the operating system knows (memory) is not in it.
    pub fn rank_reports(&self) -> Vec<RankReport> {
        match &self.place {
            Place::Here { board, .. } => board.reports(),
            Place::There(there) => there.board.reports(),
        }
    }

    /// What was written down so far, if [`Parallel::trace`] is on.
    pub fn trace(&self) -> Option<TraceLog> {
        self.board()?.log()
    }

    /// The part of it that belongs to one job, numbered from 0 as they were submitted. With `forget`, its messages are
    /// not kept any longer.
    pub fn trace_of(&self, job: u64, forget: bool) -> Option<TraceLog> {
        self.board()?.log_of(job, forget)
    }

    /// Ends the connection to the head of a cluster of processes, which cancels jobs that are not done, and waits until the
    /// head knows. Nothing for ranks of this process.
    pub async fn leave(&self) {
        if let Place::There(there) = &self.place {
            there.head.close().await;
        }
    }

    /// Stops the actors. Jobs that wait end with [`JobError::Stopped`](crate::JobError::Stopped); a running one ends when it is
    /// finished, or when its owner cancels or drops it.
    ///
    /// On a cluster of processes: as [`leave`](Self::leave).
    pub async fn shutdown(mut self) {
        let (supervisor, stopped) = match &mut self.place {
            Place::Here { supervisor, stopped, .. } => (supervisor, stopped),
            Place::There(there) => return there.head.close().await,
        };
        supervisor.stop(None);
        if let Some(stopped) = stopped.take()
            && let Err(e) = stopped.await
        {
            tracing::debug!("supervisor: {e}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Place::Here { supervisor, .. } = &self.place {
            supervisor.stop(None);
        }
    }
}

/// Loads what a rank, counted over all replicas, needs of the model. `plan` is that of a replica.
fn load_rank(
    repo: &ModelRepo,
    options: PipelineOptions,
    plan: &Plan,
    rank: usize,
) -> Result<Box<dyn Engine>, StartError> {
    let local = u32::try_from(rank).unwrap_or(u32::MAX) % plan.ranks();
    Ok(Box::new(Pipeline::load_rank(repo, options, plan, local)?))
}

#[cfg(test)]
mod tests;
