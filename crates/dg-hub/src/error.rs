//! What can go wrong between a name and a folder.

use std::path::PathBuf;

use dg_core::ExitCode;

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name cannot be that of a repository.
    #[error("`{name}` is not the name of a model: {reason}")]
    BadName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The repository is not a FLUX model in diffusers layout, or the hub's answers make no sense.
    #[error("`{id}` is not a FLUX model in diffusers layout: `{file}`: {reason}")]
    BadRepo {
        /// The repository.
        id: String,
        /// The file that is missing or wrong.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting is not usable.
    #[error("{setting} is `{value}`: {reason}")]
    BadSetting {
        /// The flag or variable.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another process is fetching the same file.
    #[error("another process is fetching a file of `{id}` (lock file {})", path.display())]
    Busy {
        /// The repository.
        id: String,
        /// The lock file.
        path: PathBuf,
    },
    /// The hub wants a login or an accepted licence.
    #[error("the hub does not give out `{id}` (status {status})")]
    Gated {
        /// The repository.
        id: String,
        /// The hub's status, 401 or 403.
        status: u16,
        /// Whether a token was sent.
        token_sent: bool,
        /// The page of the model.
        page: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Only the cache was allowed, and the model is not there or not complete.
    #[error("`{id}` at `{revision}` is not in the cache {}: {missing}", cache.display())]
    NotCached {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// The hub does not know it.
    #[error("the hub knows no {what} of `{id}` at revision `{revision}`")]
    NotFound {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
        /// What was asked for.
        what: String,
    },
    /// No connection, or one that broke.
    #[error("the hub at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Address of the hub.
        endpoint: String,
        /// What happened.
        reason: String,
    },
}

impl HubError {
    /// The exit code of a program that ends for this.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::BadName { .. }
            | Self::BadRepo { .. }
            | Self::BadSetting { .. }
            | Self::Gated { .. }
            | Self::NotCached { .. }
            | Self::NotFound { .. } => ExitCode::Config,
            Self::Busy { .. } | Self::Io { .. } => ExitCode::Failed,
            Self::Unreachable { .. } => ExitCode::Unreachable,
        }
    }

    /// What to do about it, in one or two sentences.
    pub fn hint(&self) -> String {
        match self {
            Self::BadName { .. } => {
                "give a folder, a name such as `black-forest-labs/FLUX.1-schnell`, or `demo`".to_owned()
            }
            Self::BadRepo { .. } => "use a repository that has a `model_index.json` of class FluxPipeline, \
                                     such as `black-forest-labs/FLUX.1-schnell`"
                .to_owned(),
            Self::BadSetting { setting, .. } => format!("correct {setting} or leave it out"),
            Self::Busy { .. } => "wait until it is done, or stop it, and try again".to_owned(),
            Self::Gated { token_sent: false, page, .. } => format!(
                "accept the licence at {page}, make an access token and set HF_TOKEN to it; \
                 check the spelling too, as private and unknown names are answered alike"
            ),
            Self::Gated { token_sent: true, page, .. } => {
                format!(
                    "accept the licence at {page} with the account that HF_TOKEN belongs to, and check the token"
                )
            }
            Self::Io { .. } => "check that there is room and that the cache is writable; \
                                HF_HUB_CACHE names another folder"
                .to_owned(),
            Self::NotCached { .. } => "drop --local_files_only and unset HF_HUB_OFFLINE to download it, \
                                       or name its folder"
                .to_owned(),
            Self::NotFound { .. } => "check the spelling of the name and of --revision".to_owned(),
            Self::Unreachable { .. } => {
                "check the network, HTTPS_PROXY and HF_ENDPOINT; what was fetched is kept. \
                                         A model in the cache or in a folder needs no network"
                    .to_owned()
            }
        }
    }
}
