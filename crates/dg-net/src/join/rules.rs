//! Who has guessed too often. No clock, no socket: time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

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

/// The failures of a minute.
#[derive(Debug, Default)]
pub(super) struct Rules {
    failures: HashMap<IpAddr, Vec<SystemTime>>,
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
    /// Whether somebody at `from` may try a token. Asked before anything else is looked at.
    pub(super) fn check(&mut self, from: IpAddr, now: SystemTime) -> Result<(), Refusal> {
        match self.too_many_failures(from, now) {
            true => Err(Refusal::TooManyAttempts),
            false => Ok(()),
        }
    }

    /// Notes that what came from `from` was refused.
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

const ADDRESSES_MAX: usize = 4096;
const FAILURES_PER_MINUTE_MAX: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    /// Somebody tries a token that is good, or not.
    fn attempt(rules: &mut Rules, good: bool, from: &str, now: u64) -> Result<(), Refusal> {
        let from = from.parse().unwrap();
        rules.check(from, after(now))?;
        if !good {
            rules.note_failure(from, after(now));
            return Err(Refusal::UnknownToken);
        }
        Ok(())
    }

    #[test]
    fn five_failures_a_minute_are_enough() {
        let mut rules = Rules::default();
        for _ in 0..FAILURES_PER_MINUTE_MAX {
            assert_eq!(attempt(&mut rules, false, "fd00::1", 0), Err(Refusal::UnknownToken));
        }
        assert_eq!(attempt(&mut rules, true, "fd00::2", 59), Err(Refusal::TooManyAttempts));
        assert_eq!(attempt(&mut rules, false, "fd00:0:0:1::1", 59), Err(Refusal::UnknownToken));
        assert_eq!(attempt(&mut rules, true, "fd00::2", 60), Ok(()));
    }

    #[test]
    fn the_table_does_not_grow() {
        let mut rules = Rules::default();
        for number in 0..3 * ADDRESSES_MAX as u32 {
            let from = std::net::Ipv4Addr::from_bits(number).to_string();
            assert!(attempt(&mut rules, false, &from, u64::from(number) / 1000).is_err());
        }
        assert!(rules.failures.len() <= ADDRESSES_MAX);
        // When the minute is over, others are heard again.
        assert_eq!(attempt(&mut rules, false, "99.0.0.1", 100), Err(Refusal::UnknownToken));
    }
}
