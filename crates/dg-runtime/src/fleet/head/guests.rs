//! Peers at the head's door.

use super::actor::Message;
use super::clients;
use crate::fleet::protocol::{AgentFacts, NodeSpec};
use dg_net::bus::{Bus, Guest, Received};
use dg_net::endpoint::{Listener, Peer};
use dg_net::identity::Role;
use dg_net::wire;
use ractor::ActorRef;
use tokio::sync::oneshot;

/// What the actor says about a node that has greeted.
pub(super) type Admission = Result<NodeSpec, String>;

/// Serves everybody who comes, until the endpoint is closed.
pub(super) async fn serve(mut listener: Listener, bus: Bus, term: u64, actor: ActorRef<Message>) {
    while let Some(peer) = listener.accept().await {
        match peer.role() {
            Role::Client => drop(tokio::spawn(clients::serve(peer, actor.clone()))),
            _ => drop(tokio::spawn(node(peer, bus.clone(), term, actor.clone()))),
        }
    }
}

async fn node(peer: Peer, bus: Bus, term: u64, actor: ActorRef<Message>) {
    let name = peer.name().to_string();
    let guest = match Guest::hear(peer).await {
        Ok(guest) => guest,
        Err(error) => return tracing::warn!(node = name, %error, "node refused"),
    };
    let incarnation = guest.hello().incarnation;
    let facts = match wire::decode::<AgentFacts>(&guest.hello().facts) {
        Ok(facts) => facts,
        Err(error) => return guest.refuse(&error.to_string()).await,
    };
    let (answer, admission) = oneshot::channel();
    if actor.cast(Message::Guest(name.clone(), incarnation, answer)).is_err() {
        return;
    }
    let spec = match admission.await {
        Ok(Ok(spec)) => spec,
        Ok(Err(why)) => return guest.refuse(&why).await,
        Err(_) => return,
    };
    let spec = match wire::encode(&spec) {
        Ok(spec) => spec,
        Err(error) => return guest.refuse(&error.to_string()).await,
    };
    let link = match guest.take(&bus, term, spec).await {
        Ok(link) => link,
        Err(error) => return tracing::warn!(node = name, %error, "node lost while it joined"),
    };
    let joined = Message::Joined(name.clone(), incarnation, Box::new(facts), link.clone());
    if actor.cast(joined).is_err() {
        return;
    }
    while let Some(received) = link.receive().await {
        let said = match received {
            Received::Cast(bytes) => Message::Said(name.clone(), incarnation, bytes, Default::default()),
            Received::Bulk(bytes, body) => Message::Said(name.clone(), incarnation, bytes, body),
            Received::Call(..) => continue,
        };
        if actor.cast(said).is_err() {
            return;
        }
    }
    let reason = link.close_reason().unwrap_or_else(|| TOO_MANY.into());
    link.close(TOO_MANY);
    let _ = actor.cast(Message::Closed(name, incarnation, reason));
}

/// The connection lives, but more came over it than was read.
const TOO_MANY: &str = "too many messages";
