//! Attention on one of the ranks that share a sequence.

use super::ring::{Ring, Round};
use super::ulysses::Ulysses;
use crate::PassError;
use crate::attend::{Attend, Pass, Projected};
use burn::tensor::Tensor;
use dg_comm::{Call, Class, CommError, Communicator, Group, Op, Place, Tag};
use dg_kernels::Precision;
use dg_plan::{HeadSplit, SegmentTable};
use std::sync::Arc;
use std::time::Duration;

/// What the messages of one request have in common.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Number of the request; no two that run at a time on the same ranks have the same.
    pub request: u64,
    /// How long one message may be waited for. It includes what the slowest rank computes between two messages.
    pub patience: Duration,
}

/// One rank of ring × Ulysses. Ulysses is inside: the owners of a Ulysses group are consecutive, and a ring joins
/// the members that have the same heads.
///
/// Ulysses alone gives the bits of a serial run: after its exchange a rank attends over the segments of the whole
/// sequence in canonical order. Ring adds partial results in another order, which differs within rounding.
pub struct Sequence {
    ulysses: Ulysses,
    ring: Ring,
    patience: Duration,
    tag: Tag,
    /// Kinds that one branch uses: one for each hop.
    hops: u32,
}

impl Sequence {
    /// Attention for owner `comm.rank()` of `segments`. `comm` joins the ranks that share the sequence, in the
    /// order of the owners; `heads` has a member for each rank of a Ulysses group, and shares of tokens and heads
    /// may be uneven, those of tokens empty.
    ///
    /// # Errors
    /// [`CommError::Invalid`] if the tables and the ranks do not fit together.
    pub fn new(
        comm: Arc<dyn Communicator>,
        segments: &SegmentTable,
        heads: &HeadSplit,
        job: Job,
    ) -> Result<Self, CommError> {
        let (rank, owners, members) = (comm.rank(), segments.owners(), heads.ranges().len());
        if comm.size() != owners || members == 0 || !owners.is_multiple_of(members) {
            let ranks = comm.size();
            let what =
                format!("{ranks} ranks for a sequence of {owners} owners in Ulysses groups of {members}");
            return Err(CommError::Invalid { place: Place::alone(Op::Check), what });
        }
        let (first, rings) = (rank / members * members, owners / members);
        let inside = Group::new(comm.clone(), "ulysses", (first..first + members).collect())?;
        let across = (0..rings).map(|place| place * members + rank % members).collect();
        let across = Group::new(comm, "ring", across)?;
        Ok(Self {
            ulysses: Ulysses::new(inside, heads.clone(), segments, first),
            ring: Ring::new(across, segments, members, job.patience),
            patience: job.patience,
            tag: Tag::new(job.request),
            hops: number(rings),
        })
    }

    fn call(&self, class: Class) -> Call {
        Call::within(self.patience, class, self.tag)
    }
}

impl Attend for Sequence {
    fn begin(&mut self, pass: Pass) {
        let kind = number(pass.branch).saturating_mul(self.hops);
        self.tag = Tag::new(self.tag.request).step(number(pass.step)).kind(kind);
    }

    fn attend(
        &mut self,
        parts: Vec<Projected>,
        scale: f32,
        p: Precision,
    ) -> Result<Vec<Tensor<4>>, PassError> {
        let [b, _, heads, d] = parts[0].q.dims();
        let tokens: Vec<usize> = parts.iter().map(|part| part.q.dims()[1]).collect();
        let device = parts[0].q.device();
        let segments = self.ulysses.heads_of_all(&parts, &self.call(Class::UlyssesQkv), p)?;
        drop(parts);
        let dims = [b, self.ulysses.heads(), d];
        let outputs = self.ring.attend(segments, Round { scale, precision: p, tag: self.tag, dims })?;
        let own = self.ulysses.tokens_of_own(&outputs, [b, d], &self.call(Class::UlyssesOut), p)?;
        self.tag.layer += 1;
        let mut start = 0;
        let part = |tokens: usize| match &own {
            Some(own) if tokens > 0 => {
                start += tokens;
                own.clone().narrow(1, start - tokens, tokens)
            }
            _ => dg_kernels::from_vec(Vec::new(), [b, 0, heads, d], &device),
        };
        Ok(tokens.into_iter().map(part).collect())
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
