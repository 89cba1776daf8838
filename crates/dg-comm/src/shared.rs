//! A shared communicator is a communicator, so that wrappers and groups can hold one of any kind.

use crate::{Block, BlockShape, Call, Communicator, Counters, Pending, Reduce, Result};
use std::sync::Arc;

impl<T: Communicator + ?Sized> Communicator for Arc<T> {
    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn size(&self) -> usize {
        (**self).size()
    }

    fn world_rank(&self, rank: usize) -> usize {
        (**self).world_rank(rank)
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        (**self).send(to, call, block)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        (**self).post_recv(from, call, shape)
    }

    fn abort(&self, cause: &str) {
        (**self).abort(cause);
    }

    fn check(&self) -> Result<()> {
        (**self).check()
    }

    fn finish(&self) -> Result<()> {
        (**self).finish()
    }

    fn counters(&self) -> Counters {
        (**self).counters()
    }

    fn recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Block> {
        (**self).recv(from, call, shape)
    }

    fn exchange(
        &self,
        call: &Call,
        sends: Vec<(usize, Block)>,
        receives: &[(usize, BlockShape)],
    ) -> Result<Vec<Block>> {
        (**self).exchange(call, sends, receives)
    }

    fn all_to_all(&self, call: &Call, blocks: Vec<Block>, lengths: &[usize]) -> Result<Vec<Block>> {
        (**self).all_to_all(call, blocks, lengths)
    }

    fn all_gather(&self, call: &Call, block: Block, lengths: &[usize]) -> Result<Vec<Block>> {
        (**self).all_gather(call, block, lengths)
    }

    fn broadcast(&self, call: &Call, root: usize, block: Option<Block>, shape: BlockShape) -> Result<Block> {
        (**self).broadcast(call, root, block, shape)
    }

    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        (**self).reduce(call, how, block)
    }

    fn barrier(&self, call: &Call) -> Result<()> {
        (**self).barrier(call)
    }
}
