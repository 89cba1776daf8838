//! QUIC endpoints on which both ends have proved who they are.
//!
//! TLS 1.3 with certificates on both sides, all of one CA ([`identity`](crate::identity)). A [`Peer`] comes out of
//! [`Listener::accept`] and [`Endpoint::connect`] only after its certificate was verified, its name read from it and its
//! fingerprint found among those admitted; until then no stream of it is opened or read. Every refusal is one line in
//! the log with the address and the reason (of more than a hundred in a second, only their number).
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate. A listener therefore says welcome on a
//! stream of its own, and `connect` returns when that has come: a peer that was refused learns it, with the reason.
//!
//! # Layout
//! - [`Endpoint`], [`Listener`], [`Peer`]; [`Options`]: times and limits; [`EndpointError`]
//! - `tls`: the configurations of rustls; `gate`: what happens to whoever knocks
//!
//! ```
//! use dg_net::endpoint::{Endpoint, Options};
//! use dg_net::identity::{Admitted, Ca, Name, Role};
//! use std::time::SystemTime;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (now, options) = (SystemTime::now(), Options::default());
//! let ca = Ca::create(now)?;
//! let head = ca.issue(&Name::head(), Role::Head, now)?;
//! let node = ca.issue(&Name::parse("node-1")?, Role::Node, now)?;
//!
//! let loopback = "127.0.0.1:0".parse()?;
//! let (endpoint, mut listener) =
//!     Endpoint::listener(loopback, &head, Admitted::everyone(), None, options.clone())?;
//! let dialer = Endpoint::dialer(loopback, &node, Admitted::everyone(), options)?;
//! let to_head = dialer.connect(endpoint.local_addr()?, &Name::head()).await?;
//! let to_node = listener.accept().await.ok_or("closed")?;
//! assert_eq!(to_node.name().as_str(), "node-1");
//! assert_eq!(to_head.role(), Role::Head);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

mod error;
mod gate;
mod options;
mod peer;
pub(crate) mod tls;

pub(crate) use error::Code;
pub use error::EndpointError;
pub use options::Options;
pub use peer::Peer;
pub use quinn::{RecvStream, SendStream};
pub use tls::{ALPN_CLUSTER, ALPN_JOIN};

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, EndpointConfig, TokioRuntime, TransportConfig};
use tokio::sync::mpsc;

use crate::identity::{Admitted, Identity, Name, Passport, Role};
use crate::join::JoinDesk;
use crate::wire::read_frame;
use gate::{Gate, Welcome};

/// A socket and an identity, from which connections to peers are made.
#[derive(Clone, Debug)]
pub struct Endpoint {
    admitted: Admitted,
    client: ClientConfig,
    options: Options,
    socket: quinn::Endpoint,
}

/// The peers that connected to an endpoint.
#[derive(Debug)]
pub struct Listener {
    peers: mpsc::Receiver<Peer>,
}

// === impl Endpoint ===

impl Endpoint {
    /// An endpoint that only dials. `local` is the address to dial from, as in `0.0.0.0:0`. Needs a tokio runtime.
    pub fn dialer(
        local: SocketAddr,
        identity: &Identity,
        admitted: Admitted,
        options: Options,
    ) -> Result<Self, EndpointError> {
        let (client, transport) = configure(identity, &options)?;
        let client = client_config(client, &transport)?;
        Ok(Self { admitted, client, socket: bind(local, &options)?, options })
    }

    /// An endpoint that also listens. With a `desk` it gives certificates to nodes that bring a token, while the desk has
    /// tokens out. Needs a tokio runtime.
    pub fn listener(
        local: SocketAddr,
        identity: &Identity,
        admitted: Admitted,
        desk: Option<Arc<JoinDesk>>,
        options: Options,
    ) -> Result<(Self, Listener), EndpointError> {
        let (client, transport) = configure(identity, &options)?;
        let client = client_config(client, &transport)?;
        let gate = Gate::new(identity, admitted.clone(), desk, &options)?;
        let socket = bind(local, &options)?;
        socket.set_server_config(Some(gate.config()));
        let (sender, peers) = mpsc::channel(options.peers_waiting_max);
        tokio::spawn(Arc::new(gate).watch(socket.clone(), sender));
        Ok((Self { admitted, client, options, socket }, Listener { peers }))
    }

    /// Connects to the node or head at `address` if it is `expected`, and has let us in. A failure is in the log, too.
    pub async fn connect(&self, address: SocketAddr, expected: &Name) -> Result<Peer, EndpointError> {
        let connected = self.try_connect(address, expected).await;
        if let Err(error) = &connected {
            tracing::warn!(%address, %expected, reason = %error, "no connection");
        }
        connected
    }

    /// The address of its socket.
    pub fn local_addr(&self) -> Result<SocketAddr, EndpointError> {
        let address = self.socket.local_addr();
        address.map_err(|e| EndpointError::Setup { what: "its address", reason: e.to_string() })
    }

    /// Ends all connections and waits until the peers know, so that they need not wait for their time-out.
    pub async fn close(&self, reason: &str) {
        self.socket.close(Code::Bye.into(), reason.as_bytes());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.socket.wait_idle()).await;
    }

    /// [`connect`](Self::connect) for who tells a failure himself.
    pub async fn try_connect(&self, address: SocketAddr, expected: &Name) -> Result<Peer, EndpointError> {
        let within = self.options.handshake_timeout;
        let connection = dial(&self.socket, &self.client, address, expected, within).await?;
        let passport = certified(&connection).inspect_err(|_| Code::BadCertificate.close(&connection))?;
        // TLS has compared the name. That it was not a client's certificate follows from its purposes.
        if passport.name() != expected || passport.role() == Role::Client {
            Code::BadCertificate.close(&connection);
            return Err(EndpointError::WrongPeer {
                claimed: expected.to_string(),
                proved: passport.name().clone(),
            });
        }
        if !self.admitted.contains(passport.fingerprint()) {
            Code::NotAdmitted.close(&connection);
            return Err(EndpointError::not_admitted(&passport));
        }
        let welcomed = async {
            let mut stream =
                connection.accept_uni().await.map_err(|e| EndpointError::connection(address, e))?;
            let welcome: Result<Welcome, _> = read_frame(&mut stream, within).await;
            welcome.map_err(|error| match connection.close_reason() {
                Some(reason) => EndpointError::connection(address, reason),
                None => EndpointError::Protocol { address, reason: error.to_string() },
            })
        };
        let late = |_| EndpointError::Unreachable { address, within };
        tokio::time::timeout(within, welcomed).await.map_err(late)??;
        Ok(Peer::new(connection, passport, &self.admitted))
    }
}

// === impl Listener ===

impl Listener {
    /// The next peer that proved who it is. `None` after the endpoint was closed. Peers wait here, up to
    /// [`Options::peers_waiting_max`]; those that come then are refused.
    pub async fn accept(&mut self) -> Option<Peer> {
        self.peers.recv().await
    }
}

/// A QUIC connection to a server that the configuration trusts and that is called `expected`.
pub(crate) async fn dial(
    socket: &quinn::Endpoint,
    config: &ClientConfig,
    address: SocketAddr,
    expected: &Name,
    within: Duration,
) -> Result<Connection, EndpointError> {
    let connecting = socket.connect_with(config.clone(), address, &expected.domain());
    let connecting = connecting.map_err(|e| EndpointError::Address { address, reason: e.to_string() })?;
    let begun = Instant::now();
    match tokio::time::timeout(within, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => {
            Err(EndpointError::Unreachable { address, within: begun.elapsed() })
        }
        Ok(Err(error)) => Err(EndpointError::connection(address, error)),
    }
}

/// A socket without a server. Its buffers are asked to be large, because bursts overrun the usual ones; the system may
/// give less.
pub(crate) fn bind(local: SocketAddr, options: &Options) -> Result<quinn::Endpoint, EndpointError> {
    let failed = |e: std::io::Error| EndpointError::Address { address: local, reason: e.to_string() };
    let socket = UdpSocket::bind(local).map_err(failed)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, options.socket_buffer_bytes);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, options.socket_buffer_bytes);
    quinn::Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(failed)
}

/// A client's configuration for quinn.
pub(crate) fn client_config(
    tls: rustls::ClientConfig,
    transport: &Arc<TransportConfig>,
) -> Result<ClientConfig, EndpointError> {
    let tls = QuicClientConfig::try_from(tls);
    let tls = tls.map_err(|e| EndpointError::Setup { what: "TLS", reason: e.to_string() })?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport.clone());
    Ok(config)
}

fn configure(
    identity: &Identity,
    options: &Options,
) -> Result<(rustls::ClientConfig, Arc<TransportConfig>), EndpointError> {
    identity.check(SystemTime::now())?;
    let transport = Arc::new(options.transport()?);
    let client =
        tls::client(identity).map_err(|e| EndpointError::Setup { what: "TLS", reason: e.to_string() })?;
    Ok((client, transport))
}

/// What the peer's certificate says. TLS has verified it.
fn certified(connection: &Connection) -> Result<Passport, EndpointError> {
    let certificate = tls::peer_certificate(connection);
    let certificate =
        certificate.ok_or_else(|| EndpointError::NoCertificate { address: connection.remote_address() })?;
    Ok(Passport::read(&certificate)?)
}

const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
