//! Clusters of engines that only pretend. This file: of one rank.

mod many;

use super::*;
use crate::JobError;
use dg_core::{ImageSize, Seed, StepEvent};
use dg_flux::RunError;
use dg_flux::parallel::RankJob;
use dg_flux::watch::{Cancelled, Watch};
use dg_flux::{Picture, RunError::NotFinite};
use dg_plan::known;
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
        _: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<Picture>>, RunError> {
        match batch[0].prompt.as_str() {
            "panic" => panic!("as asked"),
            "error" => return Err(NotFinite { image: 0, steps: 1 }),
            "dawdle" => return dawdle(watch).map(|()| None),
            _ => {}
        }
        watch.event(StepEvent::TextEncoded { images: vec![0], seconds: 0.0 });
        Ok(Some(pictures(batch)))
    }

    fn mapped_bytes(&self) -> u64 {
        7
    }
}

/// Until it is stopped.
fn dawdle(watch: &dyn Watch) -> Result<(), RunError> {
    while !watch.stop() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Cancelled.into())
}

fn pictures(batch: &[GenerateRequest]) -> Vec<Picture> {
    let picture = |r: &GenerateRequest| Picture {
        size: r.size,
        rgb: vec![0; 3 * r.size.pixels() as usize],
        seed: r.seed,
        vae_tiling: false,
        pixels_blake3: String::new(),
        latents_blake3: String::new(),
    };
    batch.iter().map(picture).collect()
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
    let load = move |_| -> Result<Box<dyn Engine>, StartError> {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Fake { drops: dropped.clone() }))
    };
    let cluster = Cluster::with_engine(Arc::new(load), known::flux_schnell(), EngineOptions::default());
    (cluster.await.unwrap(), loads, drops)
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
    assert_eq!(job.next_event().await, None);
    let seeds: Vec<u64> = job.finish().await.unwrap().iter().map(|p| p.seed.0).collect();
    assert_eq!(seeds, [5, 3]);
    let [report] = cluster.rank_reports().try_into().unwrap();
    assert_eq!((report.rank, report.coords, report.mapped_bytes), (0, [0; 5], 7));
    assert!(report.compute_s > 0.0 && report.wait_s == 0.0, "{report:?}");
    assert!(report.sent.is_empty() && report.predicted.is_empty());
    assert_eq!((cluster.replicas(), cluster.trace()), (1, None));
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
async fn an_error_of_the_only_rank_does_not_name_it() {
    let (cluster, loads) = cluster().await;
    let error = cluster.submit(vec![request("error", 0)]).finish().await.unwrap_err();
    assert_eq!(error, NotFinite { image: 0, steps: 1 }.into());
    assert_eq!(loads.load(Ordering::Relaxed), 1);
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
    let load = |_| Err(StartError::Panicked("no model".into()));
    let cluster = Cluster::with_engine(Arc::new(load), known::flux_schnell(), EngineOptions::default());
    let error = cluster.await.err().unwrap();
    assert!(error.to_string().contains("no model"));
}
