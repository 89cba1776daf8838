//! What happens to whoever knocks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Incoming, ServerConfig, TransportConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::error::Code;
use super::tls::{self, ALPN_CLUSTER, ALPN_JOIN};
use super::{EndpointError, Options, Peer, certified};
use crate::identity::{Admitted, Identity};
use crate::join::JoinDesk;
use crate::quiet::Quiet;
use crate::wire::{Message, write_frame};

/// Decides who comes in.
#[derive(Debug)]
pub(super) struct Gate {
    admitted: Admitted,
    desk: Option<Arc<JoinDesk>>,
    handshakes: Arc<Semaphore>,
    /// While tokens are out.
    joining: Option<Arc<ServerConfig>>,
    options: Options,
    quiet: Quiet,
    strict: Arc<ServerConfig>,
}

/// The first and only message of the listener's first stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome;

impl Message for Welcome {}

impl Gate {
    pub(super) fn new(
        identity: &Identity,
        admitted: Admitted,
        desk: Option<Arc<JoinDesk>>,
        options: &Options,
    ) -> Result<Self, EndpointError> {
        let transport = Arc::new(options.transport_of_strangers()?);
        let failed = |e: rustls::Error| EndpointError::Setup { what: "TLS", reason: e.to_string() };
        let strict = tls::server(identity).map_err(failed)?;
        let joining = match &desk {
            Some(_) => {
                let tls = tls::server_with_joins(identity).map_err(failed)?;
                Some(server_config(tls, options, &transport)?)
            }
            None => None,
        };
        Ok(Self {
            admitted,
            desk,
            handshakes: Arc::new(Semaphore::new(options.handshakes_max)),
            joining,
            options: options.clone(),
            quiet: Quiet::default(),
            strict: server_config(strict, options, &transport)?,
        })
    }

    /// What quinn needs to listen at all; each connection is then given its own.
    pub(super) fn config(&self) -> ServerConfig {
        ServerConfig::clone(&self.strict)
    }

    /// Serves until the endpoint is closed or nobody wants peers any more. Every handshake is a task of its own, so that
    /// a silent client holds up no other.
    pub(super) async fn watch(self: Arc<Self>, socket: quinn::Endpoint, peers: mpsc::Sender<Peer>) {
        loop {
            let incoming = tokio::select! {
                incoming = socket.accept() => incoming,
                () = peers.closed() => None,
            };
            let Some(incoming) = incoming else { break };
            let address = incoming.remote_address();
            let busy = self.handshakes.available_permits() * 2 < self.options.handshakes_max;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                // An answer shows that the address is not made up.
                let _ = incoming.retry();
                continue;
            }
            match self.handshakes.clone().try_acquire_owned() {
                Ok(permit) => drop(tokio::spawn(self.clone().admit(incoming, permit, peers.clone()))),
                Err(_) => {
                    incoming.refuse();
                    if self.quiet.allows(Instant::now()) {
                        let reason = format!("{} others are connecting", self.options.handshakes_max);
                        tracing::warn!(%address, reason, "connection refused");
                    }
                }
            }
        }
        socket.set_server_config(None);
    }

    async fn admit(
        self: Arc<Self>,
        incoming: Incoming,
        _permit: OwnedSemaphorePermit,
        peers: mpsc::Sender<Peer>,
    ) {
        let address = incoming.remote_address();
        if let Err(error) = self.try_admit(incoming, address, peers).await
            && self.quiet.allows(Instant::now())
        {
            tracing::warn!(%address, reason = %error, "connection refused");
        }
    }

    async fn try_admit(
        &self,
        incoming: Incoming,
        address: SocketAddr,
        peers: mpsc::Sender<Peer>,
    ) -> Result<(), EndpointError> {
        let open = self.desk.as_ref().is_some_and(|desk| desk.is_open(SystemTime::now()));
        let within = self.options.handshake_timeout;
        let config = self.joining.as_ref().filter(|_| open).unwrap_or(&self.strict);
        let failed = |e| EndpointError::connection(address, e);
        let connecting = incoming.accept_with(config.clone()).map_err(failed)?;
        let connected = tokio::time::timeout(within, connecting).await;
        let connection =
            connected.map_err(|_| EndpointError::Unreachable { address, within })?.map_err(failed)?;
        match (tls::protocol(&connection), &self.desk) {
            (Some(protocol), _) if protocol == ALPN_CLUSTER => self.welcome(connection, peers).await,
            (Some(protocol), Some(desk)) if protocol == ALPN_JOIN => {
                desk.serve(&connection, within).await;
                Ok(())
            }
            _ => {
                Code::BadCertificate.close(&connection);
                Err(EndpointError::Protocol {
                    address,
                    reason: "it speaks no protocol that is known".to_owned(),
                })
            }
        }
    }

    async fn welcome(&self, connection: Connection, peers: mpsc::Sender<Peer>) -> Result<(), EndpointError> {
        let address = connection.remote_address();
        let passport = certified(&connection).inspect_err(|error| match error {
            EndpointError::NoCertificate { .. } => Code::NoCertificate.close(&connection),
            _ => Code::BadCertificate.close(&connection),
        })?;
        if !self.admitted.contains(passport.fingerprint()) {
            Code::NotAdmitted.close(&connection);
            return Err(EndpointError::not_admitted(&passport));
        }
        let Ok(place) = peers.try_reserve() else {
            Code::Busy.close(&connection);
            return Err(EndpointError::Protocol {
                address,
                reason: "too many peers wait to be accepted".to_owned(),
            });
        };
        self.options.lift_limits(&connection);
        let within = self.options.handshake_timeout;
        let welcomed = async {
            let mut stream =
                connection.open_uni().await.map_err(|e| EndpointError::connection(address, e))?;
            let written = write_frame(&mut stream, &Welcome, within).await;
            written.map_err(|error| EndpointError::Protocol { address, reason: error.to_string() })?;
            // It fails only if the peer has ended the stream, which it will tell by ending the connection.
            let _ = stream.finish();
            Ok::<(), EndpointError>(())
        };
        let late = |_| EndpointError::Unreachable { address, within };
        tokio::time::timeout(within, welcomed).await.map_err(late)??;
        place.send(Peer::new(connection, passport, &self.admitted));
        Ok(())
    }
}

fn server_config(
    tls: rustls::ServerConfig,
    options: &Options,
    transport: &Arc<TransportConfig>,
) -> Result<Arc<ServerConfig>, EndpointError> {
    let tls = QuicServerConfig::try_from(tls);
    let tls = tls.map_err(|e| EndpointError::Setup { what: "TLS", reason: e.to_string() })?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_BYTES * 64)
        .max_incoming(options.handshakes_max * 2)
        // Nodes stay where they are, and the log says where that is.
        .migration(false)
        .transport_config(transport.clone());
    Ok(Arc::new(config))
}

/// What an address may send before its connection is looked at.
const INCOMING_BUFFER_BYTES: u64 = 64 << 10;
