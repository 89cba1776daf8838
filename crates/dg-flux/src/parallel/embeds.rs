//! Encoded prompts, from the rank that encodes to those that need them.

use super::{RankJob, Share, wire};
use crate::text::Embedding;
use burn::tensor::{Device, Tensor};
use dg_comm::{Call, Class, CommError, Communicator, Tag};
use dg_core::shape::TransformerShape;
use dg_kernels::Precision;

/// The encoded prompts of a batch.
#[derive(Clone)]
pub struct Encoded {
    /// Of the prompts.
    pub positive: Embedding,
    /// Of the negative prompts; there if true CFG is on.
    pub negative: Option<Embedding>,
}

/// Sizes that all messages have in common.
pub(super) struct Sizes<'a> {
    /// Pictures of the batch.
    pub(super) images: usize,
    pub(super) shape: &'a TransformerShape,
    pub(super) precision: Precision,
    pub(super) device: &'a Device,
}

/// What this rank needs of the prompts: for each branch that it computes, in order, pooled vectors and its own rows of
/// the text; those on the first stage only. The rank that encodes brings `encoded`.
///
/// # Errors
/// Those of sending and receiving.
///
/// # Panics
/// If the rank that encodes brings nothing.
pub(super) fn share(
    encoded: Option<&Encoded>,
    job: &RankJob,
    sizes: &Sizes<'_>,
) -> Result<Vec<Embedding>, CommError> {
    let (plan, me) = (&job.plan, job.rank());
    let encoder = plan.encoder_rank(me);
    let call = Call::within(job.patience, Class::Embeds, Tag::new(job.request));
    if me != encoder {
        let len = wire::shape([job.plan.branches() * values(job, me, sizes)], sizes.precision);
        let block = job.comm.recv(encoder as usize, &call, len)?;
        let all = wire::unpack(&block, [len.len], &call)?;
        return Ok(parts(&all, job, me, sizes));
    }
    let encoded = encoded.expect("the rank that encodes has encoded");
    for to in (0..plan.ranks()).filter(|to| *to != me) {
        let all = Tensor::cat(of(encoded, job, to).into_iter().flat_map(flat).collect(), 0);
        job.comm.send(to as usize, &call, wire::pack(all, sizes.precision, &call)?)?;
    }
    Ok(of(encoded, job, me))
}

/// Rows of the text that `rank` takes.
fn rows(job: &RankJob, rank: u32) -> usize {
    let at = job.plan.layout.coords(rank);
    if at.pp == 0 { job.plan.segments.text_of(at.sequence(&job.plan.layout)) } else { 0 }
}

/// Values of one branch for `rank`.
fn values(job: &RankJob, rank: u32, sizes: &Sizes<'_>) -> usize {
    sizes.images * (sizes.shape.pooled_width + rows(job, rank) * sizes.shape.text_width)
}

/// What `rank` needs, on the rank that encodes.
fn of(encoded: &Encoded, job: &RankJob, rank: u32) -> Vec<Embedding> {
    let (plan, at) = (&job.plan, job.plan.layout.coords(rank));
    let (positive, negative) = (Some(&encoded.positive), encoded.negative.as_ref());
    let branches = match (plan.layout.cfg, at.cfg) {
        (2, 0) => [negative, None],
        (2, _) => [positive, None],
        _ => [positive, negative],
    };
    let share = Share::new(&plan.segments, at.sequence(&plan.layout));
    let rows = |e: &Embedding| match at.pp {
        0 => share.text(&e.text),
        _ => nothing(&e.text),
    };
    let own = |e: &Embedding| Embedding { text: rows(e), pooled: e.pooled.clone() };
    branches.into_iter().flatten().map(own).collect()
}

fn flat(e: Embedding) -> Vec<Tensor<1>> {
    let text = (e.text.dims()[1] > 0).then(|| e.text.flatten(0, 2));
    std::iter::once(e.pooled.flatten(0, 1)).chain(text).collect()
}

/// The inverse of [`flat`] for all branches of `rank`.
fn parts(all: &Tensor<1>, job: &RankJob, rank: u32, sizes: &Sizes<'_>) -> Vec<Embedding> {
    let (b, rows, s) = (sizes.images, rows(job, rank), sizes.shape);
    let values = values(job, rank, sizes);
    let one = |branch: usize| {
        let (start, pooled) = (branch * values, b * s.pooled_width);
        let text = match rows {
            0 => dg_kernels::from_vec(Vec::new(), [b, 0, s.text_width], sizes.device),
            _ => all.clone().narrow(0, start + pooled, values - pooled).reshape([b, rows, s.text_width]),
        };
        Embedding { text, pooled: all.clone().narrow(0, start, pooled).reshape([b, s.pooled_width]) }
    };
    (0..job.plan.branches()).map(one).collect()
}

fn nothing(text: &Tensor<3>) -> Tensor<3> {
    let [b, _, width] = text.dims();
    dg_kernels::from_vec(Vec::new(), [b, 0, width], &text.device())
}
