//! The trait through which ranks speak.

use crate::reduce::{self, Reduce};
use crate::{Block, BlockShape, Call, CommError, Counters, Deadline, Op, Place, Result, Side};
use dg_core::DType;

/// One rank's end of the connection between `size` ranks.
///
/// Every rank of a collective makes the same call: same operation, class and tag, and lengths that fit together. Ranks
/// are numbered from 0. Lengths are known from the plan on both sides; nothing is negotiated, and what arrives is
/// compared with what was expected.
///
/// **No call blocks beyond its deadline.** Once a rank has [aborted](Self::abort) or was dropped without
/// [finishing](Self::finish), every call on every rank fails at once, those that wait too.
///
/// For implementations: [`send`](Self::send), [`post_recv`](Self::post_recv) and what has no default are the whole
/// task. The collectives are built on [`exchange`](Self::exchange), which a device may override to hand all its
/// messages over as one (NCCL's group call). Whoever overrides a collective counts as the default does. The module
/// [`conformance`](crate::conformance) checks it.
pub trait Communicator: Send + Sync {
    /// This rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Rank in the communicator that holds all ranks, which is what errors and counters name.
    fn world_rank(&self, rank: usize) -> usize {
        rank
    }

    /// Hands `block` over to rank `to`, which may be this rank.
    ///
    /// Does not wait for the receiver: at least [`IN_FLIGHT_MIN`] messages to one peer can be on their way. Where that
    /// is used up, waits for room until the deadline.
    ///
    /// # Errors
    /// [`CommError::Deadline`], [`CommError::PeerGone`] if `to` has finished or some rank died,
    /// [`CommError::Aborted`], [`CommError::Invalid`].
    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()>;

    /// Announces that this rank will take a message of `shape` from rank `from`, and returns at once.
    ///
    /// Of several receives under one tag the first posted gets the first message. A handle that is dropped without
    /// having received gives its place to the next one posted. The call's deadline is not used:
    /// [`Pending::wait`] has its own.
    ///
    /// # Errors
    /// [`CommError::Invalid`] for a rank that does not exist.
    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending>;

    /// Ends the job on all ranks: every call that waits, and every later one, fails with this rank's name and `cause`.
    /// The first abort counts.
    fn abort(&self, cause: &str);

    /// Fails if the job has been aborted or a rank is lost; for long computations between calls.
    ///
    /// # Errors
    /// [`CommError::Aborted`], [`CommError::PeerGone`].
    fn check(&self) -> Result<()>;

    /// This rank is done: it will neither send nor receive. To drop a communicator without this is to die. Can be
    /// called again.
    ///
    /// # Errors
    /// [`CommError::Unread`] if messages for this rank were never received; it has finished all the same.
    fn finish(&self) -> Result<()>;

    /// What this rank has sent and how long it has waited.
    fn counters(&self) -> Counters;

    /// Takes a message of `shape` from rank `from`.
    ///
    /// # Errors
    /// [`CommError::Deadline`], [`CommError::PeerGone`] if `from` has finished or some rank died,
    /// [`CommError::Aborted`], [`CommError::Mismatch`], [`CommError::Invalid`].
    fn recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Block> {
        self.post_recv(from, call, shape)?.wait(call.deadline())
    }

    /// Sends all of `sends` (rank, block) and takes all of `receives` (rank, shape), as if at once. Returns what was
    /// received, in the order of `receives`.
    ///
    /// # Errors
    /// Those of [`send`](Self::send) and [`recv`](Self::recv).
    fn exchange(
        &self,
        call: &Call,
        sends: Vec<(usize, Block)>,
        receives: &[(usize, BlockShape)],
    ) -> Result<Vec<Block>> {
        self.check()?;
        let post = |(from, shape): &(usize, BlockShape)| self.post_recv(*from, call, *shape);
        let pending = receives.iter().map(post).collect::<Result<Vec<_>>>()?;
        for (to, block) in sends {
            self.send(to, call, block)?;
        }
        pending.into_iter().map(|mut pending| pending.wait(call.deadline())).collect()
    }

    /// Rank i gets `blocks[i]` of every rank. `lengths[i]` is how many values rank i has for this rank; they may
    /// differ and may be 0. Returns one block per rank; that of this rank is `blocks[rank]` itself.
    ///
    /// Sends each rank's block to it: Σ over the others of `blocks[i]`.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange).
    fn all_to_all(&self, call: &Call, blocks: Vec<Block>, lengths: &[usize]) -> Result<Vec<Block>> {
        let call = call.with_op(Op::AllToAll);
        one_per_rank(self.size(), &call, "blocks", blocks.len())?;
        one_per_rank(self.size(), &call, "lengths", lengths.len())?;
        let dtype = blocks[0].dtype();
        if let Some(other) = blocks.iter().find(|block| block.dtype() != dtype) {
            return Err(invalid(
                &call,
                format!("blocks of {dtype} and of {}; one format each", other.dtype()),
            ));
        }
        let own = blocks[self.rank()].clone();
        let mut blocks: Vec<Option<Block>> = blocks.into_iter().map(Some).collect();
        let sends = others(self.rank(), self.size()).map(|to| (to, blocks[to].take().expect("each once")));
        collect(self, &call, own, sends.collect(), dtype, lengths)
    }

    /// Every rank gets the `block` of every rank. `lengths[i]` is how many values rank i has; they may differ and may
    /// be 0. Returns one block per rank; that of this rank is `block` itself.
    ///
    /// Sends `block` to each of the others.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange).
    fn all_gather(&self, call: &Call, block: Block, lengths: &[usize]) -> Result<Vec<Block>> {
        let call = call.with_op(Op::AllGather);
        one_per_rank(self.size(), &call, "lengths", lengths.len())?;
        let dtype = block.dtype();
        let sends = others(self.rank(), self.size()).map(|to| (to, block.clone())).collect();
        collect(self, &call, block, sends, dtype, lengths)
    }

    /// Every rank gets the block of rank `root`, which passes `Some` of it; the others pass `None`.
    ///
    /// The root sends `block` to each of the others.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange).
    fn broadcast(&self, call: &Call, root: usize, block: Option<Block>, shape: BlockShape) -> Result<Block> {
        let call = call.with_op(Op::Broadcast);
        if root >= self.size() {
            return Err(invalid(&call, format!("rank {root} of {} cannot be the root", self.size())));
        }
        match block {
            Some(block) if self.rank() == root => {
                expect(&call, self.world_rank(root), shape, block.shape())?;
                let sends = others(root, self.size()).map(|to| (to, block.clone())).collect();
                self.exchange(&call, sends, &[])?;
                Ok(block)
            }
            None if self.rank() != root => {
                let mut received = self.exchange(&call, Vec::new(), &[(root, shape)])?;
                received.pop().ok_or_else(|| invalid(&call, "nothing was received".into()))
            }
            _ => Err(invalid(&call, format!("the root, rank {root}, has the block and nobody else"))),
        }
    }

    /// Combines the blocks of all ranks value by value, in the order of the ranks; every rank gets the same bits. All
    /// blocks have the same length. See [`Reduce`] for what is computed.
    ///
    /// Sends `block` to each of the others: made for flags, maxima and partial sums, not for gradients.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange); [`CommError::Invalid`] for memory that is not on the host.
    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        let call = call.with_op(Op::Reduce);
        let shape = block.shape();
        if block.host().is_none() {
            return Err(invalid(&call, "reduces host memory only".into()));
        }
        let sends = others(self.rank(), self.size()).map(|to| (to, block.clone())).collect();
        let blocks = collect(self, &call, block, sends, shape.dtype, &vec![shape.len; self.size()])?;
        reduce::in_order(how, &blocks).ok_or_else(|| invalid(&call, "reduces host memory only".into()))
    }

    /// Returns when every rank has come here.
    ///
    /// Sends an empty message to each of the others, so that whoever waits can name the rank that is missing.
    ///
    /// # Errors
    /// Those of [`exchange`](Self::exchange).
    fn barrier(&self, call: &Call) -> Result<()> {
        let call = call.with_op(Op::Barrier);
        let nothing = Block::empty(DType::Float32);
        let sends = others(self.rank(), self.size()).map(|to| (to, nothing.clone())).collect::<Vec<_>>();
        let lengths = vec![0; self.size()];
        collect(self, &call, nothing, sends, DType::Float32, &lengths).map(drop)
    }
}

/// What a wrapper does not change. For wrappers with a field `inner`.
macro_rules! forward_to_inner {
    () => {
        fn rank(&self) -> usize {
            self.inner.rank()
        }

        fn size(&self) -> usize {
            self.inner.size()
        }

        fn world_rank(&self, rank: usize) -> usize {
            self.inner.world_rank(rank)
        }

        fn abort(&self, cause: &str) {
            self.inner.abort(cause);
        }

        fn check(&self) -> $crate::Result<()> {
            self.inner.check()
        }

        fn finish(&self) -> $crate::Result<()> {
            self.inner.finish()
        }

        fn counters(&self) -> $crate::Counters {
            self.inner.counters()
        }
    };
}
pub(crate) use forward_to_inner;

/// Messages that every communicator lets be on their way from one rank to another without making the sender wait.
pub const IN_FLIGHT_MIN: usize = 64;

/// A receive that was [posted](Communicator::post_recv).
pub struct Pending(Box<dyn Receiving>);

/// What an implementation puts behind [`Pending`].
pub trait Receiving: Send {
    /// See [`Pending::wait`].
    fn wait(&mut self, deadline: Deadline) -> Result<Block>;

    /// See [`Pending::is_ready`].
    fn is_ready(&self) -> bool;
}

impl Pending {
    /// For implementations.
    pub fn new(receiving: impl Receiving + 'static) -> Self {
        Self(Box::new(receiving))
    }

    /// Waits for the message. After [`CommError::Deadline`] it can be called again; after a message it cannot.
    ///
    /// # Errors
    /// Those of [`Communicator::recv`].
    pub fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        self.0.wait(deadline)
    }

    /// Whether [`wait`](Self::wait) would return at once, with the message or with an error.
    pub fn is_ready(&self) -> bool {
        self.0.is_ready()
    }
}

/// The exchange of a collective in which every rank sends one block to each of the others and keeps `own`.
fn collect<C: Communicator + ?Sized>(
    comm: &C,
    call: &Call,
    own: Block,
    sends: Vec<(usize, Block)>,
    dtype: DType,
    lengths: &[usize],
) -> Result<Vec<Block>> {
    let (rank, size) = (comm.rank(), comm.size());
    let shape = |i: usize| BlockShape { dtype, len: lengths[i] };
    expect(call, comm.world_rank(rank), shape(rank), own.shape())?;
    // The rank that sends to this one first is the one just before it.
    let from: Vec<_> = (1..size).map(|distance| (rank + size - distance) % size).collect();
    let receives: Vec<_> = from.iter().map(|i| (*i, shape(*i))).collect();
    let received = comm.exchange(call, sends, &receives)?;
    let mut blocks = vec![own; size];
    for (i, block) in from.into_iter().zip(received) {
        blocks[i] = block;
    }
    Ok(blocks)
}

/// The other ranks, beginning after `rank`, so that not all ranks send to the same one first.
fn others(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    (1..size).map(move |distance| (rank + distance) % size)
}

fn one_per_rank(size: usize, call: &Call, what: &str, got: usize) -> Result<()> {
    if got == size { Ok(()) } else { Err(invalid(call, format!("{got} {what} for {size} ranks; one each"))) }
}

/// Compares what a message is with what it should be.
pub(crate) fn expect(call: &Call, peer: usize, expected: BlockShape, got: BlockShape) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(CommError::Mismatch { place: Place::new(call, Side::Receiving, Some(peer)), expected, got })
}

pub(crate) fn invalid(call: &Call, what: String) -> CommError {
    CommError::Invalid { place: Place::new(call, Side::Neither, None), what }
}
