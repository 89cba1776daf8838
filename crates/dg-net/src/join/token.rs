//! The token as text.

use std::fmt;
use std::str::FromStr;

use crate::identity::Fingerprint;

/// `dgjoin1:HOST:PORT:SHA256:SECRET`. As text it has the secret, in debug output it has not.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub(super) ca: Fingerprint,
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) secret: String,
}

/// What is not a token. The text is not repeated: it may be a secret with a typing error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: {0}; hint: copy it whole, dgjoin1:HOST:PORT:SHA256:SECRET")]
pub struct BadToken(&'static str);

impl JoinToken {
    /// Where the head listens, as `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The CA that the head must have.
    pub const fn ca(&self) -> Fingerprint {
        self.ca
    }

    /// From parts. The host must be one that [`FromStr`] reads again.
    pub(super) fn new(host: &str, port: u16, ca: Fingerprint, secret: String) -> Result<Self, BadToken> {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let good = match inner {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
        };
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !good {
            return Err(BadToken("the host is not a name, an IPv4 address or an IPv6 address in brackets"));
        }
        if port == 0 {
            return Err(BadToken("the port is 0"));
        }
        Ok(Self { ca, host: host.to_owned(), port, secret })
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(BadToken("it does not begin with dgjoin1:"))?;
        let mut parts = rest.rsplitn(4, ':');
        let (Some(secret), Some(ca), Some(port), Some(host)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadToken("it has not five parts"));
        };
        if secret.len() != SECRET_BYTES * 2 || !secret.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadToken("the secret is not 32 hexadecimal digits"));
        }
        let ca = ca.parse().map_err(|_| BadToken("the hash of the CA is not 64 hexadecimal digits"))?;
        let port = port.parse().map_err(|_| BadToken("the port is not a number"))?;
        Self::new(host, port, ca, secret.to_ascii_lowercase())
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:{}:{}:{}", self.host, self.port, self.ca, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret not shown)", self.address())
    }
}

/// Random bytes in a secret; it is written in hexadecimal.
pub(super) const SECRET_BYTES: usize = 16;

const HOST_BYTES_MAX: usize = 255;
const PREFIX: &str = "dgjoin1:";
