//! The suite for communicators that carry device memory.

use crate::communicator::forward_to_inner;
use crate::staged::{download, upload};
use crate::{Block, BlockShape, Call, Communicator, Deadline, Device, Pending, Receiving, Reduce, Result};
use std::sync::Arc;

/// Takes and gives host memory, and hands device memory to the communicator inside: the reverse of
/// [`crate::HostStaged`].
pub struct OnDevice<C> {
    inner: C,
    device: Arc<dyn Device>,
}

impl<C: Communicator> OnDevice<C> {
    /// Wraps `inner`, whose blocks lie on `device`.
    pub const fn new(inner: C, device: Arc<dyn Device>) -> Self {
        Self { inner, device }
    }
}

impl<C: Communicator> Communicator for OnDevice<C> {
    forward_to_inner!();

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        self.inner.send(to, call, upload(&*self.device, call, block)?)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        let pending = self.inner.post_recv(from, call, shape)?;
        Ok(Pending::new(Downloading { pending, call: *call }))
    }

    fn exchange(
        &self,
        call: &Call,
        sends: Vec<(usize, Block)>,
        receives: &[(usize, BlockShape)],
    ) -> Result<Vec<Block>> {
        let send = |(to, block)| Ok((to, upload(&*self.device, call, block)?));
        let sends = sends.into_iter().map(send).collect::<Result<Vec<_>>>()?;
        self.inner.exchange(call, sends, receives)?.iter().map(|block| download(call, block)).collect()
    }

    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        download(call, &self.inner.reduce(call, how, upload(&*self.device, call, block)?)?)
    }
}

struct Downloading {
    pending: Pending,
    call: Call,
}

impl Receiving for Downloading {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        download(&self.call, &self.pending.wait(deadline)?)
    }

    fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }
}
