//! What a certificate says about its holder.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;

/// The name of a node or client: lower-case letters, digits and inner hyphens, at most 63 characters: a label of the DNS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// What cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` cannot be a name: {reason}; hint: lower-case letters, digits and inner hyphens, as in `node-1`"
)]
pub struct BadName {
    /// As given, cut after some characters.
    pub name: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Submits jobs; cannot serve.
    Client,
    /// The one head of a cluster.
    Head,
    /// Runs ranks.
    Node,
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// What a certificate says, once it is known to be one of this cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passport {
    fingerprint: Fingerprint,
    name: Name,
    not_after: SystemTime,
    not_before: SystemTime,
    role: Role,
}

// === impl Name ===

impl Name {
    /// Checks a name of a node or client. `head` is not for them.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let name = Self::parse_any(text)?;
        if name.is_head() {
            return Err(BadName { name: name.0, reason: "it is reserved for the head" });
        }
        Ok(name)
    }

    /// The head's name.
    pub fn head() -> Self {
        Self(HEAD.to_owned())
    }

    /// Whether it is the head's name.
    pub fn is_head(&self) -> bool {
        self.0 == HEAD
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As it stands in a certificate.
    pub fn domain(&self) -> String {
        format!("{}{SUFFIX}", self.0)
    }

    fn parse_any(text: &str) -> Result<Self, BadName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let reason = if text.is_empty() {
            "it is empty"
        } else if text.len() > NAME_BYTES_MAX {
            "it is longer than 63 characters"
        } else if !text.chars().all(allowed) {
            "it has other characters"
        } else if text.starts_with('-') || text.ends_with('-') {
            "it begins or ends with a hyphen"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(BadName { name: text.chars().take(NAME_BYTES_MAX + 1).collect(), reason })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::parse(text)
    }
}

// === impl Role ===

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Head => "head",
            Self::Node => "node",
        })
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl From<Fingerprint> for [u8; 32] {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NOT_HEX: &str = "not 64 hexadecimal digits";
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NOT_HEX);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NOT_HEX)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NOT_HEX)?;
        }
        Ok(Self(bytes))
    }
}

// === impl Passport ===

impl Passport {
    /// Reads a certificate. Who signed it, and whether it is valid now, is not looked at here.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let refused = |what: &str| IdentityError::Certificate {
            what: what.to_owned(),
            hint: "only certificates made by `dg-cluster` for this cluster are taken",
        };
        let Ok((rest, parsed)) = X509Certificate::from_der(certificate) else {
            return Err(refused("cannot be read"));
        };
        if !rest.is_empty() {
            return Err(refused("is followed by other bytes"));
        }
        let names = parsed.subject_alternative_name().map_err(|_| refused("has two lists of names"))?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let [GeneralName::DNSName(domain)] = names else {
            return Err(refused("has not exactly one name"));
        };
        let name = domain.strip_suffix(SUFFIX).and_then(|name| Name::parse_any(name).ok());
        let Some(name) = name else {
            return Err(refused(&format!("is for `{}`", domain.chars().take(80).collect::<String>())));
        };
        let purposes = parsed.extended_key_usage().map_err(|_| refused("has two lists of purposes"))?;
        let purposes = purposes.map(|purposes| (purposes.value.client_auth, purposes.value.server_auth));
        let role = match purposes {
            Some((true, true)) if name.is_head() => Role::Head,
            Some((true, true)) => Role::Node,
            Some((true, false)) if !name.is_head() => Role::Client,
            _ => return Err(refused("has purposes that neither a node nor a client has")),
        };
        let (not_before, not_after) = times(&parsed);
        Ok(Self { fingerprint: Fingerprint::of(certificate), name, not_after, not_before, role })
    }

    /// The holder.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// What it is for.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Of the certificate.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// When it begins and ends to be valid.
    pub const fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }
}

/// When a certificate of any kind begins and ends to be valid.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), IdentityError> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) = parsed.map_err(|e| IdentityError::crypto("reading the certificate", e))?;
    Ok(times(&parsed))
}

fn times(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or_default();
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let validity = &certificate.validity;
    (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()))
}

const HEAD: &str = "head";
const NAME_BYTES_MAX: usize = 63;
const SUFFIX: &str = ".dg-cluster";
