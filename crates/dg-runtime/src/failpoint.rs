//! Where a rank is to fail, for tests and exercises.

use std::fmt;
use std::str::FromStr;

/// A rank that is to be killed when it has done so many steps of a job, before it begins the next one; written
/// `kill@RANK:STEP`. Whoever drives a rank in a process of its own reads it from [`VARIABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failpoint {
    /// Rank, counted over all replicas, as names of ranks have it.
    pub rank: usize,
    /// Steps that are done by then, from 0; those of a checkpoint count.
    pub step: usize,
}

impl Failpoint {
    /// Whether `rank` is to fail now, with `done` steps done.
    pub fn hits(&self, rank: usize, done: usize) -> bool {
        (self.rank, self.step) == (rank, done)
    }
}

impl FromStr for Failpoint {
    type Err = BadFailpoint;

    fn from_str(text: &str) -> Result<Self, BadFailpoint> {
        let number = |digits: &str| {
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number)
        };
        let parts = text.strip_prefix("kill@").and_then(|place| place.split_once(':'));
        let parsed = parts.and_then(|(rank, step)| Some(Self { rank: number(rank)?, step: number(step)? }));
        parsed.ok_or_else(|| BadFailpoint(text.to_owned()))
    }
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kill@{}:{}", self.rank, self.step)
    }
}

/// A text that names no failpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no failpoint; write `kill@RANK:STEP`, `kill@3:2` to kill rank 3 when it has done 2 steps")]
pub struct BadFailpoint(pub String);

/// The environment variable that names a failpoint.
pub const VARIABLE: &str = "DG_FAILPOINT";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let point: Failpoint = "kill@12:0".parse().unwrap();
        assert_eq!(point, Failpoint { rank: 12, step: 0 });
        assert_eq!(point.to_string(), "kill@12:0");
        assert!(point.hits(12, 0) && !point.hits(12, 1) && !point.hits(0, 12));
    }

    #[test]
    fn all_else_is_refused_by_name() {
        let bad = [
            "",
            "kill",
            "kill@",
            "kill@3",
            "kill@3:",
            "kill@:3",
            "kill@+3:2",
            "kill@3:-2",
            "kill@3:2:1",
            " kill@3:2",
            "kill@3:99999999999999999999",
            "panic@3:2",
        ];
        for text in bad {
            let error = text.parse::<Failpoint>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{text}` is no failpoint; ")), "{error}");
        }
    }
}
