//! What compute threads tell the supervisor.

use crate::StartError;
use crate::job::JobSpec;
use crate::logic::queue::JobId;
use dg_plan::Plan;
use std::sync::Arc;

/// One worker of one rank: a replacement has the same rank and another life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerId {
    /// Rank, counted over all replicas.
    pub(crate) rank: usize,
    /// How many workers the cluster had started before.
    pub(crate) life: u64,
}

/// Something that the supervisor has to know. Owners of jobs are told by the threads themselves.
pub(crate) enum Told {
    /// The weights are loaded.
    Ready(WorkerId),
    /// The weights could not be loaded.
    Broken(WorkerId, StartError),
    /// The job's latents are there.
    Denoised(JobId),
    /// The job has ended on all its ranks; its owner is being told.
    Ended {
        /// Which.
        job: JobId,
        /// Whether it took one of its ranks along.
        has_lost: bool,
    },
    /// The job has ended on all its ranks, and is to begin again: one of them was lost through another job.
    Orphaned(JobSpec, Arc<Plan>),
    /// The worker's thread ends. Of the jobs that it has this is told first.
    Lost(WorkerId),
}

/// Tells it. Harmless when the supervisor is gone.
pub(crate) type Tell = Arc<dyn Fn(Told) + Send + Sync>;
