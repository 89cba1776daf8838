//! What messages carry: dense one-dimensional data whose clones share memory.

use bytes::Bytes;
use dg_core::DType;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Number format and number of values of a [`Block`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Number format.
    pub dtype: DType,
    /// Number of values.
    pub len: usize,
}

impl BlockShape {
    /// `len` values of f32.
    pub const fn f32(len: usize) -> Self {
        Self { dtype: DType::Float32, len }
    }

    /// `len` values of bfloat16.
    pub const fn bf16(len: usize) -> Self {
        Self { dtype: DType::Bfloat16, len }
    }

    /// Bytes of the values.
    pub fn bytes(self) -> u64 {
        self.len as u64 * self.dtype.bytes()
    }
}

impl fmt::Display for BlockShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, self.len)
    }
}

/// Dense one-dimensional data in f32 or bf16: memory of the host, or of a device that only its own communicator knows.
///
/// A clone and a [slice](Self::slice) share the memory. Ranks of one process hand blocks over without copying: the
/// receiver reads the sender's memory. Nothing in a block can be changed, so that is safe.
#[derive(Clone)]
pub struct Block {
    shape: BlockShape,
    memory: Memory,
}

#[derive(Clone)]
enum Memory {
    Host(Bytes),
    Device(Arc<dyn DeviceMemory>),
}

/// Memory of a device, for example a GPU tensor.
///
/// A communicator of that device finds its own type again by `Any`. Ranks of one process that share the device pass
/// it on as it is; other host planes need [`crate::HostStaged`].
pub trait DeviceMemory: Any + Send + Sync + fmt::Debug {
    /// Copies everything to the host, in native byte order. `Err` says what the device says.
    fn to_host(&self) -> Result<Bytes, String>;

    /// The values `range`; shares the memory if the device can.
    fn slice(&self, range: Range<usize>) -> Arc<dyn DeviceMemory>;
}

impl Block {
    /// Takes over `values` without copying.
    pub fn from_f32(values: Vec<f32>) -> Self {
        let shape = BlockShape::f32(values.len());
        Self { shape, memory: Memory::Host(Bytes::from_owner(F32(values))) }
    }

    /// Takes over `values` without copying.
    pub fn from_bf16(values: Vec<bf16>) -> Self {
        let shape = BlockShape::bf16(values.len());
        Self { shape, memory: Memory::Host(Bytes::from_owner(Bf16(values))) }
    }

    /// Values in native byte order. Memory that is not aligned for the format is copied, other memory is shared.
    ///
    /// `None` if `bytes` is not a whole number of values.
    pub fn from_bytes(dtype: DType, bytes: Bytes) -> Option<Self> {
        let size = dtype.bytes() as usize;
        if !bytes.len().is_multiple_of(size) {
            return None;
        }
        let shape = BlockShape { dtype, len: bytes.len() / size };
        if bytes.as_ptr().addr().is_multiple_of(size) {
            return Some(Self { shape, memory: Memory::Host(bytes) });
        }
        Some(match dtype {
            DType::Float32 => {
                Self::from_f32(bytes.as_chunks().0.iter().copied().map(f32::from_ne_bytes).collect())
            }
            DType::Bfloat16 => {
                Self::from_bf16(bytes.as_chunks().0.iter().copied().map(bf16::from_ne_bytes).collect())
            }
        })
    }

    /// Memory of a device.
    pub fn on_device(shape: BlockShape, memory: Arc<dyn DeviceMemory>) -> Self {
        Self { shape, memory: Memory::Device(memory) }
    }

    /// No values.
    pub fn empty(dtype: DType) -> Self {
        Self { shape: BlockShape { dtype, len: 0 }, memory: Memory::Host(Bytes::new()) }
    }

    /// Number format and number of values.
    pub const fn shape(&self) -> BlockShape {
        self.shape
    }

    /// Number format.
    pub const fn dtype(&self) -> DType {
        self.shape.dtype
    }

    /// Number of values.
    pub const fn len(&self) -> usize {
        self.shape.len
    }

    /// Whether there are no values.
    pub const fn is_empty(&self) -> bool {
        self.shape.len == 0
    }

    /// The values `range`, in the same memory.
    ///
    /// # Panics
    /// If `range` reaches beyond the block.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.shape);
        let shape = BlockShape { len: range.len(), ..self.shape };
        let size = self.dtype().bytes() as usize;
        let memory = match &self.memory {
            _ if range.is_empty() => Memory::Host(Bytes::new()),
            Memory::Host(bytes) => Memory::Host(bytes.slice(range.start * size..range.end * size)),
            Memory::Device(memory) => Memory::Device(memory.slice(range)),
        };
        Self { shape, memory }
    }

    /// Cuts into consecutive blocks of `lengths` values, in the same memory.
    ///
    /// # Panics
    /// If the lengths do not sum up to [`len`](Self::len).
    pub fn split(&self, lengths: &[usize]) -> Vec<Self> {
        assert_eq!(lengths.iter().sum::<usize>(), self.len(), "the parts of {}", self.shape);
        let mut begin = 0;
        let mut next = |len: &usize| {
            begin += len;
            self.slice(begin - len..begin)
        };
        lengths.iter().map(&mut next).collect()
    }

    /// Its bytes in native order, if they are on the host. Always aligned for the format.
    pub const fn host(&self) -> Option<&Bytes> {
        match &self.memory {
            Memory::Host(bytes) => Some(bytes),
            Memory::Device(_) => None,
        }
    }

    /// Its memory on a device, if it is not on the host.
    pub const fn device(&self) -> Option<&Arc<dyn DeviceMemory>> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(memory) => Some(memory),
        }
    }

    /// The values, if they are f32 on the host.
    pub fn as_f32(&self) -> Option<&[f32]> {
        let bytes = self.host().filter(|_| self.dtype() == DType::Float32)?;
        // No bytes may lie anywhere, aligned or not.
        if bytes.is_empty() { Some(&[]) } else { bytemuck::try_cast_slice(bytes).ok() }
    }

    /// The values, if they are bf16 on the host.
    pub fn as_bf16(&self) -> Option<&[bf16]> {
        use half::slice::HalfBitsSliceExt;
        let bytes = self.host().filter(|_| self.dtype() == DType::Bfloat16)?;
        let bits: &[u16] = if bytes.is_empty() { &[] } else { bytemuck::try_cast_slice(bytes).ok()? };
        Some(bits.reinterpret_cast())
    }

    /// Whether both are on the host with the same format and the same bits.
    pub fn same_bits(&self, other: &Self) -> bool {
        self.shape == other.shape && self.host().is_some() && self.host() == other.host()
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.host().is_some() { "host" } else { "device" };
        write!(f, "{} on the {place}", self.shape)
    }
}

struct F32(Vec<f32>);

impl AsRef<[u8]> for F32 {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

struct Bf16(Vec<bf16>);

impl AsRef<[u8]> for Bf16 {
    fn as_ref(&self) -> &[u8] {
        let bits: &[u16] = self.0.as_slice().reinterpret_cast();
        bytemuck::cast_slice(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_and_slices_share_memory() {
        let values = vec![1.0f32, 2.0, 3.0, 4.0];
        let at = values.as_ptr();
        let block = Block::from_f32(values);
        assert_eq!(block.as_f32().unwrap().as_ptr(), at);
        let copy = block.clone();
        assert_eq!(copy.as_f32().unwrap().as_ptr(), at);
        let part = block.slice(1..3);
        assert_eq!(part.as_f32().unwrap(), [2.0, 3.0]);
        assert_eq!(part.as_f32().unwrap().as_ptr(), at.wrapping_add(1));
        let parts = block.split(&[0, 3, 1]);
        assert!(parts[0].as_f32().unwrap().is_empty());
        assert_eq!(parts[2].as_f32().unwrap(), [4.0]);
    }

    #[test]
    fn bytes_that_lie_askew_are_copied() {
        let mut raw = vec![0u8; 13];
        for (i, byte) in raw.iter_mut().enumerate() {
            *byte = i as u8;
        }
        let all = Bytes::from(raw);
        for begin in 0..4 {
            let part = all.slice(begin..begin + 8);
            let block = Block::from_bytes(DType::Float32, part.clone()).unwrap();
            assert_eq!((block.len(), block.host().unwrap()), (2, &part));
            assert!(block.as_f32().is_some());
            let block = Block::from_bytes(DType::Bfloat16, part.clone()).unwrap();
            assert_eq!((block.as_bf16().unwrap().len(), block.host().unwrap()), (4, &part));
        }
        assert!(Block::from_bytes(DType::Float32, all.slice(0..7)).is_none());
    }

    #[test]
    fn bf16_is_taken_over_as_it_is() {
        let values = vec![bf16::from_f32(1.5), bf16::NAN, bf16::NEG_ZERO];
        let (at, bits) = (values.as_ptr(), [values[0].to_bits(), values[1].to_bits(), values[2].to_bits()]);
        let block = Block::from_bf16(values);
        assert_eq!(block.as_bf16().unwrap().as_ptr(), at);
        assert_eq!(block.as_bf16().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits);
        assert_eq!((block.as_f32(), block.shape().bytes()), (None, 6));
    }
}
