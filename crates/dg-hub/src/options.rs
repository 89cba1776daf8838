//! Where the hub and its cache are.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;
use crate::id::is_revision;
use crate::patience::STALL_S;

/// How models are looked for.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Branch, tag or commit; `main` if none.
    pub revision: Option<String>,
    /// Only what is in the cache; no network.
    pub local_files_only: bool,
    /// Address of the hub; the public one if none.
    pub endpoint: Option<String>,
    /// The cache, which holds `models--owner--name` folders; the usual place if none.
    pub cache_dir: Option<PathBuf>,
    /// Access token for gated models.
    pub token: Option<String>,
    /// How long the hub may be silent, before it answers or while it sends, until it counts as unreachable; 60
    /// seconds if none.
    pub stall: Option<Duration>,
}

impl HubOptions {
    /// Options from the variables that the hub's clients share: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` (or the file
    /// `token` in `HF_HOME`), `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name), std::env::home_dir())
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>, user_home: Option<PathBuf>) -> Self {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let caches = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(user_home?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let offline = text("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        let token = text("HF_TOKEN").or_else(|| std::fs::read_to_string(home.as_ref()?.join("token")).ok());
        Self {
            revision: None,
            local_files_only: ["1", "true", "yes", "on"].contains(&offline.as_str()),
            endpoint: text("HF_ENDPOINT"),
            cache_dir: set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home?.join("hub"))),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            stall: None,
        }
    }

    pub(crate) fn checked_revision(&self) -> Result<&str, HubError> {
        let revision = self.revision.as_deref().unwrap_or("main");
        if is_revision(revision) {
            return Ok(revision);
        }
        Err(bad_setting("revision", revision, "it is not the name of a branch, a tag or a commit"))
    }

    pub(crate) fn checked_endpoint(&self) -> Result<&str, HubError> {
        let endpoint = self.endpoint.as_deref().unwrap_or(PUBLIC_ENDPOINT).trim_end_matches('/');
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        let plain = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}?#".contains(c);
        if host.is_some_and(|host| !host.is_empty() && host.chars().all(plain)) {
            return Ok(endpoint);
        }
        Err(bad_setting("HF_ENDPOINT", endpoint, "it is not an address that begins with https:// or http://"))
    }

    pub(crate) fn checked_token(&self) -> Result<Option<String>, HubError> {
        match &self.token {
            Some(token) if !token.chars().all(|c| c.is_ascii_graphic()) => {
                Err(bad_setting("HF_TOKEN", "…", "a token is one word of printable ASCII characters"))
            }
            token => Ok(token.clone()),
        }
    }

    pub(crate) fn stall(&self) -> Duration {
        self.stall.unwrap_or(Duration::from_secs(STALL_S))
    }

    pub(crate) fn checked_cache_dir(&self) -> Result<PathBuf, HubError> {
        let dir = self.cache_dir.clone().or_else(|| Self::from_env().cache_dir);
        let dir =
            dir.ok_or_else(|| bad_setting("HF_HOME", "", "it is not set and there is no home folder"))?;
        std::path::absolute(&dir).map_err(|source| io_error(&dir, source))
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token in a log is a token lost.
        f.debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("local_files_only", &self.local_files_only)
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("stall", &self.stall)
            .finish()
    }
}

fn bad_setting(setting: &'static str, value: &str, reason: &'static str) -> HubError {
    HubError::BadSetting { setting, value: value.to_owned(), reason }
}

pub(crate) fn io_error(path: &Path, source: std::io::Error) -> HubError {
    HubError::Io { path: path.to_owned(), source }
}

/// Where models are if nothing else is said.
const PUBLIC_ENDPOINT: &str = "https://huggingface.co";

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        let find =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        HubOptions::from_vars(find, Some(PathBuf::from("/home/u")))
    }

    #[test]
    fn the_cache_is_where_the_other_clients_have_it() {
        let cache = |vars: &[(&str, &str)]| options(vars).cache_dir.expect("there is a home");
        assert_eq!(cache(&[]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file() {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("token"), "from-file\n").expect("it is writable");
        let folder = home.path().to_str().expect("its name is text");
        assert_eq!(options(&[("HF_HOME", folder)]).token.as_deref(), Some("from-file"));
        let both = options(&[("HF_HOME", folder), ("HF_TOKEN", "from-variable")]);
        assert_eq!(both.token.as_deref(), Some("from-variable"));
        assert!(!format!("{both:?}").contains("from-variable"));
        assert!(options(&[("HF_HUB_OFFLINE", "1")]).local_files_only);
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).local_files_only);
    }

    #[test]
    fn odd_settings_are_errors_that_name_them() {
        let with =
            |endpoint: &str| HubOptions { endpoint: Some(endpoint.to_owned()), ..HubOptions::default() };
        assert_eq!(with("https://mirror.example/").checked_endpoint().ok(), Some("https://mirror.example"));
        for bad in ["", "mirror.example", "ftp://x", "https://", "http://a b"] {
            assert!(with(bad).checked_endpoint().is_err(), "{bad}");
        }
        let token = HubOptions { token: Some("two words".to_owned()), ..HubOptions::default() };
        assert!(token.checked_token().expect_err("it has a blank").to_string().contains("HF_TOKEN"));
        let revision = HubOptions { revision: Some("../x".to_owned()), ..HubOptions::default() };
        assert!(
            revision.checked_revision().expect_err("it leaves the folder").to_string().contains("`../x`")
        );
    }
}
