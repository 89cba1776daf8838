//! The most memory that a stretch of work holds.

use crate::memory::ProcessMemory;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// Watches how much memory of its own and of mapped files the process holds. The system keeps a peak
/// of both together only, so these are the highest of samples every 15 ms: a shorter peak can be
/// missed.
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<ProcessMemory>,
}

impl Sampler {
    /// Begins to look; `None` if the system has no thread for it.
    pub fn start() -> Option<Self> {
        let (stop, stopped) = mpsc::channel();
        let sample = move || {
            let mut most = ProcessMemory::default();
            loop {
                most = highest(most);
                if stopped.recv_timeout(SAMPLE) != Err(RecvTimeoutError::Timeout) {
                    return most;
                }
            }
        };
        let thread = std::thread::Builder::new().name("memory".into()).spawn(sample).ok()?;
        Some(Self { stop, thread })
    }

    /// The most that was there, and what is now.
    pub fn finish(self) -> ProcessMemory {
        drop(self.stop);
        highest(self.thread.join().unwrap_or_default())
    }
}

/// The higher of what was and what is.
fn highest(most: ProcessMemory) -> ProcessMemory {
    let now = ProcessMemory::of(None);
    ProcessMemory {
        rss_anon: most.rss_anon.max(now.rss_anon),
        rss_file: most.rss_file.max(now.rss_file),
        ..now
    }
}

/// Time between two looks at the memory; one takes some ten microseconds.
const SAMPLE: Duration = Duration::from_millis(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_between_two_events_is_seen() {
        let sampler = Sampler::start().unwrap();
        let before = ProcessMemory::of(None).rss_anon;
        let held = vec![1u8; PEAK];
        std::thread::sleep(10 * SAMPLE);
        drop(std::hint::black_box(held));
        assert!(sampler.finish().rss_anon >= before + PEAK as u64 / 2);
    }

    const PEAK: usize = 64 << 20;
}
