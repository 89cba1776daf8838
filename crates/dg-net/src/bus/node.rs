//! This process's end of the control plane.

use super::gateway::{Frame, GROUP, Gateway, Links, Seal};
use super::guard::Guard;
use super::{BusError, GREETING_MAX};
use crate::endpoint::Code;
use crate::plane::random;
use quinn::{Connection, RecvStream, SendStream};
use ractor::{Actor, ActorId, ActorRef, pg};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation};
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, NodeEventSubscription, NodeServer, NodeServerMessage,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// This process's end of the control plane: its actors, and which links there are.
#[derive(Clone)]
pub struct Bus {
    /// Full name of the node: with the incarnation.
    name: String,
    cookie: String,
    server: ActorRef<NodeServerMessage>,
    gateway: ActorRef<Frame>,
    pub(super) links: Links,
    pub(super) sessions: Sessions,
    /// Of the head.
    head: u64,
}

/// Sessions of connections that live, by the labels of their streams.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<String, Session>>>);

struct Session {
    /// Told the number of the session and what the peer calls itself.
    waiting: Option<oneshot::Sender<(u64, String)>>,
    connection: Connection,
}

impl Bus {
    /// Starts the actors of a head, or of a node that the head gave its cookie. Needs a tokio runtime; one per process.
    ///
    /// # Errors
    /// [`BusError::Start`].
    pub async fn start(name: &str, incarnation: u64, cookie: Option<String>) -> Result<Self, BusError> {
        let failed = |e: ractor::SpawnErr| BusError::Start(e.to_string());
        let name = full_name(name, incarnation);
        let cookie = cookie.unwrap_or_else(|| hex(&random::<32>()));
        let server = NodeServer::new(
            0,
            cookie.clone(),
            name.clone(),
            format!("{name}.dg"),
            None,
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .with_max_inbound_frame_size(FRAME_BYTES_MAX);
        let (server, _) = Actor::spawn(None, server, ()).await.map_err(failed)?;
        // Its only child so far is what listens on TCP. It is let go first: the server starts one that it misses anew.
        for listener in server.get_children() {
            listener.unlink(server.get_cell());
            listener.kill();
        }
        let links = Links::default();
        let (gateway, _) = Actor::spawn(None, Gateway, links.clone()).await.map_err(failed)?;
        let sessions = Sessions::default();
        let subscription = Box::new(sessions.clone());
        let subscribe = NodeServerMessage::SubscribeToEvents { id: "bus".into(), subscription };
        server.cast(subscribe).map_err(|e| BusError::Start(e.to_string()))?;
        Ok(Self { name, cookie, server, gateway, links, sessions, head: incarnation })
    }

    /// Ends its actors, and with them all links.
    pub fn stop(&self) {
        self.gateway.stop(None);
        self.server.stop(None);
    }

    pub(super) fn of_head(mut self, incarnation: u64) -> Self {
        self.head = incarnation;
        self
    }

    /// Incarnation of the head at this end or the other.
    pub fn head_incarnation(&self) -> u64 {
        self.head
    }

    /// What nodes need to join it.
    pub(super) fn cookie(&self) -> &str {
        &self.cookie
    }

    /// Its name, with its incarnation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives a stream of the connection to the actors; the peer's gateway comes back. From then on the connection ends
    /// with their session.
    pub(super) async fn join(
        &self,
        connection: &Connection,
        (send, recv): (SendStream, RecvStream),
        seal: &Seal,
        peer: &str,
        is_server: bool,
    ) -> Result<ActorRef<Frame>, BusError> {
        let label = label(seal);
        let ready = self.sessions.expect(&label, connection);
        let stream = Box::new(Stream { send, recv, label: label.clone() });
        let opened = NodeServerMessage::ConnectionOpenedExternal { stream, is_server };
        let closed = |reason: String| BusError::Closed { peer: peer.into(), reason };
        self.server.cast(opened).map_err(|e| closed(e.to_string()))?;
        let joined = tokio::time::timeout(GREETING_MAX, async {
            let (node, name) = ready.await.map_err(|_| closed("the session ended before it began".into()))?;
            // What comes before the `@` is what the peer calls itself.
            if name.split('@').next() != Some(peer) {
                return Err(closed(format!("it calls itself `{name}` in its session")));
            }
            Ok(self.gateway_of(node).await)
        });
        let late = |_| BusError::Deadline { peer: peer.into(), within: GREETING_MAX };
        let joined = joined.await.map_err(late).flatten();
        joined.inspect_err(|_| self.sessions.forget(seal))
    }

    /// Groups are told after a session is ready.
    async fn gateway_of(&self, node: u64) -> ActorRef<Frame> {
        loop {
            let joined = self.links.joined.notified();
            let is_there = |id: ActorId| matches!(id, ActorId::Remote { node_id, .. } if node_id == node);
            if let Some(cell) = pg::get_members(&GROUP.into()).into_iter().find(|c| is_there(c.get_id())) {
                return cell.into();
            }
            // The wait is bounded by the caller; a notice that came in between is caught by looking again.
            let _ = tokio::time::timeout(LOOK_AGAIN, joined).await;
        }
    }
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, label: &str, connection: &Connection) -> oneshot::Receiver<(u64, String)> {
        let (sender, receiver) = oneshot::channel();
        let session = Session { waiting: Some(sender), connection: connection.clone() };
        self.all().insert(label.into(), session);
        receiver
    }

    /// The link is over: nobody has to be told when its session is.
    pub(super) fn forget(&self, seal: &Seal) {
        self.all().remove(&label(seal));
    }
}

impl NodeEventSubscription for Sessions {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        // Whoever waits for it hears that it will not come. A link that stands is of no use any more, although its
        // connection may be the best: what holds it has to hear of it.
        let ended = self.all().remove(&session.peer_addr);
        if let Some(Session { connection, .. }) = ended {
            Code::NoSession.close(&connection);
        }
    }

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        let waiting = self.all().get_mut(&session.peer_addr).and_then(|session| session.waiting.take());
        if let Some(waiting) = waiting {
            let name = session.peer_name.map_or_else(String::new, |name| name.name);
            let _ = waiting.send((session.node_id, name));
        }
    }
}

/// A QUIC stream for `ractor_cluster`.
struct Stream {
    send: SendStream,
    recv: RecvStream,
    label: String,
}

impl ClusterBidiStream for Stream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(Guard::new(self.recv)), Box::new(self.send))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

/// A name that no other start of the node has.
pub(super) fn full_name(name: &str, incarnation: u64) -> String {
    format!("{name}-{incarnation}")
}

/// What the stream of a link is called.
fn label(seal: &Seal) -> String {
    hex(seal.get(..8).unwrap_or_default())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Longest frame of `ractor_cluster`: a message, its seal and what is around it.
const FRAME_BYTES_MAX: u64 = 128 << 10;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
