//! The control plane: actors of two processes that speak over one QUIC stream, and larger things on streams beside it.
//!
//! A [`Bus`] joins the actors of this process with those of peers, as a star: nodes have a connection with the head and
//! none with each other. What comes of a connection is a [`Link`]: it can [cast](Link::cast) and [call](Link::call)
//! small messages (at most [`BYTES_MAX`](crate::wire::BYTES_MAX)) and send [bulk](Link::bulk), and gives
//! what the peer sends, in order for each of the kinds.
//!
//! Inside, `ractor_cluster` carries the messages between one gateway actor per process. It takes a stream as it is
//! given one, so that who the peer is, is settled before: by the certificates ([`endpoint`](crate::endpoint)), then by
//! a [greeting](Guest) in which both ends compare their versions and the head says whether it takes the node. Then five
//! of its properties matter here, and are kept away from everybody else:
//! - a reference to a remote actor that is stopped or killed takes the whole session down: a link can only cast and call;
//! - it elects one session per node name, and an old one counts until it times out: names carry an incarnation;
//! - it opens a TCP port of its own: that is closed before anybody can connect to it;
//! - every peer may speak to every actor: messages carry a seal that only the two ends of the link know;
//! - it makes an actor for each that a peer announces: `guard` reads along, and ends the session of who exaggerates.
//!
//! # Layout
//! - [`Bus`]: this process's end; `node`: its node server; `gateway`: its actor
//! - [`Guest`], [`greet`]: the greeting; [`Link`]: what comes of it; `bulk`: streams beside it
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

mod bulk;
mod gateway;
mod greeting;
mod guard;
mod link;
mod node;

pub use greeting::{Guest, Hello, PROTOCOL, greet};
pub use link::{Link, Received, Reply};
pub use node::Bus;

use crate::endpoint::EndpointError;
use crate::wire::WireError;
use dg_core::ExitCode;
use std::time::Duration;

/// Why there is no link, or no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The actors do not start.
    #[error("cannot start the control actors: {0}")]
    Start(String),
    /// The connection has ended.
    #[error("the connection to `{peer}` has ended: {reason}")]
    Closed {
        /// Its name.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The peer does not speak this protocol.
    #[error(
        "`{peer}` speaks protocol {theirs} (version {build}), this program {PROTOCOL}; hint: run the same version on all nodes"
    )]
    Protocol {
        /// Its name.
        peer: String,
        /// What it speaks.
        theirs: u32,
        /// Its version.
        build: String,
    },
    /// The head does not take this node.
    #[error("`{peer}` refuses: {why}")]
    Refused {
        /// Who.
        peer: String,
        /// Why.
        why: String,
    },
    /// The peer has not answered in time.
    #[error("`{peer}` has not answered within {within:.1?}")]
    Deadline {
        /// Its name.
        peer: String,
        /// The time that it had.
        within: Duration,
    },
    /// What the peer sent is no message, or what it is sent is too long.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Who the peer is.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl BusError {
    /// How a program ends because of it.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Protocol { .. } | Self::Refused { .. } => ExitCode::Config,
            _ => ExitCode::Unreachable,
        }
    }
}

/// How long a greeting, and the joining of the actors after it, may take.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// Largest body of a bulk message.
pub const BULK_BYTES_MAX: usize = 512 << 20;
