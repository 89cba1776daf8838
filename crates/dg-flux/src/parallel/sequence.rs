//! Attention on one of the ranks that share a sequence.

use super::kept::{Kept, Place as Kind};
use super::ring::{Keys, Ring, Round, Share};
use super::ulysses::Ulysses;
use super::units::passes;
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
    pass: Pass,
    /// In PipeFusion.
    kept: Option<KeptKeys>,
}

/// What PipeFusion attends to beside the pass in hand.
struct KeptKeys {
    all: Kept,
    /// The segments of the whole sequence and of each patch.
    passes: Vec<Vec<usize>>,
    /// For each of them and each place of the ring, that place's.
    of_place: Vec<Vec<Vec<usize>>>,
    /// Tokens of each segment.
    len: Vec<usize>,
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
            pass: Pass::default(),
            kept: None,
        })
    }

    /// For PipeFusion: keys and values of every pass are kept, and those of one patch attend to all that are there.
    /// So the picture depends on the patches, and not on who has which tokens, heads or blocks.
    #[must_use]
    pub fn keeping(mut self, segments: &SegmentTable, heads: &HeadSplit) -> Self {
        let members = heads.ranges().len();
        let (all, passes) = (segments.segments(), passes(segments));
        let place = |pass: &Vec<usize>, place: usize| {
            pass.iter().copied().filter(|i| all[*i].owner / members == place).collect()
        };
        let places = |pass| (0..segments.owners() / members).map(|p| place(pass, p)).collect();
        self.kept = Some(KeptKeys {
            all: Kept::default(),
            of_place: passes.iter().map(places).collect(),
            passes,
            len: all.iter().map(dg_plan::Segment::len).collect(),
        });
        self
    }

    /// 0 for the whole sequence, 1 + p for patch p.
    fn pass_number(&self) -> usize {
        self.pass.patch.map_or(0, |patch| patch + 1)
    }

    /// Attention of the group's tokens for this member's heads, over the keys of all.
    fn attend_heads(&mut self, segments: Vec<Projected>, round: Round) -> Result<Vec<Tensor<4>>, CommError> {
        let (queries, own): (Vec<_>, Vec<_>) = segments.into_iter().map(|s| (s.q, (s.k, s.v))).unzip();
        let Some(kept) = &mut self.kept else {
            return self.ring.attend(Share { queries, first: own.clone(), own }, round, &mut |_, _| ());
        };
        let kind = Kind::new(self.pass, self.tag.layer);
        let ours: Vec<usize> = self.ulysses.segments(round.pass).collect();
        ours.iter().zip(&own).for_each(|(segment, keys)| kept.all.put(kind, *segment, keys));
        let KeptKeys { all, passes, of_place, len } = kept;
        let coming = |segment: &usize| passes[round.pass].contains(segment) && !ours.contains(segment);
        let first = all.get(kind, |segment| !coming(&segment));
        self.ring.attend(Share { queries, own, first }, round, &mut |place, keys: &Keys| {
            let mut start = 0;
            for segment in &of_place[round.pass][place] {
                let part = |t: &Tensor<4>| t.clone().narrow(1, start, len[*segment]);
                all.put(kind, *segment, &(part(&keys.0), part(&keys.1)));
                start += len[*segment];
            }
        })
    }

    fn call(&self, class: Class) -> Call {
        Call::within(self.patience, class, self.tag)
    }
}

impl Attend for Sequence {
    fn begin(&mut self, pass: Pass) {
        let branch = number(pass.image).saturating_mul(2).saturating_add(number(pass.branch));
        let tag = Tag::new(self.tag.request).step(number(pass.step)).kind(branch.saturating_mul(self.hops));
        self.tag = tag.patch(number(pass.patch.unwrap_or(0)));
        self.pass = pass;
    }

    fn attend(
        &mut self,
        parts: Vec<Projected>,
        scale: f32,
        p: Precision,
    ) -> Result<Vec<Tensor<4>>, PassError> {
        // ranks exchange and merge them in f32
        let wide = |part: Projected| Projected {
            q: dg_kernels::wide(part.q),
            k: dg_kernels::wide(part.k),
            v: dg_kernels::wide(part.v),
        };
        let parts: Vec<_> = parts.into_iter().map(wide).collect();
        let [b, _, heads, d] = parts[0].q.dims();
        let tokens: Vec<usize> = parts.iter().map(|part| part.q.dims()[1]).collect();
        let (device, pass) = (parts[0].q.device(), self.pass_number());
        let segments = self.ulysses.heads_of_all(&parts, pass, &self.call(Class::UlyssesQkv), p)?;
        drop(parts);
        let dims = [b, self.ulysses.heads(), d];
        let outputs =
            self.attend_heads(segments, Round { scale, precision: p, tag: self.tag, dims, pass })?;
        let own = self.ulysses.tokens_of_own(&outputs, pass, [b, d], &self.call(Class::UlyssesOut), p)?;
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
