//! Why the program stops: one message, what to do about it, and the exit code. And what it prints otherwise.

use dg_core::ExitCode;
use std::io::{ErrorKind, IsTerminal, Write};

/// An error as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the program ends.
    pub(crate) exit: ExitCode,
    /// What is wrong, with names and values.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: String,
}

impl Failure {
    pub(crate) fn new(exit: ExitCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: hint.into() }
    }

    /// One error, then what to do about it, on standard error.
    pub(crate) fn print(&self) {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let error = match std::io::stderr().is_terminal() && !plain {
            true => "\x1b[1;31merror:\x1b[0m",
            false => "error:",
        };
        let (message, hint) = (harmless(&self.message), harmless(&self.hint));
        // nobody reads standard error: nothing else can be done
        let _ = writeln!(std::io::stderr().lock(), "{error} {message}\n\nhint: {hint}");
    }
}

/// Something odd that stops nothing.
pub(crate) fn warn(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "warning: {}", harmless(message));
}

/// Prints what a command has to say. That nobody reads it is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", harmless(text)).and_then(|()| out.flush());
    written.or_else(|e| match e.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::new(
            ExitCode::Failed,
            format!("cannot write to standard output: {e}"),
            "check where standard output goes, and make room there",
        )),
    })
}

/// Text of a file in which nothing moves the cursor, changes colours or turns the direction of reading.
fn harmless(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let escaped = |c: char| c.is_control() && !matches!(c, '\n' | '\t') || turns(c);
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| if escaped(c) { out.extend(c.escape_default()) } else { out.push(c) });
    out
}

impl From<dg_config::FileError> for Failure {
    fn from(e: dg_config::FileError) -> Self {
        let message = e.to_string();
        Self::new(ExitCode::Config, message, e.hint.unwrap_or_else(|| "see docs/cluster.md".into()))
    }
}

impl From<dg_config::EnvError> for Failure {
    fn from(e: dg_config::EnvError) -> Self {
        Self::new(ExitCode::Config, e.to_string(), e.hint)
    }
}

impl From<dg_flux::ModelError> for Failure {
    fn from(e: dg_flux::ModelError) -> Self {
        Self::new(e.exit(), e.to_string(), e.hint().unwrap_or_else(|| "check the model's files".into()))
    }
}

impl From<dg_plan::Refusal> for Failure {
    fn from(e: dg_plan::Refusal) -> Self {
        Self::new(e.exit(), e.to_string(), e.hint())
    }
}

impl From<dg_net::identity::IdentityError> for Failure {
    fn from(e: dg_net::identity::IdentityError) -> Self {
        let text = e.to_string();
        let (message, hint) =
            text.rsplit_once("; hint: ").unwrap_or((&text, "see docs/cluster.md, Certificates"));
        Self::new(e.exit_code(), message, hint)
    }
}

impl From<dg_runtime::asked::BadBalance> for Failure {
    fn from(e: dg_runtime::asked::BadBalance) -> Self {
        Self::new(e.exit(), e.to_string(), e.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_move_the_cursor() {
        assert_eq!(harmless("a\u{1b}[31m\u{202e}b\nc\td 猫"), "a\\u{1b}[31m\\u{202e}b\nc\td 猫");
    }
}
