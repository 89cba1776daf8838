//! A limit on what strangers can make us log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets some lines per second into the log and counts the others.
#[derive(Debug, Default)]
pub struct Quiet(Mutex<Second>);

#[derive(Debug, Default)]
struct Second {
    begun: Option<Instant>,
    left_out: u64,
    lines: u32,
}

impl Quiet {
    /// Whether one more line may be logged at `now`. The first line of a second tells how many were left out before.
    pub fn allows(&self, now: Instant) -> bool {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if second.begun.is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1)) {
            if second.left_out > 0 {
                tracing::warn!(lines = second.left_out, "refusals were too many to log them all");
            }
            *second = Second { begun: Some(now), ..Second::default() };
        }
        if second.lines < LINES_PER_SECOND_MAX {
            second.lines += 1;
            return true;
        }
        second.left_out += 1;
        false
    }
}

const LINES_PER_SECOND_MAX: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_lines_per_second() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let allowed = |after: u64, count: u32| {
            let now = start + Duration::from_millis(after);
            (0..count).filter(|_| quiet.allows(now)).count() as u32
        };
        assert_eq!(allowed(0, 99), 99);
        assert_eq!(allowed(500, 1000), 1);
        assert_eq!(allowed(1000, 1000), LINES_PER_SECOND_MAX);
        assert_eq!(allowed(9000, 1), 1);
    }
}
