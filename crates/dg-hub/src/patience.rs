//! Calls of hf-hub that do not wait for ever: it sets no timeouts and takes none.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use hf_hub::api::sync::ApiError;

/// How long the hub may be silent if nothing else is said. A busy hub answers late, but not that late.
pub(crate) const STALL_S: u64 = 60;

/// A sign of life of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// A body begins.
    Began,
    /// So many bytes came.
    Came(usize),
    /// A body is complete.
    Ended,
}

/// Why a call gave nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// hf-hub says so.
    Api(ApiError),
    /// No sign of life for too long.
    Stalled,
    /// There is no thread to be had.
    Thread(std::io::Error),
}

/// Where a call's signs of life go. While it lives, the call is under watch.
pub(crate) struct Pulse(SyncSender<Beat>);

impl Pulse {
    fn beat(&self, beat: Beat) {
        if self.0.send(beat).is_err() {
            // Given up. There is no other way out of hf-hub, and its lock must go. No panic message: nothing is wrong.
            resume_unwind(Box::new("given up"));
        }
    }
}

impl hf_hub::api::Progress for Pulse {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.beat(Beat::Began);
    }

    fn update(&mut self, size: usize) {
        self.beat(Beat::Came(size));
    }

    fn finish(&mut self) {
        self.beat(Beat::Ended);
    }
}

/// Runs `call` on a thread of its own and hands its beats to `told` on this one.
///
/// If none comes for `stall`, the call is left behind: its thread ends at its next beat or when its connection does.
pub(crate) fn watched<T: Send + 'static>(
    stall: Duration,
    call: impl FnOnce(Pulse) -> Result<T, ApiError> + Send + 'static,
    mut told: impl FnMut(Beat),
) -> Result<T, Failure> {
    let (sender, beats) = sync_channel(BEATS_WAITING_MAX);
    let thread = thread::Builder::new().name("dg-hub".to_owned());
    let caller = thread.spawn(move || call(Pulse(sender))).map_err(Failure::Thread)?;
    loop {
        match beats.recv_timeout(stall) {
            Ok(beat) => told(beat),
            Err(RecvTimeoutError::Timeout) => return Err(Failure::Stalled),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    match caller.join() {
        Ok(result) => result.map_err(Failure::Api),
        Err(panic) => resume_unwind(panic),
    }
}

/// How far a call may be ahead of who listens.
const BEATS_WAITING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use hf_hub::api::Progress as _;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(30);

    #[test]
    fn beats_and_the_result_arrive() {
        let mut beats = Vec::new();
        let call = |mut pulse: Pulse| {
            pulse.init(3, "a");
            pulse.update(3);
            pulse.finish();
            Ok(7)
        };
        assert_eq!(watched(LONG, call, |beat| beats.push(beat)).ok(), Some(7));
        assert_eq!(beats, [Beat::Began, Beat::Came(3), Beat::Ended]);
        let failed = watched(LONG, |_pulse| Err::<(), _>(ApiError::InvalidResume), |_| ());
        assert!(matches!(failed, Err(Failure::Api(ApiError::InvalidResume))));
    }

    #[test]
    fn a_call_that_is_left_behind_ends_at_its_next_beat() {
        let (wake, woken) = channel::<()>();
        let (end, ended) = channel::<()>();
        let call = move |mut pulse: Pulse| {
            let _dropped_at_the_end = end;
            let _ = woken.recv();
            pulse.update(1);
            unreachable!("it was left behind");
        };
        assert!(matches!(watched::<()>(SHORT, call, |_| ()), Err(Failure::Stalled)));
        wake.send(()).expect("the thread waits");
        assert_eq!(ended.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn slow_is_not_stalled() {
        let call = |mut pulse: Pulse| {
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(150));
                pulse.update(1);
            }
            Ok(())
        };
        assert!(watched(Duration::from_secs(1), call, |_| ()).is_ok());
    }
}
