//! What goes over a connection once it is set up: headers of fixed size, encoded by hand, and payloads straight after.
//!
//! Numbers are little-endian; bytes that a header does not use are zero.
//! ```text
//! message  1 op class dtype | step layer patch kind (u32) | 0 (u32) | group request (u64) | payload bytes (u64)
//! credit   2 0 0 0 | messages taken (u64) | bytes taken (u64)
//! failure  3 how 0 0 | rank (u32) | bytes of the cause (u64)
//! finished 4
//! seen     5
//! ```
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::as_conversions)]

use dg_comm::{Class, Envelope, Op, Tag};
use dg_core::DType;
use thiserror::Error;

/// Bytes of every header.
pub(super) const HEADER_BYTES: usize = 48;

/// Longest cause of a failure; what is longer is cut.
pub(super) const CAUSE_BYTES_MAX: u64 = 1024;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// A message, whose payload follows.
    Message { envelope: Envelope, dtype: DType, bytes: u64 },
    /// What the receiver has taken since the beginning.
    Credit { messages: u64, bytes: u64 },
    /// The job is over: rank `rank` has ended it. The cause follows.
    Failure { how: How, rank: u32, bytes: u64 },
    /// The sender will send no more messages.
    Finished,
    /// Everything up to `Finished` has arrived.
    Seen,
}

/// How a rank ended the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Aborted,
    Lost,
    Panicked,
}

/// A peer sent what no rank sends.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A message or a second end after the end.
    #[error("something after its end")]
    AfterFinished,
    /// Credit for more than was sent, or less than before.
    #[error("credit for {claims}, which was not sent or was credited before")]
    Credit {
        /// Messages that it says it has taken.
        claims: u64,
    },
    /// More than this rank has room for.
    #[error("a message of {bytes} bytes beyond its credit")]
    BeyondCredit {
        /// Bytes of the message.
        bytes: u64,
    },
    /// A length that does not fit.
    #[error("a length of {bytes} bytes; at most {max}, and whole values")]
    Length {
        /// The length.
        bytes: u64,
        /// Longest that is allowed.
        max: u64,
    },
    /// A rank that does not exist.
    #[error("a failure of rank {0}, which does not exist")]
    Rank(u32),
    /// An acknowledgement of an end that was not announced.
    #[error("an answer to nothing")]
    Seen,
    /// A byte that means nothing.
    #[error("{value} as {what}")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = Encoder { bytes: [0; HEADER_BYTES], at: 0 };
        match self {
            Self::Message { envelope, dtype, bytes: len } => {
                let Envelope { group, op, class, tag } = envelope;
                bytes.put(&[1, code(&OPS, &op), code(&Class::ALL, &class), code(&DTYPES, &dtype)]);
                for part in [tag.step, tag.layer, tag.patch, tag.kind, 0] {
                    bytes.put(&part.to_le_bytes());
                }
                for part in [group, tag.request, len] {
                    bytes.put(&part.to_le_bytes());
                }
            }
            Self::Credit { messages, bytes: taken } => {
                bytes.put(&[2, 0, 0, 0]);
                bytes.put(&messages.to_le_bytes());
                bytes.put(&taken.to_le_bytes());
            }
            Self::Failure { how, rank, bytes: len } => {
                bytes.put(&[3, code(&HOWS, &how), 0, 0]);
                bytes.put(&rank.to_le_bytes());
                bytes.put(&len.to_le_bytes());
            }
            Self::Finished => bytes.put(&[4]),
            Self::Seen => bytes.put(&[5]),
        }
        bytes.bytes
    }

    /// # Errors
    /// [`FrameError::Unknown`] for what [`encode`](Self::encode) does not write. Lengths are not looked at.
    pub(super) fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut bytes = Decoder(header);
        let [kind, a, b, c] = bytes.take();
        let decoded = match kind {
            1 => {
                let (op, class) = (of_code("op", &OPS, a)?, of_code("class", &Class::ALL, b)?);
                let dtype = of_code("dtype", &DTYPES, c)?;
                let [step, layer, patch, kind] = [(); 4].map(|()| bytes.u32());
                zero(bytes.u32().into())?;
                let [group, request, len] = [(); 3].map(|()| bytes.u64());
                let tag = Tag { request, step, layer, patch, kind };
                return Ok(Self::Message { envelope: Envelope { group, op, class, tag }, dtype, bytes: len });
            }
            2 => {
                zero(a.into())?;
                Self::Credit { messages: bytes.u64(), bytes: bytes.u64() }
            }
            3 => Self::Failure { how: of_code("how", &HOWS, a)?, rank: bytes.u32(), bytes: bytes.u64() },
            4 | 5 => {
                zero(a.into())?;
                if kind == 4 { Self::Finished } else { Self::Seen }
            }
            _ => return Err(FrameError::Unknown { what: "kind of frame", value: kind.into() }),
        };
        [b, c].iter().chain(bytes.0).try_for_each(|byte| zero(u64::from(*byte)))?;
        Ok(decoded)
    }
}

fn zero(value: u64) -> Result<(), FrameError> {
    if value == 0 { Ok(()) } else { Err(FrameError::Unknown { what: "padding", value }) }
}

/// Position in the table, which both ends have.
fn code<T: PartialEq>(table: &[T], value: &T) -> u8 {
    // Operations without messages are in no table: the other end refuses them.
    let position = table.iter().position(|other| other == value);
    position.and_then(|position| u8::try_from(position).ok()).unwrap_or(u8::MAX)
}

fn of_code<T: Copy>(what: &'static str, table: &[T], code: u8) -> Result<T, FrameError> {
    let unknown = FrameError::Unknown { what, value: code.into() };
    table.get(usize::from(code)).copied().ok_or(unknown)
}

/// Operations that have messages.
const OPS: [Op; 6] = [Op::Message, Op::AllGather, Op::AllToAll, Op::Barrier, Op::Broadcast, Op::Reduce];
const DTYPES: [DType; 2] = [DType::Float32, DType::Bfloat16];
const HOWS: [How; 3] = [How::Aborted, How::Lost, How::Panicked];

struct Encoder {
    bytes: [u8; HEADER_BYTES],
    at: usize,
}

impl Encoder {
    fn put(&mut self, part: &[u8]) {
        let room = self.bytes.iter_mut().skip(self.at);
        room.zip(part).for_each(|(to, from)| *to = *from);
        self.at += part.len();
    }
}

/// Reads on; zeros after the end.
pub(super) struct Decoder<'a>(pub(super) &'a [u8]);

impl Decoder<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((part, rest)) = self.0.split_first_chunk() else {
            self.0 = &[];
            return [0; N];
        };
        self.0 = rest;
        *part
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::as_conversions)]
mod tests {
    use super::*;

    fn headers() -> Vec<Header> {
        let tag = Tag { request: u64::MAX - 1, step: 2, layer: 3, patch: 4, kind: u32::MAX };
        let mut headers = vec![
            Header::Credit { messages: 7, bytes: u64::MAX },
            Header::Failure { how: How::Panicked, rank: 3, bytes: 12 },
            Header::Finished,
            Header::Seen,
        ];
        for op in OPS {
            for (class, dtype) in Class::ALL.into_iter().flat_map(|class| DTYPES.map(|dtype| (class, dtype)))
            {
                let envelope = Envelope { group: 0xfeed_beef_0000_0001, op, class, tag };
                headers.push(Header::Message { envelope, dtype, bytes: 1 << 40 });
            }
        }
        headers
    }

    #[test]
    fn what_is_written_is_read() {
        for header in headers() {
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    /// Whatever is read would have been written the same way, so nothing is overlooked.
    #[test]
    fn one_flipped_bit_is_another_header_or_none() {
        for header in headers() {
            for bit in 0..8 * HEADER_BYTES {
                let mut bytes = header.encode();
                bytes[bit / 8] ^= 1 << (bit % 8);
                if let Ok(other) = Header::decode(&bytes) {
                    assert_ne!(other, header);
                    assert_eq!(other.encode(), bytes);
                }
            }
        }
    }

    /// Both ends number classes by their position. If this fails, raise `VERSION` of the hello.
    #[test]
    fn classes_have_the_numbers_of_this_version() {
        assert_eq!(super::super::hello::VERSION, 1);
        let names = Class::ALL.map(Class::name);
        let known = [
            "cfg_noise",
            "control",
            "embeds",
            "gather",
            "pipe_hidden",
            "pipe_latents",
            "pipe_text",
            "ring_kv",
            "ulysses_out",
            "ulysses_qkv",
        ];
        assert_eq!(names, known);
    }
}
