//! What one rank of a replica is told about a job.

use dg_comm::Communicator;
use dg_plan::Plan;
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
}
