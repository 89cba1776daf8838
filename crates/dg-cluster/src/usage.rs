//! The command line parser's errors in this program's form: one error, then what to do about it.

use crate::args::Cli;
use crate::failure::Failure;
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use dg_core::ExitCode;
use std::ffi::OsString;

/// Reads the command line. Help and version are printed, and end the program, here.
pub(crate) fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, Failure> {
    Cli::try_parse_from(underscored(argv)).map_err(|e| {
        let is_help = e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        if is_help || !e.use_stderr() {
            e.exit();
        }
        let text = e.render().to_string();
        let text = text.split("\n\nFor more information").next().unwrap_or(&text);
        Failure::new(ExitCode::Usage, text.trim_start_matches("error: ").trim_end(), hint(&e))
    })
}

/// `--batch-size` is `--batch_size`; what is behind `=`, or a negative prompt, stays as it is.
fn underscored(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_text = false;
    let plain = |token: OsString| {
        let flag = token.to_str().filter(|t| t.starts_with("--") && !std::mem::take(&mut is_text));
        let Some(flag) = flag else { return token };
        let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
        let name = name[2..].replace('-', "_");
        is_text = name == "negative_prompt" && value.is_empty();
        format!("--{name}{value}").into()
    };
    argv.into_iter().map(plain).collect()
}

fn hint(e: &clap::Error) -> String {
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue] {
        let near = match e.get(kind) {
            Some(ContextValue::String(text)) => Some(text),
            Some(ContextValue::Strings(texts)) => texts.first(),
            _ => None,
        };
        if let Some(near) = near {
            return format!("did you mean {}?", near.split([' ', '=', '[']).next().unwrap_or(near));
        }
    }
    "see `dg-cluster --help`, and `--help` behind a command".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_flags_change() {
        let argv = ["--num-gpus=2", "--negative-prompt", "--a-b", "--rank-device", "my-file.toml", "-o"];
        let expect = ["--num_gpus=2", "--negative_prompt", "--a-b", "--rank_device", "my-file.toml", "-o"];
        assert_eq!(underscored(argv.map(OsString::from)), expect.map(OsString::from));
    }

    #[test]
    fn every_usage_error_says_what_to_do() {
        for (argv, expect) in [
            (&["plan", "x", "--num_gpu", "2"][..], "did you mean --num_gpus?"),
            (&["validte", "x"], "did you mean validate?"),
            (&["plan", "x", "--height", "0"], "--help"),
            (&["validate"], "--help"),
        ] {
            let e = parse(["dg-cluster"].iter().chain(argv).map(OsString::from)).unwrap_err();
            assert!(e.hint.contains(expect) && !e.message.starts_with("error"), "{argv:?}: {e:?}");
        }
    }
}
