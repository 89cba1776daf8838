//! [`Cluster`]: a model that is ready to work.

use crate::StartError;
use crate::compute::{Engine, Load};
use crate::job::{Job, JobSpec};
use crate::logic::queue::JobId;
use crate::supervisor::{self, Supervisor};
use dg_core::{DType, GenerateRequest, TimeDtype};
use dg_flux::{ModelRepo, Pipeline, PipelineOptions};
use dg_plan::{Ask, Layout};
use ractor::{Actor, ActorRef};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How a rank computes.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Format of the arithmetic.
    pub dtype: DType,
    /// Format of time and guidance in a bfloat16 run.
    pub time_dtype: TimeDtype,
    /// Threads of the rank's pool.
    pub threads: NonZeroUsize,
    /// Decode in tiles: yes, no, or above [`dg_flux::tiling::PIXELS_MAX`] pixels.
    pub vae_tiling: Option<bool>,
    /// How pictures are shared out among ranks.
    pub parallel: Parallel,
}

/// How pictures are shared out among ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Parallel {
    /// Degrees, patches, warm-up, pipeline, balance of stages, memory of a rank.
    pub ask: Ask,
    /// Pictures of one request (`num_images_per_prompt`): whether a pipeline can be exact depends on it.
    pub request_images: usize,
    /// How long one message between ranks may be waited for; see [`RankJob::patience`](dg_flux::parallel::RankJob).
    pub patience: Duration,
    /// Where every message and job of every rank is written down, if anywhere.
    pub trace: bool,
}

impl Default for Parallel {
    /// One rank.
    fn default() -> Self {
        Self { ask: Ask::layout(Layout::SERIAL), request_images: 1, patience: PATIENCE, trace: false }
    }
}

/// How long one message between ranks may be waited for, unless [`Parallel`] says otherwise. A rank that dies is noticed
/// at once; this is for one that hangs, and no block of FLUX takes as long on any machine that can run it.
pub const PATIENCE: Duration = Duration::from_secs(3600);

impl Default for EngineOptions {
    /// float32, one thread, tiling above the limit only.
    fn default() -> Self {
        Self {
            dtype: DType::Float32,
            time_dtype: TimeDtype::Model,
            threads: NonZeroUsize::MIN,
            vae_tiling: None,
            parallel: Parallel::default(),
        }
    }
}

/// A supervisor, its worker and the loaded model. One rank, in this process.
///
/// Dropping it stops them as [`Cluster::shutdown`] does, without waiting for it.
pub struct Cluster {
    supervisor: ActorRef<supervisor::Message>,
    /// Until [`Cluster::shutdown`] waits for it.
    stopped: Option<JoinHandle<()>>,
    next: AtomicU64,
}

impl Cluster {
    /// Starts the actors and loads the model. Call it inside a tokio runtime.
    pub async fn start(repo: ModelRepo, options: EngineOptions) -> Result<Self, StartError> {
        let threads = options.threads.get();
        let load = move || -> Result<Box<dyn Engine>, StartError> {
            let options = PipelineOptions {
                device: dg_flux::cpu(),
                dtype: options.dtype,
                time_dtype: options.time_dtype,
                vae_tiling: options.vae_tiling,
            };
            Ok(Box::new(Pipeline::load(&repo, options)?))
        };
        Self::with_engine(Arc::new(load), threads).await
    }

    pub(crate) async fn with_engine(load: Load, threads: usize) -> Result<Self, StartError> {
        let (started, result) = oneshot::channel();
        let args = supervisor::Arguments { load, threads, started };
        let (supervisor, stopped) = Actor::spawn(None, Supervisor, args)
            .await
            .map_err(|e| StartError::Threads { threads, reason: e.to_string() })?;
        match result.await {
            Ok(Ok(())) => Ok(Self { supervisor, stopped: Some(stopped), next: AtomicU64::new(0) }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(StartError::Panicked("the supervisor stopped".into())),
        }
    }

    /// Hands in one batch. It runs after those that were handed in before it.
    pub fn submit(&self, batch: Vec<GenerateRequest>) -> Job {
        let id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let (spec, job) = JobSpec::new(id, batch);
        if let Some(error) = spec.fault() {
            spec.end(Err(error));
        } else if let Err(e) = self.supervisor.cast(supervisor::Message::Submit(spec)) {
            tracing::debug!("submitted to a stopped cluster: {e}");
        }
        job
    }

    /// Stops the actors. Jobs that wait end with [`JobError::Stopped`](crate::JobError::Stopped); a running one ends when it is
    /// finished, or when its owner cancels or drops it.
    pub async fn shutdown(mut self) {
        self.supervisor.stop(None);
        if let Some(stopped) = self.stopped.take()
            && let Err(e) = stopped.await
        {
            tracing::debug!("supervisor: {e}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.supervisor.stop(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JobError;
    use dg_core::{ImageSize, Seed, StepEvent};
    use dg_flux::Picture;
    use dg_flux::RunError;
    use dg_flux::watch::{Cancelled, Watch};
    use std::sync::atomic::AtomicU32;

    /// Makes black pictures; panics or dawdles when the prompt says so.
    struct Fake {
        /// How many are gone.
        drops: Arc<AtomicU32>,
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            self.drops.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Engine for Fake {
        fn generate(
            &mut self,
            batch: &[GenerateRequest],
            watch: &mut dyn Watch,
        ) -> Result<Vec<Picture>, RunError> {
            match batch[0].prompt.as_str() {
                "panic" => panic!("as asked"),
                "dawdle" => {
                    while !watch.stop() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return Err(Cancelled.into());
                }
                _ => {}
            }
            watch.event(StepEvent::TextEncoded { images: vec![0], seconds: 0.0 });
            let picture = |r: &GenerateRequest| Picture {
                size: r.size,
                rgb: vec![0; 3 * r.size.pixels() as usize],
                seed: r.seed,
                vae_tiling: false,
                pixels_blake3: String::new(),
                latents_blake3: String::new(),
            };
            Ok(batch.iter().map(picture).collect())
        }
    }

    fn request(prompt: &str, seed: u64) -> GenerateRequest {
        GenerateRequest::new(prompt, ImageSize::fit(16, 16).unwrap().0, Seed(seed))
    }

    /// A cluster of fakes, and how often its engine was loaded.
    async fn cluster() -> (Cluster, Arc<AtomicU32>) {
        let (cluster, loads, _) = counted_cluster().await;
        (cluster, loads)
    }

    /// A cluster of fakes, how often its engine was loaded and how many engines are gone.
    async fn counted_cluster() -> (Cluster, Arc<AtomicU32>, Arc<AtomicU32>) {
        let (loads, drops) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (counted, dropped) = (loads.clone(), drops.clone());
        let load = move || -> Result<Box<dyn Engine>, StartError> {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Fake { drops: dropped.clone() }))
        };
        (Cluster::with_engine(Arc::new(load), 1).await.unwrap(), loads, drops)
    }

    /// Waits, at most ten seconds, until that many engines are gone.
    async fn dropped(drops: &AtomicU32, engines: u32) {
        for _ in 0..1000 {
            if drops.load(Ordering::Relaxed) == engines {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} engines are gone, not {engines}", drops.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn dropping_a_cluster_drops_its_engine() {
        let (cluster, loads, drops) = counted_cluster().await;
        assert!(cluster.submit(vec![request("a", 0)]).finish().await.is_ok());
        assert_eq!((loads.load(Ordering::Relaxed), drops.load(Ordering::Relaxed)), (1, 0));
        drop(cluster);
        dropped(&drops, 1).await;
    }

    #[tokio::test]
    async fn shutting_down_drops_the_engine_once_its_job_is_done() {
        let (cluster, _, drops) = counted_cluster().await;
        let running = cluster.submit(vec![request("dawdle", 0)]);
        let waiting = cluster.submit(vec![request("a", 0)]);
        cluster.shutdown().await;
        assert_eq!(waiting.finish().await, Err(JobError::Stopped));
        drop(running);
        dropped(&drops, 1).await;
    }

    #[tokio::test]
    async fn a_job_gives_its_pictures_in_order() {
        let (cluster, _) = cluster().await;
        let mut job = cluster.submit(vec![request("a", 5), request("b", 3)]);
        assert!(matches!(job.next_event().await, Some(StepEvent::TextEncoded { .. })));
        let seeds: Vec<u64> = job.finish().await.unwrap().iter().map(|p| p.seed.0).collect();
        assert_eq!(seeds, [5, 3]);
        cluster.shutdown().await;
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_job_only() {
        let (cluster, loads) = cluster().await;
        let bad = cluster.submit(vec![request("panic", 0)]);
        let good = cluster.submit(vec![request("a", 1)]);
        assert_eq!(bad.finish().await, Err(JobError::Panicked("as asked".into())));
        assert_eq!(good.finish().await.unwrap().len(), 1);
        assert_eq!(loads.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_cluster_whose_workers_keep_dying_stops() {
        let (cluster, loads) = cluster().await;
        for _ in 0..3 {
            let job = cluster.submit(vec![request("panic", 0)]);
            assert!(matches!(job.finish().await, Err(JobError::Panicked(_))));
        }
        assert_eq!(cluster.submit(vec![request("a", 0)]).finish().await, Err(JobError::Stopped));
        assert_eq!(loads.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn cancelling_ends_the_running_job_and_not_the_next() {
        let (cluster, _) = cluster().await;
        let running = cluster.submit(vec![request("dawdle", 0)]);
        let next = cluster.submit(vec![request("a", 0)]);
        running.canceller().cancel();
        assert_eq!(running.finish().await, Err(JobError::Cancelled));
        assert!(next.finish().await.is_ok());
        // dropping is cancelling
        drop(cluster.submit(vec![request("dawdle", 0)]));
        assert!(cluster.submit(vec![request("a", 0)]).finish().await.is_ok());
    }

    #[tokio::test]
    async fn impossible_batches_are_refused() {
        let (cluster, _) = cluster().await;
        assert_eq!(cluster.submit(vec![]).finish().await, Err(JobError::Empty));
        let mut other = request("b", 0);
        other.size = ImageSize::fit(32, 16).unwrap().0;
        assert_eq!(cluster.submit(vec![request("a", 0), other]).finish().await, Err(JobError::Unlike(1)));
        for bad in [vec![], vec![1.0, f64::NAN], vec![0.0], vec![1.5]] {
            let mut r = request("a", 0);
            r.sigmas = Some(bad);
            assert!(matches!(cluster.submit(vec![r]).finish().await, Err(JobError::Sigmas(_))));
        }
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_loaded_is_told() {
        let load = || Err(StartError::Panicked("no model".into()));
        let error = Cluster::with_engine(Arc::new(load), 1).await.err().unwrap();
        assert!(error.to_string().contains("no model"));
    }
}
