//! The actor that speaks for a process: what peers send goes through its mailbox to the links.

use super::link::{Received, Reply};
use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, BytesConvertable, RpcReplyPort, SupervisionEvent};
use ractor_cluster::RactorClusterMessage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};

/// What goes from gateway to gateway.
#[derive(RactorClusterMessage)]
pub(super) enum Frame {
    /// Nobody waits for an answer.
    Cast(Sealed),
    /// Somebody does.
    #[rpc]
    Call(Sealed, RpcReplyPort<Sealed>),
}

/// Bytes of a message after the seal of their link.
#[derive(Clone, Debug)]
pub(super) struct Sealed(pub(super) Vec<u8>);

impl BytesConvertable for Sealed {
    fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// The secret of a link.
pub(super) type Seal = [u8; 16];

impl Sealed {
    pub(super) fn new(seal: &Seal, message: &[u8]) -> Self {
        Self([seal.as_slice(), message].concat())
    }

    pub(super) fn open(mut self) -> Option<(Seal, Vec<u8>)> {
        let seal = self.0.get(..16)?.try_into().ok()?;
        Some((seal, self.0.split_off(16)))
    }
}

/// The links of this process, by their seals.
#[derive(Clone, Default)]
pub(super) struct Links {
    inboxes: Arc<Mutex<HashMap<Seal, mpsc::Sender<Received>>>>,
    /// Somebody has joined the group of gateways.
    pub(super) joined: Arc<Notify>,
}

impl Links {
    pub(super) fn open(&self, seal: Seal, inbox: mpsc::Sender<Received>) {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).insert(seal, inbox);
    }

    pub(super) fn close(&self, seal: &Seal) {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(seal);
    }

    /// Hands over what has come. A link that does not keep up loses its connection: casts are repeated by whoever needs
    /// them, and memory is not.
    fn deliver(&self, seal: &Seal, received: Received) {
        let mut inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = inboxes.get(seal) else {
            tracing::debug!("a message for no link");
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = inbox.try_send(received) {
            tracing::warn!("a link has too many messages that nobody reads: closed");
            inboxes.remove(seal);
        }
    }
}

pub(super) struct Gateway;

impl Actor for Gateway {
    type Msg = Frame;
    type State = Links;
    type Arguments = Links;

    async fn pre_start(&self, me: ActorRef<Frame>, links: Links) -> Result<Links, ActorProcessingErr> {
        pg::monitor(GROUP.into(), me.get_cell());
        pg::join(GROUP.into(), vec![me.get_cell()]);
        Ok(links)
    }

    async fn handle(
        &self,
        _: ActorRef<Frame>,
        frame: Frame,
        links: &mut Links,
    ) -> Result<(), ActorProcessingErr> {
        match frame {
            Frame::Cast(sealed) => {
                if let Some((seal, message)) = sealed.open() {
                    links.deliver(&seal, Received::Cast(message));
                }
            }
            Frame::Call(sealed, port) => {
                if let Some((seal, message)) = sealed.open() {
                    links.deliver(&seal, Received::Call(message, Reply::new(seal, port)));
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Frame>,
        event: SupervisionEvent,
        links: &mut Links,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Join(..)) = event {
            links.joined.notify_waiters();
        }
        Ok(())
    }
}

/// The group that all gateways are in.
pub(super) const GROUP: &str = "dg-gateways";
