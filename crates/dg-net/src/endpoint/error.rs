//! Why there is no connection, and what the peer is told.

use std::net::SocketAddr;
use std::time::Duration;

use dg_core::ExitCode;
use quinn::{Connection, ConnectionError, VarInt};

use crate::identity::{IdentityError, Name, Passport};

/// Why an endpoint or a connection cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address cannot be used.
    #[error("{address}: {reason}; hint: another address or port, or what holds this one")]
    Address {
        /// To listen on, to dial from or to dial.
        address: SocketAddr,
        /// What the system says.
        reason: String,
    },
    /// A certificate cannot be used: our own, or the peer's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The peer showed no certificate.
    #[error("{address} has no certificate; hint: a node gets one by `dg-cluster join TOKEN`")]
    NoCertificate {
        /// The peer.
        address: SocketAddr,
    },
    /// The peer's certificate was revoked, or never issued by this head.
    #[error("{what}; hint: issue it again, or restore the list (`admitted` in the state folder)")]
    NotAdmitted {
        /// Whose certificate.
        what: String,
    },
    /// A setting cannot work.
    #[error("{setting} cannot be {value}: {reason}")]
    Options {
        /// Which.
        setting: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// The peer does not do what it should.
    #[error("{address}: {reason}")]
    Protocol {
        /// The peer.
        address: SocketAddr,
        /// What it did.
        reason: String,
    },
    /// The peer will not have us.
    #[error("{address} refused: {reason}; hint: {hint}")]
    Refused {
        /// The peer.
        address: SocketAddr,
        /// What it says.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Something that does not depend on the peer.
    #[error("setting up {what} failed: {reason}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// No answer.
    #[error("{address} does not answer within {within:.1?}; hint: is it running, and does UDP pass?")]
    Unreachable {
        /// The peer.
        address: SocketAddr,
        /// How long it was waited for.
        within: Duration,
    },
    /// The peer has not proved what it must.
    #[error("{address} is not trusted: {reason}; hint: {hint}")]
    Untrusted {
        /// The peer.
        address: SocketAddr,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The peer is another one than it should be.
    #[error("this is `{proved}`, not `{claimed}`; hint: a peer is the name in its certificate")]
    WrongPeer {
        /// Who was expected, or who it says it is.
        claimed: String,
        /// The name in its certificate.
        proved: Name,
    },
}

/// What the peer is told when a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Nothing is wrong.
    Bye,
    /// The certificate is not of the kind or name that it must be.
    BadCertificate,
    /// Too many peers at once.
    Busy,
    /// The certificate is not on the list.
    NotAdmitted,
    /// There is no certificate.
    NoCertificate,
    /// Says to be somebody else.
    WrongName,
    /// What went over it has ended by itself.
    NoSession,
    /// It is not wanted any more.
    Dropped,
}

// === impl EndpointError ===

impl EndpointError {
    /// What is wrong, and what to do about it where that is known.
    pub fn parts(&self) -> (String, Option<String>) {
        let text = self.to_string();
        match text.split_once("; hint: ") {
            Some((what, hint)) => (what.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        }
    }

    /// How a program ends because of it.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Identity(_) | Self::Options { .. } => ExitCode::Config,
            _ => ExitCode::Unreachable,
        }
    }

    pub(crate) fn not_admitted(passport: &Passport) -> Self {
        let (role, name, fingerprint) = (passport.role(), passport.name(), passport.fingerprint());
        Self::NotAdmitted {
            what: format!("the certificate {fingerprint} of {role} `{name}` is not admitted"),
        }
    }

    pub(crate) fn connection(address: SocketAddr, error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = printable(&close.reason);
                let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
                let hint = match Code::from_u32(code) {
                    Some(code) => code.hint(),
                    None => "the peer's log has the details",
                };
                Self::Refused { address, reason, hint }
            }
            ConnectionError::ConnectionClosed(close) => {
                let (reason, hint) = (printable(&close.reason), alert_hint(close.error_code.into()));
                let reason = if reason.is_empty() { close.error_code.to_string() } else { reason };
                Self::Refused { address, reason, hint }
            }
            ConnectionError::TransportError(error) => {
                Self::Untrusted { address, hint: alert_hint(error.code.into()), reason: error.to_string() }
            }
            ConnectionError::TimedOut => Self::Protocol {
                address,
                reason: "it fell silent; hint: is it running, and does UDP pass?".to_owned(),
            },
            other => {
                Self::Protocol { address, reason: format!("{other}; hint: the peer's log has the details") }
            }
        }
    }
}

// === impl Code ===

impl Code {
    pub(crate) fn close(self, connection: &Connection) {
        self.close_because(connection, self.reason());
    }

    pub(crate) fn close_because(self, connection: &Connection, reason: &str) {
        // The first reason is the one that counts.
        if connection.close_reason().is_none() {
            connection.close(self.into(), reason.as_bytes());
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Bye => "end",
            Self::BadCertificate => "the certificate is not what it must be",
            Self::Busy => "too many peers at once",
            Self::NotAdmitted => "the certificate is not admitted",
            Self::NoCertificate => "no certificate",
            Self::WrongName => "the name is not that of the certificate",
            Self::NoSession => "the session of the actors has ended",
            Self::Dropped => "not wanted any more",
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Bye => "the peer has ended",
            Self::BadCertificate => "the certificate must come from `dg-cluster certs` or `dg-cluster join`",
            Self::Busy => "try again in a moment",
            Self::NotAdmitted => "it was revoked, or issued by another head: issue it again",
            Self::NoCertificate => "get one by `dg-cluster join TOKEN`",
            Self::WrongName => "a peer must go by the name in its certificate",
            Self::NoSession | Self::Dropped => "connect again",
        }
    }

    fn from_u32(code: u32) -> Option<Self> {
        ALL.into_iter().find(|one| *one as u32 == code)
    }
}

impl From<Code> for VarInt {
    fn from(code: Code) -> Self {
        Self::from_u32(code as u32)
    }
}

/// What to do about a TLS alert, which QUIC carries as 0x100 and its number (RFC 9001, RFC 8446 §6).
fn alert_hint(code: u64) -> &'static str {
    match code.wrapping_sub(0x100) {
        42 => "the certificate must be for the name that is dialled, and in order",
        43 => {
            "a client's certificate cannot serve, and a server's cannot connect: issue it for the right role"
        }
        45 => "renew the certificate (`dg-cluster certs renew`), and compare the clocks",
        48 => "both ends need certificates of the same CA: was the cluster initialised anew?",
        51 => "the certificate was not signed by this cluster's CA: was the cluster initialised anew?",
        70 => "the peer must speak TLS 1.3",
        116 => "get a certificate by `dg-cluster join TOKEN`",
        120 => "the peer speaks another protocol or version, or the join token is used or too old",
        _ => "the peer's log has the details",
    }
}

/// Text from a peer, for a log: bounded, in one line.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const ALL: [Code; 8] = [
    Code::Bye,
    Code::BadCertificate,
    Code::Busy,
    Code::NotAdmitted,
    Code::NoCertificate,
    Code::WrongName,
    Code::NoSession,
    Code::Dropped,
];
