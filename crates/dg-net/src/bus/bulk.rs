//! Messages with large bodies: each on a stream of its own.

use super::BULK_BYTES_MAX;
use super::link::Received;
use crate::quiet::Quiet;
use crate::wire::{self, Message, WireError};
use bytes::Bytes;
use quinn::{Connection, RecvStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Sends a message and its body.
pub(super) async fn send(
    connection: &Connection,
    message: &impl Message,
    body: Bytes,
) -> Result<(), WireError> {
    if body.len() > BULK_BYTES_MAX {
        return Err(WireError::Size { bytes: body.len() as u64 });
    }
    let failed = |e: &dyn std::fmt::Display| WireError::Io(e.to_string());
    let mut stream = connection.open_uni().await.map_err(|e| failed(&e))?;
    wire::write_frame(&mut stream, message, HEADER_MAX).await?;
    stream.write_u64(body.len() as u64).await.map_err(|e| failed(&e))?;
    stream.write_chunk(body).await.map_err(|e| failed(&e))?;
    stream.finish().map_err(|e| failed(&e))?;
    Ok(())
}

/// Takes all that come until the connection ends or nobody listens, a few at a time.
pub(super) async fn receive(connection: Connection, inbox: mpsc::WeakSender<Received>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(AT_ONCE_MAX));
    let quiet = Arc::new(Quiet::default());
    while let Ok(stream) = connection.accept_uni().await {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (inbox, quiet) = (inbox.clone(), quiet.clone());
        tokio::spawn(async move {
            match read(stream).await {
                Ok(received) => {
                    if let Some(inbox) = inbox.upgrade() {
                        let _ = inbox.send(received).await;
                    }
                }
                Err(error) if quiet.allows(Instant::now()) => {
                    tracing::warn!(%error, "a bulk message is dropped");
                }
                Err(_) => {}
            }
            drop(slot);
        });
    }
}

async fn read(mut stream: RecvStream) -> Result<Received, WireError> {
    let failed = |e: &dyn std::fmt::Display| WireError::Io(e.to_string());
    let message = wire::read_raw(&mut stream, HEADER_MAX).await?;
    let length = stream.read_u64().await.map_err(|e| failed(&e))?;
    let size = usize::try_from(length).ok().filter(|length| *length <= BULK_BYTES_MAX);
    let size = size.ok_or(WireError::Size { bytes: length })?;
    // Grows with what arrives: a length alone makes no room.
    let mut body = Vec::with_capacity(size.min(FIRST_BYTES));
    let mut limited = (&mut stream).take(length);
    let read = tokio::time::timeout(BODY_MAX, limited.read_to_end(&mut body)).await;
    let read = read.map_err(|_| WireError::Deadline { within: BODY_MAX })?.map_err(|e| failed(&e))?;
    if read != size {
        return Err(WireError::Cut);
    }
    Ok(Received::Bulk(message, body.into()))
}

/// Streams of a peer that are read at a time.
const AT_ONCE_MAX: usize = 8;
const FIRST_BYTES: usize = 1 << 20;
const HEADER_MAX: Duration = Duration::from_secs(30);
const BODY_MAX: Duration = Duration::from_secs(600);
