//! Some of the ranks as a communicator of their own.

use crate::communicator::invalid;
use crate::{Block, BlockShape, Call, CommError, Communicator, Counters, Op, Pending, Place, Result};
use std::sync::Arc;

/// A view of a communicator that holds some of its ranks, in any order: rank i of the group is `ranks[i]` of the parent.
///
/// Making one needs no messages. Groups do not disturb each other, even with the same ranks, classes and tags, as long
/// as their names differ; all members must give the same name and ranks. Counters, aborts and deaths are those of the
/// parent.
#[derive(Clone)]
pub struct Group {
    parent: Arc<dyn Communicator>,
    ranks: Vec<usize>,
    rank: usize,
    id: u64,
}

impl Group {
    /// The group called `name` of these ranks of `parent`.
    ///
    /// # Errors
    /// [`CommError::Invalid`] if a rank is named twice or does not exist, or if this rank is not one of them.
    pub fn new(parent: Arc<dyn Communicator>, name: &str, ranks: Vec<usize>) -> Result<Self> {
        let refuse = |what| {
            let place = Place::alone(Op::Check);
            CommError::Invalid { place, what: format!("group {name} {ranks:?}: {what}") }
        };
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != ranks.len() {
            return Err(refuse("a rank is named twice".to_owned()));
        }
        if let Some(rank) = sorted.last().filter(|rank| **rank >= parent.size()) {
            return Err(refuse(format!("there is no rank {rank}, only 0 to {}", parent.size() - 1)));
        }
        let Some(rank) = ranks.iter().position(|rank| *rank == parent.rank()) else {
            return Err(refuse(format!("rank {} makes it and is not one of them", parent.rank())));
        };
        let id = id(name, &ranks);
        Ok(Self { parent, ranks, rank, id })
    }

    /// Its ranks, as the parent numbers them.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    fn parent_rank(&self, rank: usize, call: &Call) -> Result<usize> {
        self.ranks.get(rank).copied().ok_or_else(|| {
            invalid(call, format!("there is no rank {rank} in a group of {}", self.ranks.len()))
        })
    }
}

impl Communicator for Group {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.ranks.len()
    }

    fn world_rank(&self, rank: usize) -> usize {
        self.parent.world_rank(self.ranks[rank])
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        self.parent.send(self.parent_rank(to, call)?, &call.in_group(self.id), block)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        self.parent.post_recv(self.parent_rank(from, call)?, &call.in_group(self.id), shape)
    }

    fn exchange(
        &self,
        call: &Call,
        sends: Vec<(usize, Block)>,
        receives: &[(usize, BlockShape)],
    ) -> Result<Vec<Block>> {
        let send = |(to, block)| Ok((self.parent_rank(to, call)?, block));
        let receive = |(from, shape): &(usize, BlockShape)| Ok((self.parent_rank(*from, call)?, *shape));
        let sends = sends.into_iter().map(send).collect::<Result<Vec<_>>>()?;
        let receives = receives.iter().map(receive).collect::<Result<Vec<_>>>()?;
        self.parent.exchange(&call.in_group(self.id), sends, &receives)
    }

    fn abort(&self, cause: &str) {
        self.parent.abort(cause);
    }

    fn check(&self) -> Result<()> {
        self.parent.check()
    }

    /// Nothing: the parent finishes.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.parent.counters()
    }
}

/// The same number on every rank, and never 0, which is the communicator of all ranks (FNV-1a over name and ranks).
fn id(name: &str, ranks: &[usize]) -> u64 {
    let numbers = ranks.iter().flat_map(|rank| (*rank as u64).to_le_bytes());
    let bytes = name.bytes().chain([0xff]).chain(numbers);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        | 1
}
