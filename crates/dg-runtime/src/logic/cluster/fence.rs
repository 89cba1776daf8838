//! The fence of a rank against older attempts.

use super::Stamp;
use super::epoch::Order;

/// What a rank accepts: only what belongs to the newest attempt that it has heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    have: Option<Stamp>,
    is_open: bool,
}

/// What a rank does with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It begins: whatever else was running stops.
    New,
    /// It has begun before: the last answer is given again.
    Again,
    /// It is over here.
    Over,
    /// It is older than this, or was never begun.
    Fenced(Option<Stamp>),
}

impl Fence {
    /// The newest attempt that the rank has heard of.
    pub fn have(&self) -> Option<Stamp> {
        self.have
    }

    /// An order of an attempt.
    pub fn admit(&mut self, epoch: Stamp, order: &Order) -> Verdict {
        let is_newer = self.have.is_none_or(|have| epoch > have);
        match order {
            Order::Abort if is_newer || self.have == Some(epoch) => {
                *self = Self { have: Some(epoch), is_open: false };
                Verdict::Over
            }
            Order::Prepare(_) if is_newer => {
                *self = Self { have: Some(epoch), is_open: true };
                Verdict::New
            }
            _ if self.have == Some(epoch) => {
                if self.is_open {
                    Verdict::Again
                } else {
                    Verdict::Over
                }
            }
            _ => Verdict::Fenced(self.have),
        }
    }

    /// The lease of the node is over: so is whatever runs.
    pub fn close(&mut self) {
        self.is_open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::cluster::{JobId, epoch::Team};
    use dg_plan::Layout;
    use std::sync::Arc;

    #[test]
    fn only_newer_attempts_begin_and_an_aborted_one_never_does() {
        let prepare = Order::Prepare(Arc::new(Team {
            job: JobId(1),
            members: Vec::new(),
            layout: Layout::SERIAL,
            steps: 9,
        }));
        let stamp = |term, number| Stamp { term, number };
        let mut fence = Fence::default();
        assert_eq!(fence.admit(stamp(1, 5), &Order::InitGroup), Verdict::Fenced(None), "never begun");
        assert_eq!(fence.admit(stamp(1, 5), &prepare), Verdict::New);
        assert_eq!(fence.admit(stamp(1, 5), &prepare), Verdict::Again);
        assert_eq!(fence.admit(stamp(1, 4), &prepare), Verdict::Fenced(Some(stamp(1, 5))));
        assert_eq!(fence.admit(stamp(1, 4), &Order::Abort), Verdict::Fenced(Some(stamp(1, 5))));
        assert_eq!(fence.admit(stamp(1, 6), &Order::Abort), Verdict::Over, "before its preparation came");
        assert_eq!(fence.admit(stamp(1, 6), &prepare), Verdict::Over);
        assert_eq!(fence.admit(stamp(2, 1), &prepare), Verdict::New, "a later head");
    }
}
