//! The rows of one rank, and all rows on one rank.

use super::wire;
use crate::rope::Rope;
use burn::tensor::Tensor;
use dg_comm::{Call, CommError, Communicator};
use dg_kernels::Precision;
use dg_plan::{Kind, SegmentTable};
use std::ops::Range;

/// The tokens that one rank owns, in canonical order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    text: Vec<Range<usize>>,
    image: Vec<Range<usize>>,
    /// T, text tokens of all ranks.
    text_tokens: usize,
}

impl Share {
    /// What `owner` has.
    pub fn new(table: &SegmentTable, owner: usize) -> Self {
        let of = |kind: Kind| table.of(owner).filter(|s| s.kind == kind).map(|s| s.tokens.clone()).collect();
        Self { text: of(Kind::Text), image: of(Kind::Image), text_tokens: table.text_tokens() }
    }

    /// Its rows of the text embeddings: `[b, T, c]` → `[b, t, c]`.
    pub fn text(&self, all: &Tensor<3>) -> Tensor<3> {
        rows(all, 1, &self.text)
    }

    /// Its rows of packed latents: `[b, N, c]` → `[b, n, c]`.
    pub fn image(&self, all: &Tensor<3>) -> Tensor<3> {
        rows(all, 1, &self.image)
    }

    /// Its image tokens, ascending.
    pub fn image_tokens(&self) -> &[Range<usize>] {
        &self.image
    }

    /// The positions of its text tokens, then of its image tokens, out of those of the joint sequence.
    pub fn rope(&self, all: &Rope) -> Rope {
        let image = self.image.iter().map(|r| r.start + self.text_tokens..r.end + self.text_tokens);
        let ranges: Vec<_> = self.text.iter().cloned().chain(image).collect();
        Rope { cos: rows(&all.cos, 0, &ranges), sin: rows(&all.sin, 0, &ranges) }
    }
}

/// Brings the image tokens of all ranks together on the first: `own` `[b, n, c]` of each → `Some` of `[b, N, c]`
/// on rank 0 of `comm`, `None` on the others. `comm` joins the owners of `table` in their order; the call's class is
/// [`dg_comm::Class::Gather`].
///
/// # Errors
/// Those of [`Communicator::exchange`].
pub fn gather(
    comm: &dyn Communicator,
    table: &SegmentTable,
    own: Tensor<3>,
    call: &Call,
    p: Precision,
) -> Result<Option<Tensor<3>>, CommError> {
    let ([b, n, c], me) = (own.dims(), comm.rank());
    if me != 0 {
        if n > 0 {
            comm.send(0, call, wire::pack(own, p, call)?)?;
        }
        return Ok(None);
    }
    let dims = |owner: usize| [b, table.image_of(owner), c];
    let from = (1..table.owners()).filter(|owner| table.image_of(*owner) > 0);
    let receives: Vec<_> = from.map(|owner| (owner, wire::shape(dims(owner), p))).collect();
    let mut all: Vec<Option<Tensor<3>>> = vec![None; table.owners()];
    let received = comm.exchange(call, Vec::new(), &receives)?;
    for ((owner, _), block) in receives.iter().zip(received) {
        all[*owner] = Some(wire::unpack(&block, dims(*owner), call)?);
    }
    all[0] = Some(own);
    let mut next = vec![0; table.owners()];
    let segments = table.segments().iter().filter(|s| s.kind == Kind::Image).map(|s| {
        let start = next[s.owner];
        next[s.owner] += s.len();
        let of = all[s.owner].clone().expect("whoever owns a segment has sent");
        of.narrow(1, start, s.len())
    });
    Ok(Some(Tensor::cat(segments.collect(), 1)))
}

/// The rows `ranges` of dimension `dim`, one after the other.
fn rows<const D: usize>(all: &Tensor<D>, dim: usize, ranges: &[Range<usize>]) -> Tensor<D> {
    if ranges.is_empty() {
        let mut dims = all.dims();
        dims[dim] = 0;
        return dg_kernels::from_vec(Vec::new(), dims, &all.device());
    }
    Tensor::cat(ranges.iter().map(|r| all.clone().narrow(dim, r.start, r.len())).collect(), dim)
}
