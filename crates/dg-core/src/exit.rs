//! How a program of this project ends.

/// Exit codes, the same for all programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// Everything that was asked for is done.
    Ok,
    /// Some prompts failed, the disk is full, or the job failed.
    Failed,
    /// Wrong command line.
    Usage,
    /// A configuration, prompts file or model is missing or broken.
    Config,
    /// It cannot run as planned: degrees, device, memory.
    Infeasible,
    /// The model hub or the cluster's head cannot be reached.
    Unreachable,
    /// Stopped by SIGINT.
    Interrupted,
    /// Stopped by SIGTERM.
    Terminated,
}

impl ExitCode {
    /// The process exit status.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::Infeasible => 4,
            Self::Unreachable => 5,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl ExitCode {
    /// The code of another process of this project; what is none of them is [`Failed`](Self::Failed).
    pub fn from_code(code: u8) -> Self {
        let all = [
            Self::Ok,
            Self::Usage,
            Self::Config,
            Self::Infeasible,
            Self::Unreachable,
            Self::Interrupted,
            Self::Terminated,
        ];
        all.into_iter().find(|exit| exit.code() == code).unwrap_or(Self::Failed)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(e: ExitCode) -> Self {
        Self::from(e.code())
    }
}
