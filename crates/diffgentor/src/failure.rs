//! Why the program stops: one message, what to do about it, and the exit code.

use dg_core::ExitCode;

/// An error as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the program ends.
    pub(crate) exit: ExitCode,
    /// What is wrong, with names and values.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: ExitCode::Usage, message: message.into(), hint: None }
    }

    /// A configuration, prompts file or model that is missing or broken.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { exit: ExitCode::Config, message: message.into(), hint: None }
    }

    /// Something that cannot run as planned.
    pub(crate) fn infeasible(message: impl Into<String>) -> Self {
        Self { exit: ExitCode::Infeasible, message: message.into(), hint: None }
    }

    /// Work that failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit: ExitCode::Failed, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<dg_flux::ModelError> for Failure {
    fn from(e: dg_flux::ModelError) -> Self {
        Self { exit: e.exit(), message: e.to_string(), hint: e.hint() }
    }
}

impl From<dg_plan::Refusal> for Failure {
    fn from(e: dg_plan::Refusal) -> Self {
        Self { exit: e.exit(), message: e.to_string(), hint: Some(e.hint()) }
    }
}

impl From<dg_runtime::asked::BadBalance> for Failure {
    fn from(e: dg_runtime::asked::BadBalance) -> Self {
        Self { exit: e.exit(), message: e.to_string(), hint: Some(e.hint()) }
    }
}

impl From<dg_runtime::StartError> for Failure {
    fn from(e: dg_runtime::StartError) -> Self {
        Self { exit: e.exit(), message: e.to_string(), hint: e.hint() }
    }
}

impl From<dg_runtime::JobError> for Failure {
    fn from(e: dg_runtime::JobError) -> Self {
        Self { exit: e.exit(), message: e.to_string(), hint: e.hint() }
    }
}
