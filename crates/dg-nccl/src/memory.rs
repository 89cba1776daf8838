//! Device memory that messages carry.

use crate::driver::{Allocation, Context};
use crate::error::{GpuError, Result};
use bytes::Bytes;
use dg_comm::{BlockShape, Device, DeviceMemory};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Who owns a piece of device memory: an allocation of the driver, or a tensor of a framework.
pub trait Owner: std::any::Any + fmt::Debug + Send + Sync {
    /// Where it begins on the device. It stays there for as long as the owner lives.
    fn address(&self) -> u64;

    /// Its size.
    fn bytes(&self) -> usize;

    /// Copies these bytes to the host.
    ///
    /// # Errors
    /// What the device says.
    fn to_host(&self, range: Range<usize>) -> Result<Vec<u8>>;
}

/// Where received messages are put.
pub trait Arena: Send + Sync {
    /// Room for that message. Nothing on the device may use it but who gets it.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], or what the device says.
    fn room(&self, shape: BlockShape) -> Result<Arc<dyn Owner>>;

    /// The same with these values in it, in native byte order.
    ///
    /// # Errors
    /// As for [`room`](Self::room).
    fn filled(&self, shape: BlockShape, bytes: &[u8]) -> Result<Arc<dyn Owner>>;
}

/// Dense values on a device; clones and slices share the memory.
#[derive(Clone, Debug)]
pub struct Memory {
    owner: Arc<dyn Owner>,
    /// Bytes of the owner.
    range: Range<usize>,
    /// Of one value.
    size: usize,
}

impl Memory {
    /// The first values of `owner`; `None` if it is too small.
    pub fn new(owner: Arc<dyn Owner>, shape: BlockShape) -> Option<Self> {
        let bytes = usize::try_from(shape.bytes()).ok().filter(|bytes| *bytes <= owner.bytes())?;
        Some(Self { owner, range: 0..bytes, size: shape.dtype.bytes() as usize })
    }

    /// Where it is on the device.
    pub fn address(&self) -> u64 {
        self.owner.address() + self.range.start as u64
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Who owns it, for a framework that finds its own tensors again.
    pub fn owner(&self) -> &Arc<dyn Owner> {
        &self.owner
    }

    /// Which bytes of its owner it is.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl DeviceMemory for Memory {
    fn to_host(&self) -> std::result::Result<Bytes, String> {
        self.owner.to_host(self.range.clone()).map(Bytes::from).map_err(|error| error.to_string())
    }

    fn slice(&self, range: Range<usize>) -> Arc<dyn DeviceMemory> {
        let at = |value: usize| self.range.start + value * self.size;
        Arc::new(Self { range: at(range.start)..at(range.end), ..self.clone() })
    }
}

/// Memory of the driver, kept for the next message: to free it would wait for everything that the device does.
#[derive(Debug)]
pub struct Pool(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    context: Context,
    free: Mutex<BTreeMap<usize, Vec<Allocation>>>,
}

/// Sizes are rounded up to a multiple of it.
const GRAIN: usize = 64 << 10;

impl Pool {
    /// An empty one.
    pub fn new(context: Context) -> Self {
        Self(Arc::new(Kept { context, free: Mutex::default() }))
    }

    fn take(&self, bytes: usize) -> Result<Pooled> {
        let size = bytes.max(1).checked_next_multiple_of(GRAIN).unwrap_or(bytes);
        let kept = {
            let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.get_mut(&size).and_then(Vec::pop)
        };
        let allocation = match kept {
            Some(allocation) => allocation,
            None => self.0.context.alloc(size).or_else(|error| {
                // What is kept in other sizes may make room.
                let others = std::mem::take(&mut *self.0.free.lock().unwrap_or_else(PoisonError::into_inner));
                if others.is_empty() {
                    return Err(error);
                }
                drop(others);
                self.0.context.alloc(size)
            })?,
        };
        Ok(Pooled { allocation: Some(allocation), bytes, home: self.0.clone() })
    }
}

impl Arena for Pool {
    fn room(&self, shape: BlockShape) -> Result<Arc<dyn Owner>> {
        Ok(Arc::new(self.take(usize::try_from(shape.bytes()).unwrap_or(usize::MAX))?))
    }

    fn filled(&self, _: BlockShape, bytes: &[u8]) -> Result<Arc<dyn Owner>> {
        let pooled = self.take(bytes.len())?;
        pooled.allocation().write(bytes)?;
        Ok(Arc::new(pooled))
    }
}

/// Goes back to its pool.
#[derive(Debug)]
struct Pooled {
    /// Until it is dropped.
    allocation: Option<Allocation>,
    bytes: usize,
    home: Arc<Kept>,
}

impl Pooled {
    fn allocation(&self) -> &Allocation {
        self.allocation.as_ref().expect("taken when it is dropped only")
    }
}

impl Owner for Pooled {
    fn address(&self) -> u64 {
        self.allocation().address()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn to_host(&self, range: Range<usize>) -> Result<Vec<u8>> {
        self.allocation().read(range.start, range.len())
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(allocation) = self.allocation.take() {
            let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(allocation.bytes()).or_default().push(allocation);
        }
    }
}

/// Brings host memory into an arena; for [`dg_comm::HostStaged`] and for messages that are given on the host.
pub struct Upload(pub Arc<dyn Arena>);

impl Upload {
    pub(crate) fn memory(&self, shape: BlockShape, bytes: &[u8]) -> Result<Arc<Memory>> {
        let owner = self.0.filled(shape, bytes)?;
        let short = GpuError::OutOfMemory { need: shape.bytes(), free: owner.bytes() as u64, total: 0 };
        Memory::new(owner, shape).map(Arc::new).ok_or(short)
    }
}

impl Device for Upload {
    fn upload(&self, shape: BlockShape, bytes: &Bytes) -> std::result::Result<Arc<dyn DeviceMemory>, String> {
        let memory = self.memory(shape, bytes).map_err(|error| error.to_string())?;
        Ok(memory)
    }
}
