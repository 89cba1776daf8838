//! What goes over the host's plane beside the data: small messages of bf16 that stand for bits.

use crate::library::{ID_BYTES, RawId};
use dg_comm::{Block, BlockShape, Call, Class, Deadline, Tag};
use dg_core::DType;
use half::bf16;

/// What a message is, under its own tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) shape: BlockShape,
    /// Number of the message among those from its sender to its receiver. Those without values have none that counts.
    pub(crate) serial: u64,
}

/// What the threads of two ranks tell each other, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A message of that shape follows on the device.
    Data { serial: u64, shape: BlockShape },
    /// Nobody will ask for that message.
    Void { serial: u64 },
    /// So many messages have arrived on the receiver's device.
    Arrived { count: u64 },
    /// Where the sender of a direction waits for its receiver.
    Open(RawId),
}

/// Shape of the message that carries a [`Ticket`].
pub(crate) const TICKET: BlockShape = BlockShape::bf16(12);
/// Shape of the message that carries a [`Record`].
pub(crate) const RECORD: BlockShape = BlockShape::bf16((8 + ID_BYTES) / 2);

impl Ticket {
    pub(crate) fn pack(self) -> Block {
        let [dtype, len] = words(self.shape);
        pack(TICKET, &[dtype, len, self.serial])
    }

    pub(crate) fn unpack(block: &Block) -> Option<Self> {
        let words = unpack(block, TICKET)?;
        Some(Self { shape: shape(words.first()?, words.get(1)?)?, serial: *words.get(2)? })
    }
}

impl Record {
    pub(crate) fn pack(self) -> Block {
        match self {
            Self::Data { serial, shape } => {
                let [dtype, len] = words(shape);
                pack(RECORD, &[0, serial, dtype, len])
            }
            Self::Void { serial } => pack(RECORD, &[1, serial]),
            Self::Arrived { count } => pack(RECORD, &[2, count]),
            Self::Open(RawId(id)) => {
                let words = id.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                pack(RECORD, &std::iter::once(3).chain(words).collect::<Vec<_>>())
            }
        }
    }

    pub(crate) fn unpack(block: &Block) -> Option<Self> {
        let words = unpack(block, RECORD)?;
        Some(match words.first()? {
            0 => Self::Data { serial: *words.get(1)?, shape: shape(words.get(2)?, words.get(3)?)? },
            1 => Self::Void { serial: *words.get(1)? },
            2 => Self::Arrived { count: *words.get(1)? },
            3 => {
                let mut id = [0; ID_BYTES];
                for (to, word) in id.as_chunks_mut::<8>().0.iter_mut().zip(words.get(1..)?) {
                    *to = word.to_le_bytes();
                }
                Self::Open(RawId(id))
            }
            _ => return None,
        })
    }

    /// The call under which records travel.
    pub(crate) fn call(deadline: Deadline) -> Call {
        Call::new(Class::Control, Tag::new(u64::MAX), deadline).in_group(GROUP)
    }
}

/// A number that no group of ranks has: groups' numbers are odd.
const GROUP: u64 = 0x6e63_636c_0000_0000;

fn words(shape: BlockShape) -> [u64; 2] {
    [u64::from(shape.dtype == DType::Bfloat16), shape.len as u64]
}

fn shape(dtype: &u64, len: &u64) -> Option<BlockShape> {
    let dtype = match dtype {
        0 => DType::Float32,
        1 => DType::Bfloat16,
        _ => return None,
    };
    Some(BlockShape { dtype, len: usize::try_from(*len).ok()? })
}

fn pack(shape: BlockShape, words: &[u64]) -> Block {
    let halves =
        words.iter().flat_map(|word| [0, 16, 32, 48].map(|shift| bf16::from_bits((word >> shift) as u16)));
    let mut values: Vec<bf16> = halves.collect();
    values.resize(shape.len, bf16::ZERO);
    Block::from_bf16(values)
}

fn unpack(block: &Block, shape: BlockShape) -> Option<Vec<u64>> {
    let values = block.as_bf16().filter(|values| values.len() == shape.len)?;
    let word =
        |halves: &[bf16; 4]| halves.iter().rev().fold(0, |word, half| word << 16 | u64::from(half.to_bits()));
    Some(values.as_chunks::<4>().0.iter().map(word).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let id = RawId(std::array::from_fn(|i| (i * 37) as u8));
        let records = [
            Record::Data { serial: u64::MAX, shape: BlockShape::bf16(1 << 40) },
            Record::Void { serial: 3 },
            Record::Arrived { count: 0x1234_5678_9abc_def0 },
            Record::Open(id),
        ];
        for record in records {
            assert_eq!(record.pack().shape(), RECORD);
            assert_eq!(Record::unpack(&record.pack()), Some(record));
        }
        for shape in [BlockShape::f32(usize::MAX), BlockShape::bf16(0)] {
            let ticket = Ticket { shape, serial: 0xffff_0000_7fc0_8000 };
            assert_eq!(Ticket::unpack(&ticket.pack()), Some(ticket));
        }
        assert_eq!(Ticket::unpack(&Record::Void { serial: 1 }.pack()), None);
        assert_eq!(Record::unpack(&pack(RECORD, &[9])), None);
    }
}
