//! How fast a job goes, and when it hangs.

use std::collections::VecDeque;
use std::time::Duration;

/// The durations of the latest steps.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    steps: VecDeque<Duration>,
}

impl Pace {
    /// A step took so long.
    pub fn step(&mut self, took: Duration) {
        self.steps.push_back(took);
        if self.steps.len() > STEPS_MAX {
            self.steps.pop_front();
        }
    }

    /// The median step, if any was made.
    pub fn median(&self) -> Option<Duration> {
        let mut steps: Vec<_> = self.steps.iter().copied().collect();
        steps.sort_unstable();
        steps.get(steps.len() / 2).copied()
    }

    /// How long a rank may take to stop, as far as steps tell: it looks between blocks, of which a step has at least four.
    pub fn stop_time(&self) -> Duration {
        self.median().unwrap_or_default() / BLOCKS_MIN
    }
}

/// Steps that count.
const STEPS_MAX: usize = 15;
/// Blocks of a step, of the smallest model.
const BLOCKS_MIN: u32 = 4;
