//! What a rank has been told, what it has answered, and how it is stopped. Pure but for the stopping.

use super::super::protocol::{RankOrder, RankSay};
use crate::logic::cluster::Stamp;
use crate::logic::cluster::epoch::{Order, Team, Trouble};
use crate::logic::cluster::fence::{self, Fence};
use crate::logic::cluster::{JobId, checkpoint::Checkpoint};
use bytes::Bytes;
use dg_comm::Communicator;
use dg_plan::Layout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How the work of an epoch is stopped from outside of the thread that does it.
#[derive(Clone, Default)]
pub(super) struct Stop {
    pub(super) flag: Arc<AtomicBool>,
    comm: Arc<Mutex<Option<Arc<dyn Communicator>>>>,
}

impl Stop {
    /// The group stands: it is part of what has to be stopped.
    pub(super) fn connected(&self, comm: Arc<dyn Communicator>) {
        *self.comm.lock().unwrap_or_else(PoisonError::into_inner) = Some(comm);
        if self.is_set() {
            self.set();
        }
    }

    /// The group is over: there is nothing more to stop.
    pub(super) fn left(&self) {
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(comm);
    }

    pub(super) fn set(&self) {
        self.flag.store(true, Ordering::SeqCst);
        if let Some(comm) = &*self.comm.lock().unwrap_or_else(PoisonError::into_inner) {
            comm.abort("the attempt was stopped");
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }
}

/// How far this rank has been told to go in its epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Nothing,
    Prepare,
    Group,
    Run,
}

/// The state of a rank towards its head.
#[derive(Default)]
pub(super) struct Told {
    fence: Fence,
    phase: Phase,
    stop: Stop,
    /// The thread has work, of this epoch.
    busy: Option<Stamp>,
    /// What is answered when the thread is done.
    owed: Option<Stamp>,
    /// What was said last of the present epoch.
    last: Option<(RankSay, Bytes)>,
}

/// What an order leads to.
pub(super) enum Verdict {
    /// The thread gets it.
    Begin(Stop),
    /// These are said.
    Answer(Vec<(Stamp, RankSay, Bytes)>),
}

type Answers = Vec<(Stamp, RankSay, Bytes)>;

impl Told {
    /// Whether what the thread says about this epoch is of interest.
    pub(super) fn is_current(&self, epoch: Stamp) -> bool {
        self.busy == Some(epoch) && self.owed.is_none() && !self.stop.is_set()
    }

    /// An order of the head.
    pub(super) fn order(&mut self, epoch: Stamp, order: &RankOrder, has_body: bool) -> Verdict {
        let asked = match order {
            RankOrder::Prepare(_) if has_body => Phase::Prepare,
            RankOrder::InitGroup { .. } => Phase::Group,
            RankOrder::Run { from_step, .. } if has_body || *from_step == 0 => Phase::Run,
            // Said again without its body, which may still be on its way.
            RankOrder::Prepare(_) | RankOrder::Run { .. } => Phase::Nothing,
            RankOrder::Abort => return Verdict::Answer(self.abort(epoch)),
        };
        if matches!(order, RankOrder::Prepare(_)) && !has_body && self.fence.have() != Some(epoch) {
            return Verdict::Answer(Vec::new());
        }
        match self.fence.admit(epoch, &plain(order)) {
            fence::Verdict::New => {
                self.stop.set();
                self.stop = Stop::default();
                (self.phase, self.last) = (Phase::Prepare, None);
                self.begin(epoch)
            }
            fence::Verdict::Again if asked > self.phase => {
                (self.phase, self.last) = (asked, None);
                self.begin(epoch)
            }
            fence::Verdict::Again => {
                // What was said was said on a stream that loses nothing: only small things are said again.
                let last = self.last.iter().filter(|(_, body)| body.is_empty());
                Verdict::Answer(last.map(|(say, body)| (epoch, say.clone(), body.clone())).collect())
            }
            fence::Verdict::Over => Verdict::Answer(self.abort(epoch)),
            fence::Verdict::Fenced(_) => {
                Verdict::Answer(vec![(epoch, RankSay::Failed(Trouble::Fenced), Bytes::new())])
            }
        }
    }

    fn begin(&mut self, epoch: Stamp) -> Verdict {
        self.busy = Some(epoch);
        self.owed = None;
        Verdict::Begin(self.stop.clone())
    }

    fn abort(&mut self, epoch: Stamp) -> Answers {
        if matches!(self.fence.admit(epoch, &Order::Abort), fence::Verdict::Fenced(_)) {
            return vec![(epoch, RankSay::Stopped, Bytes::new())];
        }
        self.stop_all(epoch)
    }

    /// The lease of the node is over.
    pub(super) fn fence(&mut self) -> Answers {
        self.fence.close();
        self.fence.have().map_or_else(Vec::new, |epoch| self.stop_all(epoch))
    }

    fn stop_all(&mut self, epoch: Stamp) -> Answers {
        self.stop.set();
        (self.last, self.phase) = (None, Phase::Nothing);
        if self.busy.is_some() {
            self.owed = Some(epoch);
            return Vec::new();
        }
        vec![(epoch, RankSay::Stopped, Bytes::new())]
    }

    /// The thread has done what it was given for this epoch. If it was given something newer since, that is its own end.
    pub(super) fn ended(&mut self, epoch: Stamp, say: RankSay, body: Bytes) -> Answers {
        if self.busy != Some(epoch) {
            return Vec::new();
        }
        self.busy = None;
        if let Some(owed) = self.owed.take() {
            return vec![(owed, RankSay::Stopped, Bytes::new())];
        }
        if matches!(say, RankSay::Failed(_) | RankSay::Done) {
            // Lets go of the group.
            self.stop = Stop::default();
        }
        self.last = Some((say.clone(), body.clone()));
        vec![(epoch, say, body)]
    }
}

/// The order as the fence reads it.
fn plain(order: &RankOrder) -> Order {
    match order {
        RankOrder::Prepare(team) => Order::Prepare(Arc::new(Team {
            job: JobId(team.job),
            members: Vec::new(),
            layout: Layout::SERIAL,
            steps: 0,
        })),
        RankOrder::InitGroup { .. } => Order::InitGroup,
        RankOrder::Run { from_step, .. } => {
            Order::Run { from_step: *from_step, checkpoint: None::<Checkpoint> }
        }
        RankOrder::Abort => Order::Abort,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::protocol::RankTeam;

    fn stamp(number: u64) -> Stamp {
        Stamp { term: 1, number }
    }

    fn prepare() -> RankOrder {
        RankOrder::Prepare(RankTeam {
            job: 1,
            me: 0,
            numbers: vec![0],
            nodes: vec!["a".into()],
            layout: Layout::SERIAL,
            checkpoint_every: 1,
        })
    }

    fn run(from_step: u32) -> RankOrder {
        RankOrder::Run { from_step, is_again: false }
    }

    fn begins(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Begin(_))
    }

    fn says(answers: &Answers) -> Vec<(u64, &'static str)> {
        let name = |say: &RankSay| match say {
            RankSay::Stopped => "stopped",
            RankSay::Failed(_) => "failed",
            RankSay::Done => "done",
            RankSay::Progress(_) => "progress",
            _ => "other",
        };
        answers.iter().map(|(epoch, say, _)| (epoch.number, name(say))).collect()
    }

    fn answers(verdict: Verdict) -> Answers {
        match verdict {
            Verdict::Answer(answers) => answers,
            Verdict::Begin(_) => panic!("it begins"),
        }
    }

    #[test]
    fn orders_that_are_said_again_do_nothing_twice() {
        let mut told = Told::default();
        assert!(answers(told.order(stamp(1), &prepare(), false)).is_empty(), "without the job");
        assert!(begins(&told.order(stamp(1), &prepare(), true)));
        assert!(answers(told.order(stamp(1), &prepare(), false)).is_empty(), "it is at it");
        told.ended(stamp(1), RankSay::Progress(9), Bytes::new());
        assert_eq!(says(&answers(told.order(stamp(1), &prepare(), false))), [(1, "progress")]);
        assert!(answers(told.order(stamp(1), &run(3), false)).len() == 1, "its latents are on their way");
        assert!(begins(&told.order(stamp(1), &run(3), true)));
        assert!(answers(told.order(stamp(1), &run(3), true)).is_empty());
        assert_eq!(says(&told.ended(stamp(1), RankSay::Done, Bytes::from_static(b"x"))), [(1, "done")]);
        assert!(answers(told.order(stamp(1), &run(3), false)).is_empty(), "large things are said once");
    }

    #[test]
    fn whoever_is_stopped_while_it_works_answers_when_it_has_stopped() {
        let mut told = Told::default();
        assert!(begins(&told.order(stamp(5), &prepare(), true)));
        let Verdict::Begin(stop) = told.order(stamp(5), &run(0), false) else { panic!("it runs") };
        assert!(answers(told.order(stamp(6), &RankOrder::Abort, false)).is_empty() && stop.is_set());
        assert!(!told.is_current(stamp(5)));
        assert_eq!(says(&told.ended(stamp(5), RankSay::Done, Bytes::new())), [(6, "stopped")]);
        assert_eq!(says(&answers(told.order(stamp(5), &prepare(), true))), [(5, "failed")], "fenced");
        assert_eq!(says(&answers(told.order(stamp(6), &prepare(), true))), [(6, "stopped")], "never begun");
        assert!(begins(&told.order(stamp(7), &prepare(), true)));
        assert!(told.fence().is_empty(), "the lease is over while it works");
        assert!(begins(&told.order(stamp(8), &prepare(), true)), "of a later attempt");
        assert!(told.ended(stamp(7), RankSay::Stopped, Bytes::new()).is_empty(), "that is its own end");
    }
}
