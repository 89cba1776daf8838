//! Model names to local folders: the hub's cache, and the hub itself.
//!
//! The cache is the one that the hub's other clients use, so a model that they fetched is found here and the other
//! way round. Only the files that a FLUX pipeline reads are fetched; an interrupted file is resumed.
//!
//! # Layout
//! - `id`: [`RepoId`], a checked repository name
//! - `options`: [`HubOptions`], from the environment variables that the hub's clients share
//! - `plan`: which files a pipeline needs
//! - `fetch`: [`fetch`], the entry; [`Progress`]
//! - `patience`: a hub that falls silent is not waited for
//! - `cached`: [`cached`], what is there already
//! - `error`: [`HubError`], each with a hint and an exit code
//!
//! ```
//! use dg_hub::{HubOptions, RepoId};
//!
//! let id = RepoId::parse("FLUX.1-dev").unwrap();
//! assert_eq!(id.as_str(), "black-forest-labs/FLUX.1-dev");
//!
//! let nowhere = std::env::temp_dir().join("no-such-cache");
//! let options = HubOptions { local_files_only: true, cache_dir: Some(nowhere), ..HubOptions::default() };
//! let error = dg_hub::fetch(&id, &options, &()).unwrap_err();
//! assert_eq!(error.exit(), dg_core::ExitCode::Config);
//! ```
#![forbid(unsafe_code)]

mod cached;
mod error;
mod fetch;
mod id;
mod options;
mod patience;
mod plan;
mod store;

pub use cached::{CachedModel, cached};
pub use error::HubError;
pub use fetch::{FileProgress, Progress, fetch};
pub use id::RepoId;
pub use options::HubOptions;
