//! Device memory over a plane that carries host memory.

use crate::communicator::{forward_to_inner, invalid};
use crate::{
    Block, BlockShape, Call, Communicator, Deadline, DeviceMemory, Pending, Receiving, Reduce, Result,
};
use bytes::Bytes;
use std::sync::Arc;

/// A device that can take data from the host.
pub trait Device: Send + Sync + 'static {
    /// Copies values in native byte order onto the device. `Err` says what the device says.
    fn upload(&self, shape: BlockShape, bytes: &Bytes) -> std::result::Result<Arc<dyn DeviceMemory>, String>;
}

/// Carries blocks of a device over a communicator of the host: downloads what is sent, uploads what is received.
///
/// Every value that is received lies on the device, the result of a reduction too, which is computed on the host. Blocks
/// of the host may be sent as well. To use it in a group, wrap the group ([`crate::Group`] first, this around it).
pub struct HostStaged<C> {
    inner: C,
    device: Arc<dyn Device>,
}

impl<C: Communicator> HostStaged<C> {
    /// Wraps `inner`.
    pub const fn new(inner: C, device: Arc<dyn Device>) -> Self {
        Self { inner, device }
    }
}

impl<C: Communicator> Communicator for HostStaged<C> {
    forward_to_inner!();

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        self.inner.send(to, call, download(call, &block)?)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        let pending = self.inner.post_recv(from, call, shape)?;
        Ok(Pending::new(Uploading { pending, device: self.device.clone(), call: *call }))
    }

    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        let sum = self.inner.reduce(call, how, download(call, &block)?)?;
        upload(&*self.device, call, sum)
    }
}

struct Uploading {
    pending: Pending,
    device: Arc<dyn Device>,
    call: Call,
}

impl Receiving for Uploading {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        upload(&*self.device, &self.call, self.pending.wait(deadline)?)
    }

    fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }
}

pub(crate) fn download(call: &Call, block: &Block) -> Result<Block> {
    let Some(memory) = block.device() else { return Ok(block.clone()) };
    let bytes =
        memory.to_host().map_err(|error| invalid(call, format!("the device refused a copy: {error}")))?;
    let host = Block::from_bytes(block.dtype(), bytes).filter(|host| host.shape() == block.shape());
    host.ok_or_else(|| invalid(call, format!("the device gave something else than {}", block.shape())))
}

pub(crate) fn upload(device: &dyn Device, call: &Call, block: Block) -> Result<Block> {
    let Some(bytes) = block.host().filter(|_| !block.is_empty()) else { return Ok(block) };
    let memory = device.upload(block.shape(), bytes);
    let memory = memory.map_err(|error| invalid(call, format!("the device refused a copy: {error}")))?;
    Ok(Block::on_device(block.shape(), memory))
}
