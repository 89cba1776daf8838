//! What one rank of a replica is told about a job.

use super::Resume;
use dg_comm::{CommError, Communicator, Group, InProcess};
use dg_core::{DType, GenerateRequest, ModelShape};
use dg_plan::{Ask, Coords, Layout, Plan, Work};
use std::sync::Arc;
use std::time::Duration;

/// One batch, as one rank of a replica sees it.
#[derive(Clone)]
pub struct RankJob {
    /// The plan of the replica: `plan.layout.dp` is 1, and its ranks are those of `comm`.
    pub plan: Arc<Plan>,
    /// Joins the ranks of the replica for this job; rank i is rank i of the plan.
    pub comm: Arc<dyn Communicator>,
    /// Number of the job; no two that run at a time on the same ranks have the same.
    pub request: u64,
    /// How long one message may be waited for. It includes what the slowest rank computes between two messages.
    pub patience: Duration,
    /// Where the job goes on from; absent, it begins with noise. The same on all ranks.
    pub resume: Option<Arc<Resume>>,
}

impl RankJob {
    /// A batch on one rank of its own.
    ///
    /// # Panics
    /// For an empty batch.
    pub fn alone(shape: &ModelShape, batch: &[GenerateRequest], dtype: DType) -> Self {
        let first = &batch[0];
        let work = Work {
            text_tokens: first.max_sequence_length.tokens(),
            steps: first.steps(),
            images: batch.len(),
            request_images: batch.len(),
            batch: batch.len(),
            true_cfg: first.active_negative().is_some(),
            dtype,
            ..Work::one(shape.clone(), first.size)
        };
        let plan = Plan::new(&work, &Ask::layout(Layout::SERIAL)).expect("one rank can run anything");
        let comm = InProcess::group(1).pop().expect("one rank");
        // nobody is waited for
        Self {
            plan: Arc::new(plan),
            comm: Arc::new(comm),
            request: 0,
            patience: Duration::ZERO,
            resume: None,
        }
    }

    /// Steps that are done before it begins.
    pub fn steps_done(&self) -> usize {
        self.resume.as_ref().map_or(0, |resume| resume.step)
    }

    /// Whether no step is left, so that nobody needs the prompts.
    pub(crate) fn is_denoised(&self) -> bool {
        self.steps_done() >= self.plan.work.steps
    }

    /// This rank.
    pub(crate) fn rank(&self) -> u32 {
        u32::try_from(self.comm.rank()).unwrap_or(u32::MAX)
    }

    /// Where it stands.
    pub(crate) fn coords(&self) -> Coords {
        self.plan.layout.coords(self.rank())
    }

    /// Whether it has the first blocks.
    pub(crate) fn is_first_stage(&self) -> bool {
        self.coords().pp == 0
    }

    /// Whether it has the last blocks.
    pub(crate) fn is_last_stage(&self) -> bool {
        self.coords().pp + 1 == self.plan.layout.pp
    }

    /// The ranks that share its sequence, in the order of the owners, as a group called `name`.
    pub(crate) fn sequence_group(&self, name: &str) -> Result<Group, CommError> {
        let at = self.coords();
        let first = self.plan.layout.rank(Coords { ring: 0, ulysses: 0, ..at }) as usize;
        Group::new(self.comm.clone(), name, (first..first + self.plan.layout.sequence_ranks()).collect())
    }
}
