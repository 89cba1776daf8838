//! What two processes say to each other.

use super::BusError;
use super::bulk;
use super::gateway::{Frame, Seal, Sealed};
use super::node::Bus;
use crate::endpoint::{Code, Peer};
use crate::wire::{self, Message};
use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use ractor::{ActorRef, RpcReplyPort};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A peer whose actors have joined with this process's. Dropping all that hold it ends the connection.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    peer: Peer,
    bus: Bus,
    seal: Seal,
    remote: ActorRef<Frame>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<Received>>,
}

/// What a peer has sent; the bytes are those of one message ([`wire::decode`]).
#[derive(Debug)]
pub enum Received {
    /// A message.
    Cast(Vec<u8>),
    /// A question.
    Call(Vec<u8>, Reply),
    /// A message with a body beside it.
    Bulk(Vec<u8>, Bytes),
}

/// Where the answer to a call goes.
#[derive(Debug)]
pub struct Reply {
    seal: Seal,
    port: RpcReplyPort<Sealed>,
}

impl Reply {
    pub(super) fn new(seal: Seal, port: RpcReplyPort<Sealed>) -> Self {
        Self { seal, port }
    }

    /// Answers. The peer may have stopped waiting.
    ///
    /// # Errors
    /// If the message is too long.
    pub fn send(self, message: &impl Message) -> Result<(), BusError> {
        let _ = self.port.send(Sealed::new(&self.seal, &wire::encode(message)?));
        Ok(())
    }
}

impl Link {
    pub(super) async fn join(
        bus: &Bus,
        peer: Peer,
        stream: (SendStream, RecvStream),
        seal: Seal,
        full_name: &str,
        is_server: bool,
    ) -> Result<Self, BusError> {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        // Before the actors join, so that what the peer says at once is not lost.
        bus.links.open(seal, sender.clone());
        let joined = bus.join(peer.connection(), stream, &seal, full_name, is_server).await;
        let remote = joined.inspect_err(|_| bus.links.close(&seal))?;
        tokio::spawn(bulk::receive(peer.connection().clone(), sender.downgrade()));
        // The connection's end closes the inbox: nobody else holds a sender.
        let (links, connection) = (bus.links.clone(), peer.connection().clone());
        tokio::spawn(async move {
            connection.closed().await;
            links.close(&seal);
        });
        Ok(Self(Arc::new(Inner { peer, bus: bus.clone(), seal, remote, inbox: inbox.into() })))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Says something. That it arrives is not sure: the connection may end first.
    ///
    /// # Errors
    /// If the message is too long, or the connection has ended.
    pub fn cast(&self, message: &impl Message) -> Result<(), BusError> {
        let sealed = Sealed::new(&self.0.seal, &wire::encode(message)?);
        self.0.remote.cast(Frame::Cast(sealed)).map_err(|e| self.closed(e.to_string()))
    }

    /// Asks something.
    ///
    /// # Errors
    /// If the message is too long, the connection ends, or no answer comes in time.
    pub async fn call<A: Message>(&self, message: &impl Message, within: Duration) -> Result<A, BusError> {
        let sealed = Sealed::new(&self.0.seal, &wire::encode(message)?);
        let answer = self.0.remote.call(|port| Frame::Call(sealed, port), Some(within)).await;
        match answer.map_err(|e| self.closed(e.to_string()))? {
            ractor::rpc::CallResult::Success(sealed) => {
                let (_, bytes) =
                    sealed.open().ok_or_else(|| self.closed("an answer without a seal".into()))?;
                Ok(wire::decode(&bytes)?)
            }
            ractor::rpc::CallResult::Timeout => {
                Err(BusError::Deadline { peer: self.0.peer.name().to_string(), within })
            }
            ractor::rpc::CallResult::SenderError => Err(self.closed("it did not answer".into())),
        }
    }

    /// Sends a message with a large body, on a stream of its own: it may arrive after what is said later.
    ///
    /// # Errors
    /// If the message or the body is too long, or the connection ends.
    pub async fn bulk(&self, message: &impl Message, body: Bytes) -> Result<(), BusError> {
        let sent = bulk::send(self.0.peer.connection(), message, body).await;
        sent.map_err(|e| self.closed(e.to_string()))
    }

    /// What the peer sends next; `None` when the connection has ended. To be awaited by one task.
    pub async fn receive(&self) -> Option<Received> {
        self.0.inbox.lock().await.recv().await
    }

    /// Why the connection has ended, if so.
    pub fn close_reason(&self) -> Option<String> {
        self.0.peer.connection().close_reason().map(|reason| reason.to_string())
    }

    /// Ends the connection, whoever else holds this link: both ends hear why.
    pub fn close(&self, reason: &str) {
        Code::Dropped.close_because(self.0.peer.connection(), reason);
    }

    fn closed(&self, reason: String) -> BusError {
        let reason = self.close_reason().unwrap_or(reason);
        BusError::Closed { peer: self.0.peer.name().to_string(), reason }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.bus.links.close(&self.seal);
        self.bus.sessions.forget(&self.seal);
    }
}

/// Messages that wait to be read.
const INBOX_MAX: usize = 8192;
