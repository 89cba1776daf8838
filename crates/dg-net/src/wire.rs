//! Small messages as bytes: the one module that knows the format.
//!
//! A message is a version byte and the value; on a stream a length of four bytes (big-endian) goes before it. The
//! length is compared with [`BYTES_MAX`] before anything is allocated, every read and write has a time limit, and bytes
//! after the value are an error, because a decoder that skips them takes a newer message for an older one. Whatever
//! arrives, decoding gives a value or a [`WireError`].
//!
//! ```
//! use dg_net::wire::{Message, decode, encode};
//!
//! #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
//! struct Ping(u32);
//! impl Message for Ping {}
//!
//! let bytes = encode(&Ping(7)).unwrap();
//! assert_eq!(decode::<Ping>(&bytes).unwrap(), Ping(7));
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use std::any::type_name;
use std::io::ErrorKind;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A type that may be sent.
///
/// It is written out for each type, because two shapes have no bound on what a hostile sender makes the decoder do:
/// types that contain themselves (depth of the stack), and sequences whose elements have no bytes (`Vec<()>`: length
/// without limit). Large byte arrays do not belong here either: they have streams of their own.
pub trait Message: Serialize + DeserializeOwned {}

/// Why a message could not be sent or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The stream ended where a message could have begun.
    #[error("the stream has ended")]
    Closed,
    /// The stream ended within a message.
    #[error("the stream ended within a message; hint: the peer ended or refused the connection")]
    Cut,
    /// The message was not through in time.
    #[error("no complete message within {within:.1?}; hint: the peer hangs or the network is slow")]
    Deadline {
        /// The time that it had.
        within: Duration,
    },
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Io(String),
    /// The bytes are not a value of the type.
    #[error("not a {kind}: {reason}; hint: both ends must run the same version")]
    Malformed {
        /// The type that was expected.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The length is outside the limits.
    #[error("a message of {bytes} bytes, where 1 to {BYTES_MAX} are possible")]
    Size {
        /// The length as told, without the four bytes of the length itself.
        bytes: u64,
    },
    /// Bytes follow the value.
    #[error("{bytes} bytes follow the {kind}; hint: both ends must run the same version")]
    Trailing {
        /// The type that was expected.
        kind: &'static str,
        /// How many bytes follow.
        bytes: usize,
    },
    /// The message is of another version of the format.
    #[error(
        "a message of format {got}, this program speaks {VERSION}; hint: both ends must run the same version"
    )]
    Version {
        /// The version as told.
        got: u8,
    },
}

/// The bytes of `message`.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(message, &mut bytes, FORMAT)
        .map_err(|error| WireError::Malformed { kind: type_name::<M>(), reason: error.to_string() })?;
    if bytes.len() > BYTES_MAX {
        return Err(WireError::Size { bytes: bytes.len() as u64 });
    }
    Ok(bytes)
}

/// The message that `bytes` are.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    if bytes.len() > BYTES_MAX {
        return Err(WireError::Size { bytes: bytes.len() as u64 });
    }
    let Some((&version, value)) = bytes.split_first() else {
        return Err(WireError::Size { bytes: 0 });
    };
    if version != VERSION {
        return Err(WireError::Version { got: version });
    }
    let kind = type_name::<M>();
    let (message, read) = bincode::serde::decode_from_slice(value, FORMAT)
        .map_err(|error| WireError::Malformed { kind, reason: error.to_string() })?;
    match value.len().saturating_sub(read) {
        0 => Ok(message),
        bytes => Err(WireError::Trailing { kind, bytes }),
    }
}

/// Writes `message` with its length. After an error the stream is of no more use.
pub async fn write_frame<M: Message>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
    within: Duration,
) -> Result<(), WireError> {
    let body = encode(message)?;
    let bytes = body.len() as u64;
    let length = u32::try_from(bytes).map_err(|_| WireError::Size { bytes })?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    let written = tokio::time::timeout(within, stream.write_all(&frame)).await;
    written.map_err(|_| WireError::Deadline { within })?.map_err(|error| WireError::Io(error.to_string()))
}

/// Reads the next message. `within` counts from the call, so it includes the wait for the message to be sent. After an
/// error, and when the future is dropped half-way, the stream is of no more use.
pub async fn read_frame<M: Message>(
    stream: &mut (impl AsyncRead + Unpin),
    within: Duration,
) -> Result<M, WireError> {
    decode(&read_raw(stream, within).await?)
}

/// Reads the bytes of the next message, as [`decode`] takes them; else as [`read_frame`].
pub async fn read_raw(stream: &mut (impl AsyncRead + Unpin), within: Duration) -> Result<Vec<u8>, WireError> {
    tokio::time::timeout(within, read_bytes(stream)).await.map_err(|_| WireError::Deadline { within })?
}

async fn read_bytes(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, WireError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => WireError::Cut,
        _ => WireError::Io(error.to_string()),
    };
    let mut length = [0; 4];
    let (first, rest) = length.split_at_mut(1);
    if stream.read(first).await.map_err(failed)? == 0 {
        return Err(WireError::Closed);
    }
    stream.read_exact(rest).await.map_err(failed)?;
    let length = u32::from_be_bytes(length);
    let size = WireError::Size { bytes: length.into() };
    let length =
        usize::try_from(length).ok().filter(|length| (1..=BYTES_MAX).contains(length)).ok_or(size)?;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(failed)?;
    Ok(bytes)
}

/// The longest message, version byte included.
pub const BYTES_MAX: usize = (64 << 10) - 1;

/// The first byte of every message.
pub const VERSION: u8 = 1;

/// The decoder counts values by their size in memory, which for a number is up to 16 times that of its shortest form.
/// It refuses what would come to more before it makes room for it.
const DECODED_BYTES_MAX: usize = 16 * BYTES_MAX;

const FORMAT: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<DECODED_BYTES_MAX>,
> = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();
