//! What goes with every call: tag, class, deadline.

use crate::Class;
use std::fmt;
use std::time::{Duration, Instant};

/// Which message of a job this is. Both ends know it from the plan, so it is never negotiated.
///
/// Messages with equal tags between the same two ranks arrive in the order in which they were sent; messages with
/// different tags may be received in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Request (job) that the message belongs to.
    pub request: u64,
    /// Denoising step.
    pub step: u32,
    /// Transformer block.
    pub layer: u32,
    /// Patch of the pipeline.
    pub patch: u32,
    /// Whatever else tells two messages of one class apart, for example the round of a ring. The caller numbers it.
    pub kind: u32,
}

impl Tag {
    /// The tag of a request, everything else 0.
    pub const fn new(request: u64) -> Self {
        Self { request, step: 0, layer: 0, patch: 0, kind: 0 }
    }

    /// The same tag in another step.
    #[must_use]
    pub const fn step(self, step: u32) -> Self {
        Self { step, ..self }
    }

    /// The same tag in another layer.
    #[must_use]
    pub const fn layer(self, layer: u32) -> Self {
        Self { layer, ..self }
    }

    /// The same tag for another patch.
    #[must_use]
    pub const fn patch(self, patch: u32) -> Self {
        Self { patch, ..self }
    }

    /// The same tag of another kind.
    #[must_use]
    pub const fn kind(self, kind: u32) -> Self {
        Self { kind, ..self }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, step, layer, patch, kind } = self;
        write!(f, "request {request}, step {step}, layer {layer}, patch {patch}, kind {kind}")
    }
}

/// Operation that a message is part of. Messages of different operations never meet, even under one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// [`all_gather`](crate::Communicator::all_gather).
    AllGather,
    /// [`all_to_all`](crate::Communicator::all_to_all).
    AllToAll,
    /// [`barrier`](crate::Communicator::barrier).
    Barrier,
    /// [`broadcast`](crate::Communicator::broadcast).
    Broadcast,
    /// [`check`](crate::Communicator::check); no message.
    Check,
    /// [`finish`](crate::Communicator::finish); no message.
    Finish,
    /// [`send`](crate::Communicator::send) and [`recv`](crate::Communicator::recv).
    Message,
    /// [`reduce`](crate::Communicator::reduce).
    Reduce,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::Check => "check",
            Self::Finish => "finish",
            Self::Message => "message",
            Self::Reduce => "reduce",
        })
    }
}

/// Moment at which a call gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// From now on; at most [`DEADLINE_MAX`], so that no call can block for ever.
    pub fn after(patience: Duration) -> Self {
        Self(Instant::now() + patience.min(DEADLINE_MAX))
    }

    /// What is left of it, zero once it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The moment itself.
    pub const fn instant(self) -> Instant {
        self.0
    }
}

/// Longest time that a call can be allowed.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Under which a message is found: sender and receiver must name the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Envelope {
    /// Group in which the operation runs; 0 is the communicator that holds all ranks. See [`crate::Group`].
    pub group: u64,
    /// Operation.
    pub op: Op,
    /// Message class.
    pub class: Class,
    /// Tag.
    pub tag: Tag,
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, op, class, tag } = self;
        write!(f, "{op} {class} ({tag})")?;
        if *group == 0 { Ok(()) } else { write!(f, " in group {group:016x}") }
    }
}

/// Class, tag and deadline of one call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    envelope: Envelope,
    deadline: Deadline,
}

impl Call {
    /// A call on all ranks of a communicator.
    pub const fn new(class: Class, tag: Tag, deadline: Deadline) -> Self {
        Self { envelope: Envelope { group: 0, op: Op::Message, class, tag }, deadline }
    }

    /// A call that may take `patience` from now on.
    pub fn within(patience: Duration, class: Class, tag: Tag) -> Self {
        Self::new(class, tag, Deadline::after(patience))
    }

    /// Under which its messages travel.
    pub const fn envelope(&self) -> Envelope {
        self.envelope
    }

    /// When it gives up.
    pub const fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The same call as part of a collective operation; for implementations.
    #[must_use]
    pub const fn with_op(self, op: Op) -> Self {
        Self { envelope: Envelope { op, ..self.envelope }, deadline: self.deadline }
    }

    /// The same call in a group; for implementations. Groups of groups: each level mixes in its own number.
    #[must_use]
    pub const fn in_group(self, group: u64) -> Self {
        let group = self.envelope.group.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ group;
        Self { envelope: Envelope { group, ..self.envelope }, deadline: self.deadline }
    }
}
