//! Where the threads that connect one rank with the others put what they have.

use super::error::{Missing, Refusal, Refused, SetUpError};
use super::hello::Limits;
use super::sockets::Connected;
use super::stream::Stream;
use dg_comm::RankName;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of a set-up.
pub(super) struct Meeting {
    meet: Mutex<Meet>,
    changed: Condvar,
    /// Everybody is here, or it has failed: the threads return.
    pub(super) over: AtomicBool,
    /// Connections that say hello at this moment.
    pub(super) hellos: AtomicUsize,
}

struct Meet {
    connected: Vec<Option<Connected>>,
    /// Ranks that have proved who they are and may be about to be connected.
    claimed: Vec<bool>,
    /// What the last attempt to reach a rank said.
    last: Vec<String>,
    refused: Vec<Refused>,
    failed: Option<SetUpError>,
}

impl Meeting {
    pub(super) fn new(size: usize) -> Self {
        let meet = Meet {
            connected: (0..size).map(|_| None).collect(),
            claimed: vec![false; size],
            last: vec![String::new(); size],
            refused: Vec::new(),
            failed: None,
        };
        let (over, hellos) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { meet: Mutex::new(meet), changed: Condvar::new(), over, hellos }
    }

    fn lock(&self) -> MutexGuard<'_, Meet> {
        self.meet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// A rank has proved who it is.
    pub(super) fn claim(&self, rank: usize) -> Result<(), Refusal> {
        let mut meet = self.lock();
        let claimed = meet.claimed.get_mut(rank).ok_or(Refusal::Rank)?;
        if std::mem::replace(claimed, true) { Err(Refusal::Taken) } else { Ok(()) }
    }

    /// It went away all the same.
    pub(super) fn unclaim(&self, rank: usize) {
        if let Some(claimed) = self.lock().claimed.get_mut(rank) {
            *claimed = false;
        }
    }

    pub(super) fn arrive(
        &self,
        rank: usize,
        stream: Stream,
        tls: Option<rustls::Connection>,
        limits: Limits,
    ) {
        if let Some(connected) = self.lock().connected.get_mut(rank) {
            *connected = Some(Connected { stream, tls, limits });
        }
        self.changed.notify_all();
    }

    /// An attempt to reach a rank has failed and will be repeated.
    pub(super) fn tried(&self, rank: usize, what: String) {
        if let Some(last) = self.lock().last.get_mut(rank) {
            *last = what;
        }
    }

    pub(super) fn refuse(&self, refused: Refused) {
        let mut meet = self.lock();
        if meet.refused.len() < REFUSED_MAX {
            meet.refused.push(refused);
        }
    }

    pub(super) fn fail(&self, error: SetUpError) {
        self.lock().failed.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Waits until every rank but `me` is here, and ends the set-up.
    pub(super) fn wait(
        &self,
        me: usize,
        (begin, end): (Instant, Instant),
        stop: &AtomicBool,
        name: impl Fn(usize) -> RankName,
    ) -> Result<(), SetUpError> {
        let mut meet = self.lock();
        let result = loop {
            if let Some(error) = meet.failed.take() {
                break Err(error);
            }
            if stop.load(Ordering::SeqCst) {
                break Err(SetUpError::Stopped);
            }
            let here = |rank: usize| rank == me || meet.connected[rank].is_some();
            let missing: Vec<_> = (0..meet.connected.len()).filter(|rank| !here(*rank)).collect();
            if missing.is_empty() {
                break Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let missing = missing.into_iter().map(|rank| Missing {
                    rank: name(rank),
                    last: match &*meet.last[rank] {
                        "" if rank > me => "it has not come".to_owned(),
                        "" => "no answer yet".to_owned(),
                        last => last.to_owned(),
                    },
                });
                let (missing, refused) = (missing.collect(), meet.refused.clone());
                break Err(SetUpError::Deadline { missing, waited: begin.elapsed(), refused });
            }
            let left = left.min(LOOK_AGAIN);
            meet = self.changed.wait_timeout(meet, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.over.store(true, Ordering::SeqCst);
        result
    }

    /// What came out.
    pub(super) fn into_parts(self) -> (Vec<Option<Connected>>, Vec<Refused>) {
        let meet = self.meet.into_inner().unwrap_or_else(PoisonError::into_inner);
        (meet.connected, meet.refused)
    }
}

/// How often a set-up looks whether it is still wanted.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Refused connections that are remembered.
const REFUSED_MAX: usize = 16;
