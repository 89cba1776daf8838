//! Which tokens are out, and who has guessed too often. No clock, no socket: time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::identity::Name;

/// The head's "no" to a node that wants to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The certificate request is not one.
    #[error("the certificate request cannot be used")]
    BadRequest,
    /// The token's time is over.
    #[error("the token is too old")]
    Expired,
    /// The head could not sign or save.
    #[error("the head could not make the certificate")]
    Failed,
    /// Not a name, the head's, another one than the token is for, or taken.
    #[error("the name cannot be had with this token")]
    Name,
    /// Wrong tokens from this address, one after the other.
    #[error("too many wrong tokens came from this address")]
    TooManyAttempts,
    /// No such token.
    #[error("the token is not known")]
    UnknownToken,
    /// The token has done its work.
    #[error("the token was used")]
    Used,
}

/// The tokens of a head, and the failures of a minute.
#[derive(Debug, Default)]
pub(super) struct Rules {
    failures: HashMap<IpAddr, Vec<SystemTime>>,
    tokens: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    expires: SystemTime,
    /// SHA-256 of the secret: whoever reads the head's memory dump cannot join by it.
    hash: [u8; 32],
    /// The name that it is for; any that is free without.
    name: Option<Name>,
    used: bool,
}

/// A token that is as good as used, once [`Rules::burn`] was called.
#[derive(Debug)]
pub(super) struct Match {
    hash: [u8; 32],
    /// The name that it was made for.
    pub(super) bound: bool,
    pub(super) name: Name,
}

impl Refusal {
    /// What to do.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::BadRequest => "both ends must run the same version",
            Self::Expired | Self::UnknownToken | Self::Used => {
                "make another one on the head: `dg-cluster token create`"
            }
            Self::Failed => "the head's log has the details; the token can be used again",
            Self::Name => "take the name that the token is for, or a free one; the token can be used again",
            Self::TooManyAttempts => "wait a minute",
        }
    }
}

impl Rules {
    /// Notes a new token. `false` if too many are out.
    pub(super) fn add(
        &mut self,
        secret: &str,
        name: Option<Name>,
        expires: SystemTime,
        now: SystemTime,
    ) -> bool {
        // Used and old ones are kept for a while, so that whoever brings them learns why they do not work.
        self.tokens.retain(|token| token.expires + KEPT > now);
        if self.tokens.len() >= TOKENS_MAX {
            self.tokens.retain(|token| !token.used && token.expires > now);
        }
        if self.tokens.len() >= TOKENS_MAX {
            return false;
        }
        self.tokens.push(Token { expires, hash: hash(secret), name, used: false });
        true
    }

    /// Whether any token can be used.
    pub(super) fn is_open(&self, now: SystemTime) -> bool {
        self.tokens.iter().any(|token| !token.used && token.expires > now)
    }

    /// Looks at a token that comes from `from`. The name is looked at last: only who has a token learns about names.
    pub(super) fn check(
        &mut self,
        secret: &str,
        name: &str,
        from: IpAddr,
        now: SystemTime,
    ) -> Result<Match, Refusal> {
        if self.too_many_failures(from, now) {
            return Err(Refusal::TooManyAttempts);
        }
        let hash = hash(secret);
        // All are compared, whole, whichever is the one.
        let mut found = None;
        for token in &self.tokens {
            if bool::from(token.hash.ct_eq(&hash)) {
                found = Some(token);
            }
        }
        let refusal = match found {
            None => Refusal::UnknownToken,
            Some(token) if token.used => Refusal::Used,
            Some(token) if token.expires <= now => Refusal::Expired,
            Some(token) => match Name::parse(name) {
                Ok(name) if token.name.as_ref().is_none_or(|bound| *bound == name) => {
                    return Ok(Match { hash, bound: token.name.is_some(), name });
                }
                _ => Refusal::Name,
            },
        };
        self.note_failure(from, now);
        Err(refusal)
    }

    /// Uses the token up.
    pub(super) fn burn(&mut self, matched: &Match) {
        for token in self.tokens.iter_mut().filter(|token| token.hash == matched.hash) {
            token.used = true;
        }
    }

    /// Notes a failure after [`check`](Self::check).
    pub(super) fn note_failure(&mut self, from: IpAddr, now: SystemTime) {
        if self.failures.len() >= ADDRESSES_MAX {
            self.failures.retain(|_, times| times.iter().any(|time| is_recent(*time, now)));
        }
        if self.failures.len() < ADDRESSES_MAX || self.failures.contains_key(&network(from)) {
            self.failures.entry(network(from)).or_default().push(now);
        }
    }

    fn too_many_failures(&mut self, from: IpAddr, now: SystemTime) -> bool {
        let from = network(from);
        let Some(times) = self.failures.get_mut(&from) else {
            // So many addresses with failures within a minute are an attack; a good token can wait.
            return self.failures.len() >= ADDRESSES_MAX
                && !self.failures.values().flatten().any(|time| !is_recent(*time, now));
        };
        times.retain(|time| is_recent(*time, now));
        times.len() >= FAILURES_PER_MINUTE_MAX
    }
}

/// Whoever has an IPv6 address has the 2^64 beside it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// A clock that was set back makes no failure last.
fn is_recent(time: SystemTime, now: SystemTime) -> bool {
    now.duration_since(time).is_ok_and(|age| age < WINDOW)
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

const ADDRESSES_MAX: usize = 4096;
const FAILURES_PER_MINUTE_MAX: usize = 5;
const KEPT: Duration = Duration::from_secs(24 * 3600);
const TOKENS_MAX: usize = 4096;
const WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn check(rules: &mut Rules, secret: &str, name: &str, from: &str, now: u64) -> Result<(), Refusal> {
        rules.check(secret, name, from.parse().unwrap(), after(now)).map(|matched| rules.burn(&matched))
    }

    #[test]
    fn a_token_works_once_for_its_name_in_its_time() {
        let mut rules = Rules::default();
        let bound = Some(Name::parse("node-1").unwrap());
        assert!(!rules.is_open(after(0)));
        assert!(rules.add("a", bound, after(100), after(0)));
        assert!(rules.add("b", None, after(100), after(0)));
        assert_eq!(check(&mut rules, "c", "node-1", "10.0.0.1", 1), Err(Refusal::UnknownToken));
        assert_eq!(check(&mut rules, "a", "node-2", "10.0.0.1", 1), Err(Refusal::Name));
        assert_eq!(check(&mut rules, "a", "head", "10.0.0.1", 1), Err(Refusal::Name));
        assert_eq!(check(&mut rules, "a", "node-1", "10.0.0.1", 1), Ok(()));
        assert_eq!(check(&mut rules, "a", "node-1", "10.0.0.1", 1), Err(Refusal::Used));
        assert!(rules.is_open(after(99)));
        assert!(!rules.is_open(after(100)));
        assert_eq!(check(&mut rules, "b", "node-3", "10.0.0.1", 100), Err(Refusal::Expired));
    }

    #[test]
    fn five_failures_a_minute_are_enough() {
        let mut rules = Rules::default();
        assert!(rules.add("a", None, after(1000), after(0)));
        for _ in 0..FAILURES_PER_MINUTE_MAX {
            assert_eq!(check(&mut rules, "b", "n", "fd00::1", 0), Err(Refusal::UnknownToken));
        }
        assert_eq!(check(&mut rules, "a", "n", "fd00::2", 59), Err(Refusal::TooManyAttempts));
        assert_eq!(check(&mut rules, "b", "n", "fd00:0:0:1::1", 59), Err(Refusal::UnknownToken));
        assert_eq!(check(&mut rules, "a", "n", "fd00::2", 60), Ok(()));
    }

    #[test]
    fn tables_do_not_grow() {
        let mut rules = Rules::default();
        for number in 0..3 * ADDRESSES_MAX as u32 {
            let from = std::net::Ipv4Addr::from_bits(number).to_string();
            let refused = check(&mut rules, "b", "n", &from, u64::from(number) / 1000);
            assert!(refused.is_err());
        }
        assert!(rules.failures.len() <= ADDRESSES_MAX);
        // When the minute is over, others are heard again.
        assert_eq!(check(&mut rules, "b", "n", "99.0.0.1", 100), Err(Refusal::UnknownToken));
        for number in 0..TOKENS_MAX {
            assert!(rules.add(&number.to_string(), None, after(10), after(0)));
        }
        assert!(!rules.add("more", None, after(10), after(0)));
        assert!(rules.add("more", None, after(30), after(20)));
    }
}
