//! Keys and values go round: Ring Attention (arXiv 2310.01889), with what each hop gives merged by the logarithms
//! of its sums.

use super::wire;
use crate::attend::Projected;
use burn::tensor::Tensor;
use dg_comm::{Block, Call, Class, CommError, Communicator, Deadline, Group, Pending, Tag};
use dg_kernels::{self as kernels, Precision};
use dg_plan::SegmentTable;
use std::time::Duration;

/// One place of a ring.
pub(super) struct Ring {
    comm: Group,
    /// Tokens of each place's block.
    tokens: Vec<usize>,
    patience: Duration,
}

/// What a ring attends with, beside its queries.
#[derive(Clone, Copy)]
pub(super) struct Round {
    pub(super) scale: f32,
    pub(super) precision: Precision,
    /// Under which its messages go; hop h adds h to the kind.
    pub(super) tag: Tag,
    /// Images, heads of this place, channels of a head.
    pub(super) dims: [usize; 3],
}

/// Output `[b, s, h, d]` and logarithm of the sum `[b, h, s]` of some queries over some keys.
type Partial = (Tensor<4>, Tensor<3>);

impl Ring {
    /// Blocks of the ring are what `ulysses` consecutive owners have.
    pub(super) fn new(comm: Group, table: &SegmentTable, ulysses: usize, patience: Duration) -> Self {
        let tokens =
            |place: usize| (place * ulysses..(place + 1) * ulysses).map(|o| table.tokens_of(o)).sum();
        Self { tokens: (0..comm.size()).map(tokens).collect(), comm, patience }
    }

    /// The attention output of each of this place's `segments` over the keys of all places.
    ///
    /// A block is sent on and the next receive posted before it is computed with, so this holds the block in hand
    /// and the one that is coming. Partial results are merged in the order in which blocks come: the own one, that
    /// of the previous place, and so on. So a place always rounds in the same way, but not two places alike.
    pub(super) fn attend(&self, segments: Vec<Projected>, round: Round) -> Result<Vec<Tensor<4>>, CommError> {
        let Round { scale, precision, .. } = round;
        let (q, (k, v)): (Vec<_>, (Vec<_>, Vec<_>)) = segments.into_iter().map(|s| (s.q, (s.k, s.v))).unzip();
        if self.comm.size() == 1 {
            return Ok(match q.is_empty() {
                true => Vec::new(),
                false => outputs(kernels::attention_segments(q, k, v, scale, precision)),
            });
        }
        let mut message = self.own(k, v, round)?;
        let mut merged: Option<Vec<Partial>> = None;
        for hop in 0..self.comm.size() {
            let incoming = self.pass_on(&message, hop, round)?;
            if let Some((k, v)) = self.keys(message.take(), hop, round)?.filter(|_| !q.is_empty()) {
                // rounded once, at the end
                let partial = kernels::attention_segments(q.clone(), vec![k], vec![v], scale, Precision::F32);
                merged = Some(merge(merged, partial));
            }
            if let Some(mut incoming) = incoming {
                message = Some(incoming.wait(Deadline::after(self.patience))?);
            }
        }
        let rounded = |t: Tensor<4>| kernels::round(t, precision);
        Ok(outputs(merged.unwrap_or_default()).into_iter().map(rounded).collect())
    }

    /// Whose block is here in hop `hop`.
    fn origin(&self, hop: usize) -> usize {
        let size = self.comm.size();
        (self.comm.rank() + size - hop % size) % size
    }

    /// K, then V, of the block of hop `hop`: `[b, 2·s, h, d]`.
    fn dims(&self, hop: usize, round: Round) -> [usize; 4] {
        let [b, heads, d] = round.dims;
        [b, 2 * self.tokens[self.origin(hop)], heads, d]
    }

    fn call(&self, hop: usize, round: Round) -> Call {
        let kind = round.tag.kind.saturating_add(u32::try_from(hop).unwrap_or(u32::MAX));
        Call::within(self.patience, Class::RingKv, round.tag.kind(kind))
    }

    /// The own block as a message; nothing if it has no token.
    fn own(&self, k: Vec<Tensor<4>>, v: Vec<Tensor<4>>, round: Round) -> Result<Option<Block>, CommError> {
        let all: Vec<_> = k.into_iter().chain(v).collect();
        match all.is_empty() {
            true => Ok(None),
            false => wire::pack(Tensor::cat(all, 1), round.precision, &self.call(0, round)).map(Some),
        }
    }

    /// Posts the receive of the next block and sends this one on. The last block has been everywhere; empty ones
    /// do not travel.
    fn pass_on(
        &self,
        message: &Option<Block>,
        hop: usize,
        round: Round,
    ) -> Result<Option<Pending>, CommError> {
        let (me, size) = (self.comm.rank(), self.comm.size());
        if hop + 1 == size {
            return Ok(None);
        }
        let call = self.call(hop, round);
        let shape = wire::shape(self.dims(hop + 1, round), round.precision);
        let incoming = match shape.len {
            0 => None,
            _ => Some(self.comm.post_recv((me + size - 1) % size, &call, shape)?),
        };
        if let Some(message) = message {
            self.comm.send((me + 1) % size, &call, message.clone())?;
        }
        Ok(incoming)
    }

    /// K and V `[b, s, h, d]` in a block, if it has any.
    fn keys(
        &self,
        message: Option<Block>,
        hop: usize,
        round: Round,
    ) -> Result<Option<(Tensor<4>, Tensor<4>)>, CommError> {
        let Some(block) = message else { return Ok(None) };
        let dims = self.dims(hop, round);
        let all = wire::unpack(&block, dims, &self.call(hop, round))?;
        let s = dims[1] / 2;
        Ok(Some((all.clone().narrow(1, 0, s), all.narrow(1, s, s))))
    }
}

fn merge(merged: Option<Vec<Partial>>, partial: Vec<Partial>) -> Vec<Partial> {
    match merged {
        None => partial,
        Some(merged) => merged.into_iter().zip(partial).map(|(a, b)| kernels::merge_partials(a, b)).collect(),
    }
}

fn outputs(all: Vec<Partial>) -> Vec<Tensor<4>> {
    all.into_iter().map(|(output, _)| output).collect()
}
