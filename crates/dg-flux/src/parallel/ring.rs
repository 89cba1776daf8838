//! Keys and values go round: Ring Attention (arXiv 2310.01889), with what each hop gives merged by the logarithms
//! of its sums.

use super::units::passes;
use super::wire;
use burn::tensor::Tensor;
use dg_comm::{Block, Call, Class, CommError, Communicator, Deadline, Group, Pending, Tag};
use dg_kernels::{self as kernels, Precision};
use dg_plan::SegmentTable;
use std::time::Duration;

/// One place of a ring.
pub(super) struct Ring {
    comm: Group,
    /// Tokens of each place's block, in a pass of the whole sequence and of each patch.
    tokens: Vec<Vec<usize>>,
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
    /// 0 for the whole sequence, 1 + p for patch p.
    pub(super) pass: usize,
}

/// Keys and values `[b, s, h, d]` of some tokens.
pub(super) type Keys = (Tensor<4>, Tensor<4>);

/// What one place brings into a round.
pub(super) struct Share {
    /// Queries of this place, a tensor for each segment.
    pub(super) queries: Vec<Tensor<4>>,
    /// Keys and values that it sends round.
    pub(super) own: Vec<Keys>,
    /// Those that it attends to before the first hop: its own, and what it has kept.
    pub(super) first: Vec<Keys>,
}

/// Output `[b, s, h, d]` and logarithm of the sum `[b, h, s]` of some queries over some keys.
type Partial = (Tensor<4>, Tensor<3>);

impl Ring {
    /// Blocks of the ring are what `ulysses` consecutive owners have.
    pub(super) fn new(comm: Group, table: &SegmentTable, ulysses: usize, patience: Duration) -> Self {
        let of = |pass: &Vec<usize>| {
            let mut tokens = vec![0; comm.size()];
            pass.iter().map(|i| &table.segments()[*i]).for_each(|s| tokens[s.owner / ulysses] += s.len());
            tokens
        };
        Self { tokens: passes(table).iter().map(of).collect(), comm, patience }
    }

    /// The attention output of each of this place's queries over the keys of all places. `arrived` is shown the
    /// keys and values of each other place.
    ///
    /// A block is sent on and the next receive posted before it is computed with, so this holds the block in hand
    /// and the one that is coming. Partial results are merged in the order in which blocks come: the own one, that
    /// of the previous place, and so on. So a place always rounds in the same way, but not two places alike.
    pub(super) fn attend(
        &self,
        share: Share,
        round: Round,
        arrived: &mut dyn FnMut(usize, &Keys),
    ) -> Result<Vec<Tensor<4>>, CommError> {
        let (Round { scale, precision, .. }, Share { queries, own, first }) = (round, share);
        if self.comm.size() == 1 {
            let (k, v) = first.into_iter().unzip();
            return Ok(match queries.is_empty() {
                true => Vec::new(),
                false => kernels::attention_outputs(queries, k, v, scale, precision),
            });
        }
        let mut message = self.own(own, round)?;
        let mut first = Some(first);
        let mut merged: Option<Vec<Partial>> = None;
        for hop in 0..self.comm.size() {
            let incoming = self.pass_on(&message, hop, round)?;
            let here = match first.take() {
                Some(first) => first,
                None => {
                    let keys = self.keys(message.as_ref(), hop, round)?;
                    keys.iter().for_each(|keys| arrived(self.origin(hop), keys));
                    keys.into_iter().collect()
                }
            };
            // the message lives on as the keys, and where it was sent to
            message = None;
            if !queries.is_empty() && !here.is_empty() {
                let (k, v) = here.into_iter().unzip();
                // rounded once, at the end
                let partial = kernels::attention_partials(queries.clone(), k, v, scale, precision);
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
        [b, 2 * self.tokens[round.pass][self.origin(hop)], heads, d]
    }

    fn call(&self, hop: usize, round: Round) -> Call {
        let kind = round.tag.kind.saturating_add(u32::try_from(hop).unwrap_or(u32::MAX));
        Call::within(self.patience, Class::RingKv, round.tag.kind(kind))
    }

    /// The own block as a message; nothing if it has no token.
    fn own(&self, keys: Vec<Keys>, round: Round) -> Result<Option<Block>, CommError> {
        let (k, v): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
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
    fn keys(&self, message: Option<&Block>, hop: usize, round: Round) -> Result<Option<Keys>, CommError> {
        let Some(block) = message else { return Ok(None) };
        let dims = self.dims(hop, round);
        let all = wire::unpack(block, dims, &self.call(hop, round))?;
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
