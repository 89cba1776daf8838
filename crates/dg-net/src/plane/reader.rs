//! The thread that reads from one peer.
#![deny(clippy::indexing_slicing, clippy::unwrap_used)]

use super::frame::{CAUSE_BYTES_MAX, FrameError, HEADER_BYTES, Header, How};
use super::pool::Pool;
use super::stream::Stream;
use super::world::{Amount, Failure, World};
use bytes::Bytes;
use dg_comm::Block;
use dg_core::DType;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Reads what `from` sends until the connection ends, and hangs up.
pub(super) fn run(world: &World, from: usize, stream: impl Read, connection: &Stream) {
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, stream);
    let reason = loop {
        if let Err(error) = read_frame(world, from, &mut stream) {
            break error;
        }
    };
    world.closed(from, &reason);
    if let Some(Some(line)) = world.lines.get(from) {
        // A peer that has broken the rules is told that it is out.
        line.close();
        line.wait(Instant::now() + LAST_WORDS_MAX);
    }
    connection.close();
}

/// Why reading ended.
#[derive(Debug, Error)]
enum Ended {
    #[error("it sent {0}")]
    Frame(#[from] FrameError),
    #[error("its connection ended: {0}")]
    Stream(#[from] io::Error),
}

fn read_frame(world: &World, from: usize, stream: &mut impl Read) -> Result<(), Ended> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    match Header::decode(&header)? {
        Header::Message { envelope, dtype, bytes } => {
            // Before there is memory for it.
            world.expect_message(from, bytes)?;
            let block = read_block(world, stream, dtype, bytes)?;
            world.deliver(from, envelope, block);
        }
        Header::Credit { messages, bytes } => world.credit(from, Amount { messages, bytes })?,
        Header::Failure { how, rank, bytes } => {
            let failed = usize::try_from(rank).ok().filter(|rank| *rank < world.size());
            let failed = failed.ok_or(FrameError::Rank(rank))?;
            let cause = read_bytes(&world.pool, stream, bytes, CAUSE_BYTES_MAX)?;
            let cause = String::from_utf8_lossy(&cause).into_owned();
            if how != How::Aborted && !world.has_failed() {
                tracing::warn!(
                    rank = world.number(world.me),
                    peer = world.number(failed),
                    told_by = world.number(from),
                    "a rank is lost"
                );
            }
            world.fail(Failure { rank: failed, how, cause });
        }
        Header::Finished => world.finished(from)?,
        Header::Seen => world.seen(from)?,
    }
    Ok(())
}

fn read_block(world: &World, stream: &mut impl Read, dtype: DType, bytes: u64) -> Result<Block, Ended> {
    let whole = bytes - bytes % dtype.bytes();
    let payload = read_bytes(&world.pool, stream, bytes, whole)?;
    let ragged = FrameError::Length { bytes, max: whole };
    Ok(Block::from_bytes(dtype, payload).ok_or(ragged)?)
}

fn read_bytes(pool: &Arc<Pool>, stream: &mut impl Read, bytes: u64, max: u64) -> Result<Bytes, Ended> {
    let len = usize::try_from(bytes).ok().filter(|_| bytes <= max);
    let len = len.ok_or(FrameError::Length { bytes, max })?;
    Ok(pool.filled(len, |payload| stream.read_exact(payload))?)
}

/// Read at once from the stream; larger payloads go straight to where they stay.
const BUFFER_BYTES: usize = 64 << 10;

/// How long a connection that has ended one way stays open the other way.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);
