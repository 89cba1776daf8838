//! Tokens for heads and back: DeepSpeed-Ulysses (arXiv 2309.14509), with q, k and v in one exchange.
//!
//! Shapes: b images, s tokens of a member, h heads of a member while it attends, H heads in all, d channels of a
//! head.

use super::units::passes;
use super::wire;
use crate::attend::Projected;
use burn::tensor::Tensor;
use dg_comm::{Block, BlockShape, Call, CommError, Communicator, Group, Op};
use dg_kernels::Precision;
use dg_plan::{HeadSplit, SegmentTable};

/// One member of a Ulysses group.
pub(super) struct Ulysses {
    comm: Group,
    heads: HeadSplit,
    /// The tokens of the whole sequence, then those of each patch.
    passes: Vec<Tokens>,
}

/// The tokens of the group that go through the blocks together.
struct Tokens {
    /// The segments of the whole group in canonical order.
    runs: Vec<Run>,
    /// Tokens of each member.
    of: Vec<usize>,
}

/// A segment: consecutive tokens of one member.
struct Run {
    /// Place of the segment in the table.
    segment: usize,
    member: usize,
    /// First token, counted among those of the member.
    start: usize,
    len: usize,
}

impl Ulysses {
    /// The group of the owners from `first` on, as many as `heads` has members.
    pub(super) fn new(comm: Group, heads: HeadSplit, table: &SegmentTable, first: usize) -> Self {
        let members = first..first + heads.ranges().len();
        let of = |pass: &Vec<usize>| {
            let mut tokens = Tokens { runs: Vec::new(), of: vec![0; members.len()] };
            for &segment in pass {
                let s = &table.segments()[segment];
                if members.contains(&s.owner) {
                    let member = s.owner - first;
                    tokens.runs.push(Run { segment, member, start: tokens.of[member], len: s.len() });
                    tokens.of[member] += s.len();
                }
            }
            tokens
        };
        Self { comm, heads, passes: passes(table).iter().map(of).collect() }
    }

    /// Places in the table of the segments that the group has in `pass`, in canonical order.
    pub(super) fn segments(&self, pass: usize) -> impl Iterator<Item = usize> {
        self.passes[pass].runs.iter().map(|run| run.segment)
    }

    /// Heads of this member while it attends.
    pub(super) fn heads(&self) -> usize {
        self.heads.of(self.comm.rank()).len()
    }

    /// In pass `pass`, from this member's tokens with all heads to all tokens of the group with this member's heads: one entry per
    /// segment, in canonical order, none empty.
    pub(super) fn heads_of_all(
        &self,
        parts: &[Projected],
        pass: usize,
        call: &Call,
        p: Precision,
    ) -> Result<Vec<Projected>, CommError> {
        let Tokens { runs, of: tokens } = &self.passes[pass];
        let (me, [b, _, _, d]) = (self.comm.rank(), parts[0].q.dims());
        let heads = self.heads();
        let mut sends = Vec::new();
        for to in self.others().filter(|_| tokens[me] > 0) {
            sends.push((to, wire::pack(self.outgoing(parts, to), p, call)?));
        }
        let dims = |from: usize| [b, 3 * tokens[from], heads, d];
        let from = self.others().filter(|from| tokens[*from] > 0);
        let receives: Vec<_> = from.map(|from| (from, wire::shape(dims(from), p))).collect();
        let mut theirs: Vec<Option<Tensor<4>>> = vec![None; tokens.len()];
        for (from, block) in self.exchange(call, sends, &receives)? {
            theirs[from] = Some(wire::unpack(&block, dims(from), call)?);
        }
        let segment = |run: &Run| match &theirs[run.member] {
            // q, k and v of a member stand one after the other
            Some(all) => {
                let third = |i: usize| all.clone().narrow(1, i * tokens[run.member] + run.start, run.len);
                Projected { q: third(0), k: third(1), v: third(2) }
            }
            None => self.own(parts, run),
        };
        Ok(runs.iter().map(segment).collect())
    }

    /// From the attention output of all segments `[b, len, h, d]` back to this member's tokens with all heads,
    /// `[b, s, H, d]`; nothing if it has no token.
    pub(super) fn tokens_of_own(
        &self,
        outputs: &[Tensor<4>],
        pass: usize,
        [b, d]: [usize; 2],
        call: &Call,
        p: Precision,
    ) -> Result<Option<Tensor<4>>, CommError> {
        let Tokens { runs, of: tokens } = &self.passes[pass];
        let me = self.comm.rank();
        let of = |member: usize| -> Vec<Tensor<4>> {
            let of = runs.iter().zip(outputs).filter(|(run, _)| run.member == member);
            of.map(|(_, output)| output.clone()).collect()
        };
        let mut sends = Vec::new();
        for to in self.others().filter(|to| tokens[*to] > 0) {
            sends.push((to, wire::pack(Tensor::cat(of(to), 1), p, call)?));
        }
        let own = tokens[me];
        let dims = |from: usize| [b, own, self.heads.of(from).len(), d];
        let from = self.others().filter(|_| own > 0);
        let receives: Vec<_> = from.map(|from| (from, wire::shape(dims(from), p))).collect();
        let received = self.exchange(call, sends, &receives)?;
        if own == 0 {
            return Ok(None);
        }
        let mut by_member = vec![Tensor::cat(of(me), 1)];
        for (from, block) in received {
            // `others` begins after this member, and heads stand in the order of the members
            let at = if from > me { by_member.len() } else { from };
            by_member.insert(at, wire::unpack(&block, dims(from), call)?);
        }
        Ok(Some(Tensor::cat(by_member, 2)))
    }

    /// The other members, beginning after this one, so that not all send to the same one first.
    fn others(&self) -> impl Iterator<Item = usize> {
        let (me, size) = (self.comm.rank(), self.comm.size());
        (1..size).map(move |distance| (me + distance) % size)
    }

    /// An uneven all-to-all that leaves out empty messages: both ends know all lengths.
    fn exchange(
        &self,
        call: &Call,
        sends: Vec<(usize, Block)>,
        receives: &[(usize, BlockShape)],
    ) -> Result<impl Iterator<Item = (usize, Block)>, CommError> {
        let received = self.comm.exchange(&call.with_op(Op::AllToAll), sends, receives)?;
        let from: Vec<_> = receives.iter().map(|(from, _)| *from).collect();
        Ok(from.into_iter().zip(received))
    }

    /// q, k and v of this member's tokens for the heads of `to`, `[b, 3·s, h, d]`.
    fn outgoing(&self, parts: &[Projected], to: usize) -> Tensor<4> {
        let heads = self.heads.of(to);
        let of = |t: &Tensor<4>| t.clone().narrow(2, heads.start, heads.len());
        let some = || parts.iter().filter(|part| part.q.dims()[1] > 0);
        let q = some().map(|part| of(&part.q));
        let k = some().map(|part| of(&part.k));
        let v = some().map(|part| of(&part.v));
        Tensor::cat(q.chain(k).chain(v).collect(), 1)
    }

    /// A segment of this member for its own heads. Parts and segments both divide text from image, so that no
    /// segment lies in two parts.
    fn own(&self, parts: &[Projected], run: &Run) -> Projected {
        let heads = self.heads.of(self.comm.rank());
        let mut start = run.start;
        let mut parts = parts.iter();
        let part = loop {
            let part = parts.next().expect("parts hold the tokens of the table");
            match part.q.dims()[1] {
                tokens if start < tokens => break part,
                tokens => start -= tokens,
            }
        };
        let of = |t: &Tensor<4>| t.clone().narrow(1, start, run.len).narrow(2, heads.start, heads.len());
        Projected { q: of(&part.q), k: of(&part.k), v: of(&part.v) }
    }
}
