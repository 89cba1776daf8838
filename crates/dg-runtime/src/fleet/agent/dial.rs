//! The way to the head: dialled again and again until there is one.

use super::super::protocol::{AgentFacts, NodeSpec};
use super::actor::{GONE, Message};
use super::speed::Processors;
use super::{AgentArgs, AgentError, REDIAL};
use crate::logic::cluster::Stamp;
use dg_core::ExitCode;
use dg_net::bus::{self, BusError, Link};
use dg_net::endpoint::Endpoint;
use dg_net::identity::Name;
use dg_net::wire;
use ractor::ActorRef;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, PoisonError};

/// What the head is told when it is greeted: ranks that run, and what they were started for.
pub(super) type Running = Arc<Mutex<(Vec<(u16, Stamp)>, Option<NodeSpec>)>>;

/// Dials for ever; ends when the head refuses for good, or the agent is gone.
pub(super) async fn dial(
    args: AgentArgs,
    endpoint: Endpoint,
    incarnation: u64,
    running: Running,
    actor: ActorRef<Message>,
) -> AgentError {
    let mut pause = REDIAL.0;
    let processors = match tokio::task::spawn_blocking(Processors::look).await {
        Ok(processors) => processors,
        Err(error) => return AgentError::System(error.to_string()),
    };
    loop {
        let running = running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match greet(&args, &endpoint, incarnation, processors, running).await {
            Ok((bus, link, spec, term)) => {
                pause = REDIAL.0;
                if actor.cast(Message::Connected(link.clone(), Box::new(spec), term)).is_err() {
                    return AgentError::System(GONE.into());
                }
                while let Some(received) = link.receive().await {
                    let _ = actor.cast(Message::Heard(received));
                }
                let reason = link.close_reason().unwrap_or_else(|| "the head left".into());
                let _ = actor.cast(Message::Lost(reason));
                bus.stop();
            }
            Err(error) if is_final(&error) => return error.into(),
            Err(error) => tracing::info!(%error, head = %args.head, "the head is not there yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL.1);
    }
}

/// Versions do not change while the agent runs.
fn is_final(error: &BusError) -> bool {
    matches!(error, BusError::Protocol { .. }) && error.exit_code() == ExitCode::Config
}

async fn greet(
    args: &AgentArgs,
    endpoint: &Endpoint,
    incarnation: u64,
    processors: Processors,
    (running, spec): (Vec<(u16, Stamp)>, Option<NodeSpec>),
) -> Result<(bus::Bus, Link, NodeSpec, u64), BusError> {
    let unknown = |why: String| BusError::Closed { peer: args.head.clone(), reason: why };
    let head = args.head.clone();
    let found = tokio::task::spawn_blocking(move || head.to_socket_addrs().map(|mut all| all.next()));
    let address = found.await.map_err(|e| unknown(e.to_string()))?.map_err(|e| unknown(e.to_string()))?;
    let address = address.ok_or_else(|| unknown("no such host".into()))?;
    let peer = endpoint.connect(address, &Name::head()).await?;
    let facts = AgentFacts {
        pid: std::process::id(),
        memory_bytes: crate::memory::of_host(),
        cores: processors.cores,
        core_flops: processors.core_flops,
        running,
        spec,
    };
    let (bus, link, spec) = bus::greet(peer, args.name.as_str(), incarnation, wire::encode(&facts)?).await?;
    let term = bus.head_incarnation();
    Ok((bus, link, wire::decode(&spec)?, term))
}
