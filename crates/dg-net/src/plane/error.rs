//! What can go wrong before the ranks are connected.

use dg_comm::RankName;
use std::fmt;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// The ranks could not be connected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SetUpError {
    /// Not all ranks came in time.
    #[error("gave up after {waited:.1?}: {}{}", list(missing), refusals(refused))]
    Deadline {
        /// The ranks that are not connected, and what is known of each.
        missing: Vec<Missing>,
        /// How long this rank waited.
        waited: Duration,
        /// Connections that were not let in, the first few.
        refused: Vec<Refused>,
    },
    /// The rendezvous cannot work, whatever the others do.
    #[error("{0}")]
    Invalid(String),
    /// No socket to wait on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// Another rank did not let this one in.
    #[error("{peer} does not let this rank in: {why}")]
    Refused {
        /// Which rank.
        peer: RankName,
        /// Its reason.
        why: Refusal,
    },
    /// Somebody ended it, see [`Options::stop`](super::Options::stop).
    #[error("it was stopped")]
    Stopped,
    /// A rank that was reached is not who it should be.
    #[error("{peer} cannot be trusted: {why}")]
    Untrusted {
        /// Which rank.
        peer: RankName,
        /// What is wrong with it.
        why: Refusal,
    },
}

/// A rank that did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which one.
    pub rank: RankName,
    /// What the last attempt to reach it said.
    pub last: String,
}

/// A connection that was not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it came from.
    pub from: String,
    /// The rank that it said it was.
    pub rank: Option<u32>,
    /// Why it was refused.
    pub why: Refusal,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank} at {}: {}", self.from, self.why),
            None => write!(f, "{}: {}", self.from, self.why),
        }
    }
}

/// Why a connection was not let in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No certificate, or none of this cluster.
    #[error("no valid certificate: {0}")]
    Certificate(String),
    /// It went away in the middle.
    #[error("closed in the middle of the hello: {0}")]
    Closed(String),
    /// Of another epoch.
    #[error("another epoch")]
    Epoch,
    /// Not the protocol of ranks.
    #[error("not a rank's hello")]
    Garbage,
    /// Does not have the key of the epoch.
    #[error("another key")]
    Key,
    /// Announces limits that no rank has.
    #[error("impossible limits")]
    Limits,
    /// A rank that does not belong here.
    #[error("a rank that should not connect here")]
    Rank,
    /// Said nothing until the deadline of the hello.
    #[error("silent")]
    Silent,
    /// Another number of ranks.
    #[error("another number of ranks")]
    Size,
    /// That rank is connected already.
    #[error("that rank is here already")]
    Taken,
    /// Another version of the protocol.
    #[error("another version")]
    Version,
}

fn list(missing: &[Missing]) -> String {
    let each = missing.iter().map(|missing| format!("{} is missing ({})", missing.rank, missing.last));
    each.collect::<Vec<_>>().join(", ")
}

fn refusals(refused: &[Refused]) -> String {
    if refused.is_empty() {
        return String::new();
    }
    let each: Vec<_> = refused.iter().map(ToString::to_string).collect();
    format!("; refused: {}", each.join(", "))
}
