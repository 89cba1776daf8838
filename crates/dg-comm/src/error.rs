//! What can go wrong between ranks. Ranks in errors are those of the communicator that holds all ranks, even when the
//! call was made on a group.

use crate::{BlockShape, Call, Class, Envelope, Op, Tag};
use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// Result of a call between ranks.
pub type Result<T> = std::result::Result<T, CommError>;

/// Why a call between ranks failed.
///
/// After [`Aborted`](Self::Aborted) and [`PeerGone`](Self::PeerGone) by death every later call fails in the same way: a
/// job goes on with new communicators. After the others the communicator can still be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommError {
    /// A rank said that the job cannot go on.
    #[error("{place}: {by} aborted: {cause}; hint: that rank's output has the details")]
    Aborted {
        /// The call that was given up.
        place: Place,
        /// Who aborted.
        by: RankName,
        /// Its reason.
        cause: String,
    },
    /// The deadline passed.
    #[error("{place}: gave up after {waited:.1?} at the deadline; hint: {hint}")]
    Deadline {
        /// The call, with the peer that did not come.
        place: Place,
        /// How long the call waited.
        waited: Duration,
        /// What is known about the peer.
        hint: String,
    },
    /// The call cannot work, whatever the others do: a rank that does not exist, a block too many.
    #[error("{place}: {what}")]
    Invalid {
        /// The call.
        place: Place,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A message is not what the receiver's plan says.
    #[error("{place}: expected {expected}, got {got}; hint: the ranks do not have the same plan")]
    Mismatch {
        /// The call, with the peer that sent it.
        place: Place,
        /// What the receiver expected.
        expected: BlockShape,
        /// What arrived.
        got: BlockShape,
    },
    /// A rank that the call needs has ended.
    #[error("{place}: {rank} {how}; hint: {}", how.hint())]
    PeerGone {
        /// The call.
        place: Place,
        /// Which rank.
        rank: RankName,
        /// How it ended.
        how: Gone,
    },
    /// A rank finished although messages for it were never received.
    #[error(
        "{rank} finished with {messages} unread messages, the first from rank {from}: {first}; hint: its plan has fewer receives than the others have sends"
    )]
    Unread {
        /// Who finished.
        rank: RankName,
        /// How many messages it left.
        messages: usize,
        /// Who sent the first of them.
        from: usize,
        /// Under which it was sent.
        first: Envelope,
    },
}

impl CommError {
    /// The call that failed, where one did.
    pub const fn place(&self) -> Option<&Place> {
        match self {
            Self::Aborted { place, .. }
            | Self::Deadline { place, .. }
            | Self::Invalid { place, .. }
            | Self::Mismatch { place, .. }
            | Self::PeerGone { place, .. } => Some(place),
            Self::Unread { .. } => None,
        }
    }
}

/// Which call, and which peer of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Operation.
    pub op: Op,
    /// Whether a message was being sent or received.
    pub side: Side,
    /// Message class.
    pub class: Class,
    /// Tag.
    pub tag: Tag,
    /// The other rank, where one message is concerned.
    pub peer: Option<usize>,
}

impl Place {
    /// A message of `call`.
    pub const fn new(call: &Call, side: Side, peer: Option<usize>) -> Self {
        let Envelope { op, class, tag, .. } = call.envelope();
        Self { op, side, class, tag, peer }
    }

    /// A call without a message: [`Op::Check`] or [`Op::Finish`].
    pub const fn alone(op: Op) -> Self {
        Self { op, side: Side::Neither, class: Class::Control, tag: Tag::new(0), peer: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, side, class, tag, peer } = self;
        if *side == Side::Neither && peer.is_none() && matches!(op, Op::Check | Op::Finish) {
            return write!(f, "{op}");
        }
        write!(f, "{op} {class} ({tag})")?;
        match (side, peer) {
            (Side::Sending, Some(peer)) => write!(f, " to rank {peer}"),
            (Side::Receiving, Some(peer)) => write!(f, " from rank {peer}"),
            (Side::Neither, Some(peer)) => write!(f, " with rank {peer}"),
            (_, None) => Ok(()),
        }
    }
}

/// Direction of the message that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// None: the arguments of a collective, or a call without messages.
    Neither,
    /// The message was to come.
    Receiving,
    /// The message was to go.
    Sending,
}

/// A rank and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankName {
    /// Its number.
    pub rank: usize,
    /// For people, for example `rank 3 (ulysses 1, cfg 0)`.
    pub name: String,
}

impl fmt::Display for RankName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// How a rank ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It finished its work: it will neither send nor receive any more.
    Finished,
    /// It disappeared without finishing.
    Lost,
    /// It panicked.
    Panicked,
}

impl Gone {
    const fn hint(self) -> &'static str {
        match self {
            Self::Finished => "its plan has fewer messages than this rank's",
            Self::Lost => "it returned an error or was killed; its output has the details",
            Self::Panicked => "its output has the message of the panic",
        }
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "has finished",
            Self::Lost => "is gone without finishing",
            Self::Panicked => "panicked",
        })
    }
}
