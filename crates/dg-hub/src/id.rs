//! Names of repositories, revisions and files, checked before they become parts of paths and addresses.

use std::fmt;

use crate::HubError;

/// The name of a repository on the hub: `owner/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId(String);

impl RepoId {
    /// Parses `owner/name` or one of the short names `FLUX.1-dev` and `FLUX.1-schnell`.
    pub fn parse(name: &str) -> Result<Self, HubError> {
        if SHORT_NAMES.contains(&name) {
            return Ok(Self(format!("{SHORT_NAME_OWNER}/{name}")));
        }
        let bad = |reason| HubError::BadName { name: name.to_owned(), reason };
        let Some((owner, model)) = name.split_once('/') else {
            return Err(bad("it is not of the form owner/name"));
        };
        if ![owner, model].into_iter().all(is_plain_name) {
            return Err(bad("owner and name are letters, digits, `-`, `_` and `.`, at most 96 each"));
        }
        // `--` stands for `/` in the cache; a name with it could be taken for another one.
        if name.contains("--") || name.contains("..") {
            return Err(bad("`--` and `..` are not allowed"));
        }
        Ok(Self(name.to_owned()))
    }

    /// `owner/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this is one component of a path that can mean nothing but itself.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.chars().all(allowed)
}

/// Whether this can be a branch, a tag or a commit.
pub(crate) fn is_revision(revision: &str) -> bool {
    revision.split('/').all(is_plain_name)
}

/// Whether this is a whole commit hash, which never stands for anything else.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_DIGITS && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const SHORT_NAMES: [&str; 2] = ["FLUX.1-dev", "FLUX.1-schnell"];
const SHORT_NAME_OWNER: &str = "black-forest-labs";
const NAME_BYTES_MAX: usize = 96;
const COMMIT_DIGITS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        for good in ["a/b", "black-forest-labs/FLUX.1-dev", "A_1/x.y-z"] {
            assert_eq!(RepoId::parse(good).map(|id| id.to_string()).ok().as_deref(), Some(good));
        }
        let short = RepoId::parse("FLUX.1-schnell").map(|id| id.to_string()).ok();
        assert_eq!(short.as_deref(), Some("black-forest-labs/FLUX.1-schnell"));
        let long = format!("a/{}", "b".repeat(97));
        let bad = [
            "", "a", "/a", "a/", "a/b/c", "../b", "a/..", "a/b..c", "a/.b", "a--b/c", "a/b c", "a/b%2e",
            "ä/b", &long,
        ];
        for bad in bad {
            let error = RepoId::parse(bad).expect_err(bad);
            assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
            assert_eq!(error.exit(), dg_core::ExitCode::Config);
        }
    }

    #[test]
    fn names_of_revisions() {
        for good in ["main", "refs/pr/3", "v1.0", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(is_revision(good), "{good}");
        }
        for bad in ["", "/main", "main/", "a/../b", "a b", "a%2Fb", ".."] {
            assert!(!is_revision(bad), "{bad}");
        }
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567") && !is_commit("main"));
    }
}
