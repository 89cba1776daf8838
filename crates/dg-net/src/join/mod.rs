//! How a node with a token gets its certificate.
//!
//! The token `dgjoin1:HOST:PORT:SHA256:SECRET` says where the head is, which CA it has, and has a secret that works once
//! within its time. The node compares the CA with the token before it sends anything, and makes its key itself. The head
//! answers one message with one message, decided in an order that lets a refused name or a full disk not use up the
//! token.
//!
//! # Layout
//! - [`JoinToken`]; [`JoinDesk`]: the head's side; [`join`]: the node's; [`Refusal`]: the head's "no"
//! - [`TokenBook`]: where the tokens are kept, in memory or in a file; `tokens`: which are out, and what they are good for
//! - `rules`: who has guessed too often
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

mod book;
mod client;
mod desk;
mod rules;
mod token;
mod tokens;

pub use book::TokenBook;
pub use client::join;
pub use desk::JoinDesk;
pub use rules::Refusal;
pub use token::{BadToken, JoinToken};
pub use tokens::Token;

use std::fmt;
use std::time::Duration;

use dg_core::ExitCode;
use serde::{Deserialize, Serialize};

use crate::endpoint::EndpointError;
use crate::identity::{BadName, IdentityError};
use crate::wire::{Message, WireError};

/// Why a node has not joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The head has answered with something that is no certificate for this node.
    #[error("the head's answer: {0}")]
    Answer(IdentityError),
    /// No connection.
    #[error(transparent)]
    Connection(#[from] EndpointError),
    /// A key or request could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The name cannot be one.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The head said no.
    #[error("the head refused: {0}; hint: {hint}", hint = .0.hint())]
    Refused(Refusal),
    /// The host of the token has no address.
    #[error("`{host}` has no address: {reason}; hint: make a token with an address that this node can reach")]
    Resolve {
        /// The host and port.
        host: String,
        /// Why.
        reason: String,
    },
    /// The answer did not come.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl JoinError {
    /// How a program ends because of it.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Connection(error) => error.exit_code(),
            Self::Identity(_) | Self::Name(_) | Self::Refused(_) => ExitCode::Config,
            Self::Answer(_) | Self::Resolve { .. } | Self::Wire(_) => ExitCode::Unreachable,
        }
    }
}

/// What the node says.
#[derive(Serialize, Deserialize)]
struct Ask {
    name: String,
    /// The certificate request, in DER.
    request: Vec<u8>,
    secret: String,
}

impl Message for Ask {}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the head says.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Both in PEM.
    Granted {
        certificate: String,
        ca: String,
    },
    Refused(Refusal),
}

impl Message for Answer {}

/// How long a token lives if nothing else is said.
pub const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
