//! The one door to the runtime.

use crate::layout;
use crate::remote::Remote;
use dg_config::Settings;
use dg_core::{DType, GenerateRequest, GenerationDefaults, ImageSize, ModelId, ModelShape, TimeDtype};
use dg_flux::modulation::Ahead;
use dg_flux::tiling::Tiling;
use dg_flux::{ModelRepo, ModelSource};
use dg_plan::Machine;
use dg_runtime::asked;
use std::num::NonZeroUsize;

pub(crate) use dg_runtime::{
    Canceller, Cluster, DeviceKind, EngineOptions, Job, MemoryNeed, Parallel, Picture, RankSpan, TraceLog,
};

/// What makes the pictures: a model that is here, or one of a cluster.
pub(crate) enum Model {
    /// Opened here.
    Here(Box<ModelRepo>),
    /// On the nodes of a cluster.
    There(Box<Remote>),
}

impl Model {
    /// Its sizes.
    pub(crate) fn shape(&self) -> &ModelShape {
        match self {
            Self::Here(repo) => repo.shape(),
            Self::There(remote) => &remote.card.shape,
        }
    }

    /// Its own defaults.
    pub(crate) fn defaults(&self) -> &GenerationDefaults {
        match self {
            Self::Here(repo) => repo.defaults(),
            Self::There(remote) => &remote.card.defaults,
        }
    }

    /// Its name and hash.
    pub(crate) fn id(&self) -> &ModelId {
        match self {
            Self::Here(repo) => repo.id(),
            Self::There(remote) => &remote.card.id,
        }
    }

    /// What it runs on.
    pub(crate) fn machine(&self) -> Machine {
        match self {
            Self::There(remote) => remote.machine.clone(),
            Self::Here(_) => layout::this_machine(),
        }
    }

    /// What its ranks compute on.
    pub(crate) fn device(&self, settings: &Settings) -> DeviceKind {
        match self {
            Self::There(remote) => remote.device,
            Self::Here(_) => asked::device(settings),
        }
    }

    /// The model that is here.
    pub(crate) fn repo(&self) -> Option<&ModelRepo> {
        match self {
            Self::Here(repo) => Some(repo),
            Self::There(_) => None,
        }
    }
}

/// Which CPU kernels this process uses.
pub(crate) fn kernels() -> &'static str {
    dg_kernels::path()
}

/// How the model computes.
pub(crate) fn options(
    (device, ranks_on, dtype): (DeviceKind, Option<DeviceKind>, DType),
    (time_dtype, tf32): (TimeDtype, bool),
    threads: NonZeroUsize,
    vae_tiling: Option<bool>,
    parallel: Parallel,
) -> EngineOptions {
    let usual = EngineOptions { release_encoders: false, priority: 0, ..EngineOptions::default() };
    EngineOptions { device, ranks_on, dtype, time_dtype, tf32, threads, vae_tiling, parallel, ..usual }
}

/// Whether a picture of this size will be decoded in tiles.
pub(crate) fn tiles(shape: &ModelShape, size: ImageSize, wanted: Option<bool>) -> bool {
    Tiling::applies(&shape.vae, size, wanted)
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
