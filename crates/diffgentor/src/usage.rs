//! The command line parser's errors in this program's form: one error, then what to do about it.

use crate::args::{Cli, is_flag};
use crate::failure::Failure;
use crate::normalise;
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Reads the command line. Help and version are printed, and end the program, here.
pub(crate) fn parse(argv: Vec<OsString>) -> Result<Cli, Failure> {
    let shown = match argv.get(1).and_then(|c| c.to_str()) {
        Some(command) if !command.starts_with('-') => command.to_string(),
        _ => String::new(),
    };
    refuse_swallowed(&argv)?;
    Cli::try_parse_from(argv).map_err(|e| {
        let is_help = e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        if is_help || !e.use_stderr() {
            e.exit();
        }
        failure(&e, &shown)
    })
}

/// Refuses `--prompt --seed 5`: a prompt may begin with a hyphen, but a flag is not meant as one.
fn refuse_swallowed(argv: &[OsString]) -> Result<(), Failure> {
    let pairs = argv.iter().zip(argv.iter().skip(1)).take_while(|(before, _)| *before != "--");
    for (before, token) in pairs {
        let (before, token) = (before.as_os_str(), token.to_string_lossy());
        if normalise::takes_prompt(before) && is_flag(&token) {
            let before = before.to_string_lossy();
            return Err(Failure::usage(format!("{before} has no text: `{token}` is a flag"))
                .hint("give it a text; one that looks like a flag goes behind `=`, as in --prompt=--seed"));
        }
    }
    Ok(())
}

fn failure(e: &clap::Error, command: &str) -> Failure {
    let text = e.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    // the hint says where help is
    let text = text.split("\n\nFor more information").next().unwrap_or(text);
    Failure::usage(text).hint(hint(e, command))
}

fn hint(e: &clap::Error, command: &str) -> String {
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue] {
        if let Some(near) = first(e, kind) {
            let name = near.split([' ', '=', '[']).next().unwrap_or(&near);
            return format!("did you mean {name}?");
        }
    }
    let wrong = first(e, ContextKind::InvalidArg).unwrap_or_default();
    let is_word = e.kind() == ErrorKind::UnknownArgument && !wrong.starts_with('-');
    match (command, is_word) {
        ("t2i", true) => {
            format!("did you mean --prompt \"{wrong}\"? Put a prompt of several words in quotes")
        }
        ("t2i" | "plan" | "config" | "models" | "man" | "completions" | "doctor", _) => {
            format!("see `diffgentor {command} --help`")
        }
        _ => "see `diffgentor --help`".into(),
    }
}

fn first(e: &clap::Error, kind: ContextKind) -> Option<String> {
    match e.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argv: &[&str], expect: &str) {
        let e = parse(["diffgentor"].iter().chain(argv).map(OsString::from).collect()).unwrap_err();
        assert!(e.hint.as_deref().unwrap_or("").contains(expect), "{argv:?}: {e:?}");
        assert!(!e.message.starts_with("error"), "{}", e.message);
    }

    #[test]
    fn every_usage_error_says_what_to_do() {
        check(&["t2i", "--heigth", "64"], "did you mean --height?");
        check(&["t2i", "red apple"], "did you mean --prompt \"red apple\"");
        check(&["t2i", "--height", "0"], "see `diffgentor t2i --help`");
        check(&["t2", "--height", "0"], "did you mean t2i?");
        check(&["sketch"], "see `diffgentor --help`");
        check(&["completions", "bsh"], "did you mean bash?");
        check(&["t2i", "--prompt", "--seed", "5"], "behind `=`");
    }
}
