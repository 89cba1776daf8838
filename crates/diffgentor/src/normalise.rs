//! `--num-images-per-prompt` is `--num_images_per_prompt`.

use std::ffi::{OsStr, OsString};

/// Writes every long flag before `--` with underscores. Values behind `=`, and prompts, stay as they
/// are.
pub(crate) fn flags(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let (mut open, mut prompt) = (true, false);
    let flag = |token: OsString| {
        if std::mem::take(&mut prompt) {
            return token;
        }
        open &= token != "--";
        let token = match token.to_str().filter(|_| open) {
            Some(text) if text.starts_with("--") => underscored(text).into(),
            _ => token,
        };
        prompt = open && takes_prompt(&token);
        token
    };
    argv.into_iter().map(flag).collect()
}

/// Whether the next token is a prompt, which may look like anything.
pub(crate) fn takes_prompt(token: &OsStr) -> bool {
    ["-p", "--prompt", "--negative_prompt"].iter().any(|flag| token == *flag)
}

fn underscored(token: &str) -> String {
    let (name, value) = token.split_at(token.find('=').unwrap_or(token.len()));
    format!("--{}{value}", name[2..].replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_flags_change() {
        for (given, expect) in [
            ("--batch-size", "--batch_size"),
            ("--negative-prompt=a-b=c-d", "--negative_prompt=a-b=c-d"),
            ("--json", "--json"),
            ("-v", "-v"),
            ("red-apple", "red-apple"),
            ("--", "--"),
        ] {
            assert_eq!(flags([given.into()]), [OsString::from(expect)]);
        }
        let prompt = flags(["--negative-prompt".into(), "--a-b".into(), "--no-resume".into()]);
        assert_eq!(prompt, ["--negative_prompt", "--a-b", "--no_resume"]);
        let after = flags(["x".into(), "--".into(), "--a-b".into()]);
        assert_eq!(after[2], "--a-b");
    }
}
