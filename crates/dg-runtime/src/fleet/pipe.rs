//! Frames between an agent and a rank: a message and a body, over a socket pair.

use bytes::Bytes;
use dg_net::bus::BULK_BYTES_MAX;
use dg_net::wire::{self, Message, WireError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// Writes what comes until nobody sends or the other end is gone.
pub(super) async fn write<M: Message>(half: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<(M, Bytes)>) {
    let mut half = BufWriter::new(half);
    while let Some((message, body)) = frames.recv().await {
        let written = async {
            wire::write_frame(&mut half, &message, PATIENCE).await?;
            let io = |e: std::io::Error| WireError::Io(e.to_string());
            half.write_u64(body.len() as u64).await.map_err(io)?;
            half.write_all(&body).await.map_err(io)?;
            half.flush().await.map_err(io)
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "the other end of a pipe is gone");
            return;
        }
    }
}

/// Reads the next message and its body.
pub(super) async fn read<M: Message>(half: &mut OwnedReadHalf) -> Result<(M, Bytes), WireError> {
    let message = wire::read_frame(half, PATIENCE).await?;
    let io = |e: std::io::Error| WireError::Io(e.to_string());
    let length = half.read_u64().await.map_err(io)?;
    let size = usize::try_from(length).ok().filter(|size| *size <= BULK_BYTES_MAX);
    let mut body = vec![0; size.ok_or(WireError::Size { bytes: length })?];
    half.read_exact(&mut body).await.map_err(io)?;
    Ok((message, body.into()))
}

/// The two ends of a new pipe: one for this process, one for a child's standard input.
pub(super) fn pair() -> std::io::Result<(UnixStream, std::os::fd::OwnedFd)> {
    let (own, other) = std::os::unix::net::UnixStream::pair()?;
    own.set_nonblocking(true)?;
    Ok((UnixStream::from_std(own)?, other.into()))
}

/// The end that this process was given as its standard input.
pub(super) fn inherited() -> std::io::Result<UnixStream> {
    use std::os::fd::AsFd;
    let stream = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The other process may be stopped for a while; when it ends, so does the pipe.
const PATIENCE: Duration = Duration::from_secs(1 << 30);
