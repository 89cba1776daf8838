//! FLUX text-to-image on burn: a diffusers folder in, pictures out.
//!
//! What is computed, with the source of every formula and how it is checked, stands in
//! `docs/numerics.md`. The entry types are [`ModelRepo`] (a model, opened) and [`Pipeline`] (a
//! model, loaded).
//!
//! # Layout
//! - [`source`], [`config`], [`weights`], [`repo`]: files → configs and mapped tensors
//! - [`tokenizer`], [`clip`], [`t5`], [`text`]: prompts → embeddings
//! - [`conditioning`], [`modulation`]: time, guidance, pooled prompt → what they say to each block
//! - [`transformer`], [`rope`], [`attend`]: latents → velocity
//! - [`rng`], [`latents`], [`schedule`], [`pipeline`]: noise → latents
//! - [`vae`], [`tiling`], [`picture`]: latents → RGB
//! - [`parallel`]: one picture on several ranks
//! - [`watch`]: looking in, and stopping
//!
//! ```no_run
//! use burn::tensor::Device;
//! use dg_core::{DType, GenerateRequest, ImageSize, Seed, TimeDtype};
//! use dg_flux::{ModelRepo, ModelSource, Pipeline, PipelineOptions, watch::Unwatched};
//!
//! let repo = ModelRepo::open(ModelSource::Folder("FLUX.1-schnell".into()), "FLUX.1-schnell")?;
//! let options = PipelineOptions {
//!     device: Device::flex(),
//!     dtype: DType::Float32,
//!     time_dtype: TimeDtype::Model,
//!     vae_tiling: None,
//!     release_encoders: false,
//!     free_memory: None,
//!     weights_memory: None,
//! };
//! let mut pipeline = Pipeline::load(&repo, options)?;
//! let (size, _) = ImageSize::fit(512, 512).unwrap();
//! let pictures = pipeline.generate(&[GenerateRequest::new("a cat", size, Seed(0))], &mut Unwatched);
//! # Ok::<(), dg_flux::ModelError>(())
//! ```
#![forbid(unsafe_code)]

pub mod attend;
pub mod clip;
pub mod conditioning;
pub mod config;
pub mod error;
pub mod latents;
pub mod modulation;
pub mod parallel;
pub mod picture;
pub mod pipeline;
pub mod repo;
pub mod rng;
pub mod rope;
pub mod schedule;
pub mod source;
mod stage;
pub mod t5;
pub mod text;
pub mod tiling;
pub mod tokenizer;
pub mod transformer;
mod turns;
pub mod vae;
pub mod watch;
pub mod weights;

pub use config::{ModelConfig, ScheduleConfig};
pub use error::{ModelError, PassError, RunError, Unread};
pub use picture::Picture;
pub use pipeline::{FreeMemory, Pipeline, PipelineOptions};
pub use repo::ModelRepo;
pub use source::ModelSource;

use serde::{Deserialize, Serialize};

/// Where tensors are and are computed on.
pub use burn::tensor::Device;

/// What a rank computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The first NVIDIA GPU that the process sees.
    Cuda,
}

/// The CPU device.
pub fn cpu() -> Device {
    Device::flex()
}

/// The device of that kind.
///
/// # Errors
/// What is missing on this machine or in this build, with a hint.
pub fn device(kind: DeviceKind) -> Result<Device, String> {
    match kind {
        DeviceKind::Cpu => Ok(cpu()),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => dg_cuda::device::first(),
        #[cfg(not(feature = "cuda"))]
        DeviceKind::Cuda => {
            Err("this build has no CUDA; hint: build it with `--features cuda` (docs/gpu.md)".into())
        }
    }
}

/// Looks at `DG_KERNELS` ([`dg_kernels::path`]).
///
/// # Errors
/// Its value, if it names no kernels, with a hint.
pub fn check_kernels() -> Result<(), String> {
    dg_kernels::check_environment()
}

/// Lets float32 matrices be multiplied as TF32 on GPUs, in this process, from now on. Off at first.
pub fn allow_tf32(yes: bool) {
    dg_kernels::allow_tf32(yes);
}

/// Waits until a GPU has done what it was given, so that a step's time is its own and a job that is stopped leaves no
/// queue behind. What has failed is told where it is read.
#[cfg(feature = "cuda")]
pub(crate) fn settle(device: &Device) {
    if !is_cpu(device) {
        let _ = device.sync();
    }
}

/// The CPU is never behind.
#[cfg(not(feature = "cuda"))]
pub(crate) fn settle(_device: &Device) {}

/// Whether tensors of the device are memory of the host.
pub(crate) fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return matches!(device.as_dispatch(), burn::backend::DispatchDevice::Flex(_));
    #[cfg(not(feature = "cuda"))]
    {
        // there is no other
        let _ = device;
        true
    }
}
