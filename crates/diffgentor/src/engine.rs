//! The one door to the runtime.

use dg_core::{DType, GenerateRequest, ImageSize, ModelShape, TimeDtype};
use dg_flux::modulation::Ahead;
use dg_flux::tiling::Tiling;
use dg_flux::{ModelRepo, ModelSource};
use std::num::NonZeroUsize;

pub(crate) use dg_runtime::{Canceller, Cluster, EngineOptions, Job, MemoryNeed, Parallel, Picture};

/// Which CPU kernels this process uses.
pub(crate) fn kernels() -> &'static str {
    dg_kernels::path()
}

/// How the model computes.
pub(crate) fn options(
    dtype: DType,
    time_dtype: TimeDtype,
    threads: NonZeroUsize,
    vae_tiling: Option<bool>,
    parallel: Parallel,
) -> EngineOptions {
    EngineOptions { dtype, time_dtype, threads, vae_tiling, parallel }
}

/// Whether a picture of this size will be decoded in tiles.
pub(crate) fn tiles(repo: &ModelRepo, size: ImageSize, wanted: Option<bool>) -> bool {
    Tiling::applies(&repo.shape().vae, size, wanted)
}

/// What these requests need, in batches of up to `batch_size`.
pub(crate) fn need(
    repo: &ModelRepo,
    options: &EngineOptions,
    requests: &[GenerateRequest],
    batch_size: usize,
) -> MemoryNeed {
    dg_runtime::memory_need(repo, options, requests, batch_size)
}

/// Bytes of modulations that are computed ahead for this many rows and steps.
pub(crate) fn modulation_bytes(shape: &ModelShape, rows: usize, steps: usize) -> u64 {
    Ahead::bytes(&shape.transformer, rows, steps)
}

/// The built-in model.
#[cfg(feature = "demo")]
pub(crate) fn demo() -> Option<ModelSource> {
    Some(ModelSource::Embedded(dg_demo::files().iter().map(|f| (f.path, f.bytes)).collect()))
}

/// This build has no built-in model.
#[cfg(not(feature = "demo"))]
pub(crate) fn demo() -> Option<ModelSource> {
    None
}

// TEMP: until dg-runtime has these. Once `Cluster` has `replicas`, `rank_reports` and `trace` of its own, delete from
// here to the end and re-export `TraceLog` and `RankSpan` above.
pub(crate) use temporary::{RankSpan, Ranks, TraceLog};

mod temporary {
    use dg_core::report::RankReport;
    use std::time::Duration;

    /// What every rank did when.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct TraceLog {
        /// Messages.
        pub(crate) events: Vec<dg_comm::Event>,
        /// Jobs and their parts.
        pub(crate) spans: Vec<RankSpan>,
    }

    /// Something that a rank did for a job.
    #[derive(Clone, Debug)]
    pub(crate) struct RankSpan {
        /// The rank.
        pub(crate) rank: u32,
        /// The job, counted from 0 in the order of submission.
        pub(crate) job: u64,
        /// When it began.
        pub(crate) begin: Duration,
        /// When it was over.
        pub(crate) end: Duration,
        /// What it was.
        pub(crate) name: String,
    }

    /// What a cluster of several ranks tells.
    pub(crate) trait Ranks {
        /// Jobs that run at the same time.
        fn replicas(&self) -> usize {
            1
        }

        /// What every rank did so far.
        fn rank_reports(&self) -> Vec<RankReport> {
            Vec::new()
        }

        /// What every rank did when, if it was asked for.
        fn trace(&self) -> Option<TraceLog> {
            None
        }
    }

    impl Ranks for dg_runtime::Cluster {}
}
