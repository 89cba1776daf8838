//! Why a cluster does not start, and why a job ends without pictures.

use crate::fleet::is_out_of_memory;
use dg_core::ExitCode;
use dg_flux::{ModelError, RunError};
use dg_plan::Refusal;

/// A cluster that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The degrees cannot be, whatever is to be drawn.
    #[error(transparent)]
    Layout(#[from] Box<Refusal>),
    /// More ranks than one process takes.
    #[error("{ranks} ranks, and one process takes {max} at most")]
    Ranks {
        /// The product of the degrees.
        ranks: u64,
        /// The limit.
        max: u64,
    },
    /// The device is not there, or this build has none of its kind: what is missing, with a hint.
    #[error("{}", what(.0))]
    Device(String),
    /// The system refused a thread.
    #[error("cannot start {threads} compute threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// Loading panicked.
    #[error("the worker failed while loading the model: {0}")]
    Panicked(String),
}

/// A text without its hint.
fn what(text: &str) -> &str {
    text.split_once(HINT).map_or(text, |(what, _)| what)
}

/// burn panics where a device's memory ends.
const LESS_MEMORY: &str =
    "the device's memory is not enough: use a smaller --batch_size or picture, or --dtype bfloat16";
const HINT: &str = "; hint: ";

impl StartError {
    /// The exit code of a program that stops because of this.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Model(e) => e.exit(),
            Self::Layout(e) => e.exit(),
            Self::Device(_) | Self::Ranks { .. } | Self::Threads { .. } => ExitCode::Infeasible,
            Self::Panicked(text) if is_out_of_memory(text) => ExitCode::Infeasible,
            Self::Panicked(_) => ExitCode::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Model(e) => e.hint(),
            Self::Layout(e) => Some(e.hint()),
            Self::Device(text) => text.split_once(HINT).map(|(_, hint)| hint.into()),
            Self::Ranks { .. } => Some("ask for smaller degrees".into()),
            Self::Threads { .. } => Some("ask for fewer with `--threads`".into()),
            Self::Panicked(text) if is_out_of_memory(text) => Some(LESS_MEMORY.into()),
            Self::Panicked(_) => Some("this is a bug: report it with the command and the model".into()),
        }
    }
}

/// A job that ended without pictures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The requests of the batch do not fit together.
    #[error("request {0} of the batch has another size, schedule or number of passes than request 0")]
    Unlike(usize),
    /// An empty batch.
    #[error("a batch without requests")]
    Empty,
    /// Custom noise levels that are none.
    #[error("sigmas must be 1 to 1000 numbers above 0 and up to 1; not so: {0}")]
    Sigmas(String),
    /// Too many jobs are waiting.
    #[error("{0} jobs are waiting already")]
    QueueFull(usize),
    /// The run could not be finished.
    #[error("{reason}")]
    Run {
        /// What went wrong.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
        /// The exit code of a program that stops because of this.
        exit: ExitCode,
    },
    /// The worker panicked; the message is the panic's.
    #[error("the worker failed: {0}")]
    Panicked(String),
    /// The cluster was shut down, or its workers failed too often.
    #[error("the cluster has stopped")]
    Stopped,
}

impl JobError {
    /// The exit code of a program that stops because of this.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Cancelled => ExitCode::Interrupted,
            Self::Run { exit, .. } => *exit,
            Self::Panicked(text) if is_out_of_memory(text) => ExitCode::Infeasible,
            _ => ExitCode::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Panicked(text) if is_out_of_memory(text) => Some(LESS_MEMORY.into()),
            Self::Panicked(_) => Some("this is a bug: report it with the command and the model".into()),
            Self::Run { hint, .. } => hint.clone(),
            Self::Unlike(_) => Some("submit unlike requests as separate batches".into()),
            Self::QueueFull(_) => Some("wait for a job to finish".into()),
            _ => None,
        }
    }
}

impl JobError {
    /// The same, saying on which rank it happened.
    pub(crate) fn on(self, rank: &str) -> Self {
        match self {
            Self::Panicked(message) => Self::Panicked(format!("{rank}: {message}")),
            Self::Run { reason, hint, exit } => Self::Run { reason: format!("{rank}: {reason}"), hint, exit },
            other => other,
        }
    }
}

impl From<Refusal> for JobError {
    fn from(e: Refusal) -> Self {
        Self::Run { reason: e.to_string(), hint: Some(e.hint()), exit: e.exit() }
    }
}

impl From<RunError> for JobError {
    fn from(e: RunError) -> Self {
        match e {
            RunError::Cancelled(_) => Self::Cancelled,
            other => Self::Run { hint: other.hint(), exit: other.exit(), reason: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_is_no_bug() {
        let short = "rank 1: IO error\nCaused by:\n  out of device memory allocating 26214400 bytes";
        for (text, exit, hint) in
            [(short, ExitCode::Infeasible, "smaller"), ("index 3", ExitCode::Failed, "a bug")]
        {
            let (start, job) = (StartError::Panicked(text.into()), JobError::Panicked(text.into()));
            assert_eq!((start.exit(), job.exit()), (exit, exit));
            assert!(start.hint().unwrap().contains(hint) && job.hint().unwrap().contains(hint), "{text}");
        }
    }
}
