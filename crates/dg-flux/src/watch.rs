//! Looking into a run, and stopping it.

use crate::parallel::LatentsPart;
use burn::tensor::Tensor;
use dg_core::StepEvent;

/// Sees intermediate results, takes checkpoints, and may stop the run between blocks.
pub trait Watch {
    /// An intermediate result, `double_0.image` for instance.
    fn see(&mut self, name: &str, x: &Tensor<3>) {
        let _ = (name, x);
    }

    /// Something worth telling happened.
    fn event(&mut self, event: StepEvent) {
        let _ = event;
    }

    /// Whether this rank's part of the latents after `step` steps, from 1, is wanted. Every rank is asked once after
    /// each of its steps. [`Plan::resumes_at`](dg_plan::Plan::resumes_at) says from which of them a job can go on.
    fn wants_latents(&self, step: usize) -> bool {
        let _ = step;
        false
    }

    /// Takes that part: an empty one on ranks that do not step latents. The rank waits meanwhile.
    fn latents(&mut self, part: LatentsPart) {
        let _ = part;
    }

    /// True to stop as soon as possible.
    fn stop(&self) -> bool {
        false
    }

    /// An error if the run is to stop.
    fn check(&self) -> Result<(), Cancelled> {
        if self.stop() { Err(Cancelled) } else { Ok(()) }
    }
}

/// The run was stopped by [`Watch::stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {}
