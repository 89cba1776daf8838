//! One repository in the cache: `models--owner--name/{blobs,refs,snapshots}`.

use std::path::{Path, PathBuf};

use crate::id::{is_commit, is_plain_name};
use crate::options::io_error;
use crate::plan::{JSON_BYTES_MAX, Listing, plan};
use crate::{HubError, HubOptions, RepoId};

/// Where one revision of a repository is, or will be.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) id: RepoId,
    pub(crate) revision: String,
    pub(crate) cache: PathBuf,
}

impl Store {
    pub(crate) fn new(id: &RepoId, options: &HubOptions) -> Result<Self, HubError> {
        let revision = options.checked_revision()?.to_owned();
        Ok(Self { id: id.clone(), revision, cache: options.checked_cache_dir()? })
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.cache.join(format!("models--{}", self.id.as_str().replace('/', "--")))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    pub(crate) fn reference(&self, revision: &str) -> PathBuf {
        self.folder().join("refs").join(revision)
    }

    /// The folder of the revision, if all files that the pipeline needs are in the cache.
    pub(crate) fn local(&self) -> Result<PathBuf, HubError> {
        let commit = if is_commit(&self.revision) {
            self.revision.clone()
        } else {
            read_reference(&self.reference(&self.revision))
                .ok_or_else(|| self.not_cached(format!("no revision `{}` of it is", self.revision)))?
        };
        let snapshot = self.snapshot(&commit);
        if !snapshot.is_dir() {
            return Err(self.not_cached(format!("there is no folder {}", snapshot.display())));
        }
        plan(&LocalListing { store: self, snapshot: &snapshot })?;
        Ok(snapshot)
    }

    /// Lets the revision stand for `commit`, whole or not at all.
    pub(crate) fn write_reference(&self, commit: &str) -> Result<(), HubError> {
        let path = self.reference(&self.revision);
        let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
        let write = || {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&temporary, commit)?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|source| io_error(&path, source))
    }

    pub(crate) fn bad_repo(&self, file: &str, reason: String) -> HubError {
        HubError::BadRepo { id: self.id.to_string(), file: file.to_owned(), reason }
    }

    fn not_cached(&self, missing: String) -> HubError {
        HubError::NotCached {
            id: self.id.to_string(),
            revision: self.revision.clone(),
            cache: self.cache.clone(),
            missing,
        }
    }
}

struct LocalListing<'a> {
    store: &'a Store,
    snapshot: &'a Path,
}

impl Listing for LocalListing<'_> {
    fn has(&self, name: &str) -> bool {
        // Follows the link: a blob that was deleted is a file that is missing.
        self.snapshot.join(name).is_file()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, HubError> {
        read_small(&self.snapshot.join(name))
    }

    fn missing(&self, name: &str) -> HubError {
        self.store.not_cached(format!("`{name}` is missing"))
    }

    fn broken(&self, name: &str, reason: String) -> HubError {
        self.store.bad_repo(name, reason)
    }
}

/// The commit that a file of `refs` names, if it names one.
pub(crate) fn read_reference(path: &Path) -> Option<String> {
    let commit = String::from_utf8(read_small(path).ok()?).ok()?;
    is_plain_name(commit.trim()).then(|| commit.trim().to_owned())
}

/// Reads a file of at most [`JSON_BYTES_MAX`].
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, HubError> {
    let read = || {
        let size = std::fs::metadata(path)?.len();
        if size > JSON_BYTES_MAX {
            let message = format!("it has {size} bytes, more than {JSON_BYTES_MAX}");
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
        }
        std::fs::read(path)
    };
    read().map_err(|source| io_error(path, source))
}
