//! From a name to a folder.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::id::{is_commit, is_plain_name};
use crate::options::io_error;
use crate::patience::{Beat, Failure, Pulse, watched};
use crate::plan::{JSON_BYTES_MAX, Listing, plan};
use crate::store::{Store, read_small};
use crate::{HubError, HubOptions, RepoId};

/// How far one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileProgress<'a> {
    /// Name of the file in the repository.
    pub file: &'a str,
    /// Its size.
    pub bytes_total: u64,
    /// What is on this machine of it, what an earlier run fetched included.
    pub bytes_done: u64,
}

/// Is told how the files that are fetched come along. `()` does not listen.
pub trait Progress {
    /// Some bytes came, or a file begins. After a broken connection `bytes_done` may step back.
    fn advanced(&self, progress: FileProgress<'_>);
    /// A file is complete and in its place.
    fn finished(&self, file: &str);
}

impl Progress for () {
    fn advanced(&self, _progress: FileProgress<'_>) {}
    fn finished(&self, _file: &str) {}
}

/// The folder of a model, after fetching what is missing of it.
///
/// With [`HubOptions::local_files_only`] nothing is fetched. If the hub cannot be reached, or is silent for
/// `HubOptions::stall`, and the cache has the whole revision, that is used, with a warning.
pub fn fetch(id: &RepoId, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    let store = Store::new(id, options)?;
    if options.local_files_only {
        return store.local();
    }
    // A commit never changes: if it is all here, the hub has nothing to add.
    if is_commit(&store.revision)
        && let Ok(folder) = store.local()
    {
        return Ok(folder);
    }
    match download(&store, options, progress) {
        Err(error @ HubError::Unreachable { .. }) => match store.local() {
            Ok(folder) => {
                tracing::warn!("{error}; using `{id}` as the cache has it");
                Ok(folder)
            }
            Err(_) => Err(error),
        },
        result => result,
    }
}

fn download(store: &Store, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    let client = Client::new(store, options)?;
    let at = |revision: &str| Repo::with_revision(store.id.to_string(), RepoType::Model, revision.to_owned());
    let repo = client.api.repo(at(&store.revision));
    let info = client.call("model", move |_pulse| repo.info(), |_| ())?;
    let commit = info.sha;
    if !is_plain_name(&commit) {
        return Err(store.bad_repo("the listing", format!("its commit is `{}`", commit.escape_debug())));
    }
    // Asking for the commit, not the branch, keeps files of two revisions apart while the repository changes.
    let remote = Remote {
        repo: Arc::new(client.api.repo(at(&commit))),
        cache: Cache::new(store.cache.clone()).repo(at(&commit)),
        listed: info.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
        snapshot: store.snapshot(&commit),
        commit: &commit,
        client,
        progress,
    };
    for file in plan(&remote)? {
        remote.provide(&file)?;
    }
    store.write_reference(&commit)?;
    if store.revision != commit {
        // hf-hub leaves one for the commit itself; other clients do not.
        let _ = std::fs::remove_file(store.reference(&commit));
    }
    Ok(remote.snapshot)
}

/// The hub, and how its errors are told.
struct Client<'a> {
    api: Api,
    store: &'a Store,
    endpoint: String,
    token_sent: bool,
    stall: Duration,
    /// Whether a call was left behind: it may hold the lock of its file, so that nothing can be tried again.
    stalled: Cell<bool>,
}

impl<'a> Client<'a> {
    fn new(store: &'a Store, options: &HubOptions) -> Result<Self, HubError> {
        let endpoint = options.checked_endpoint()?.to_owned();
        let token = options.checked_token()?;
        let token_sent = token.is_some();
        // No retries in there: after a resumed download that broke at once they would begin at byte 0 and append.
        let api = ApiBuilder::from_cache(Cache::new(store.cache.clone()))
            .with_endpoint(endpoint.clone())
            .with_token(token)
            .with_progress(false)
            .with_retries(0)
            .build();
        let stall = options.stall();
        match api {
            Ok(api) => Ok(Self { api, store, endpoint, token_sent, stall, stalled: Cell::new(false) }),
            Err(error) => Err(HubError::Unreachable { endpoint, reason: error.to_string() }),
        }
    }

    /// Asks for `what`, unless the hub is silent for too long.
    fn call<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(Pulse) -> Result<T, ApiError> + Send + 'static,
        told: impl FnMut(Beat),
    ) -> Result<T, HubError> {
        watched(self.stall, call, told).map_err(|failure| match failure {
            Failure::Api(error) => self.classify(error, what),
            Failure::Thread(source) => io_error(&self.store.folder(), source),
            Failure::Stalled => {
                self.stalled.set(true);
                self.unreachable(format!("{what}: nothing came for {:?}", self.stall))
            }
        })
    }

    fn classify(&self, error: ApiError, what: &str) -> HubError {
        match error {
            ApiError::RequestError(error) => self.classify_request(&error, what),
            ApiError::IoError(source) if is_network(&source) => self.unreachable(source.to_string()),
            ApiError::IoError(source) => io_error(&self.store.folder(), source),
            ApiError::LockAcquisition(path) => HubError::Busy { id: self.store.id.to_string(), path },
            other => self.store.bad_repo(what, format!("the hub's answer: {other}")),
        }
    }

    fn classify_request(&self, error: &ureq::Error, what: &str) -> HubError {
        let id = self.store.id.to_string();
        match error {
            ureq::Error::StatusCode(status @ (401 | 403)) => {
                let page = format!("{}/{id}", self.endpoint);
                HubError::Gated { id, status: *status, token_sent: self.token_sent, page }
            }
            ureq::Error::StatusCode(404) => {
                HubError::NotFound { id, revision: self.store.revision.clone(), what: what.to_owned() }
            }
            other => self.unreachable(other.to_string()),
        }
    }

    fn unreachable(&self, reason: String) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }
}

/// Whether an IO error of hf-hub came from the connection and not from the disk.
fn is_network(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<ureq::Error>())
        || matches!(
            error.kind(),
            ErrorKind::BrokenPipe
                | ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::NotConnected
                | ErrorKind::TimedOut
                | ErrorKind::UnexpectedEof
        )
}

/// One commit of a repository on the hub.
struct Remote<'a> {
    client: Client<'a>,
    repo: Arc<ApiRepo>,
    cache: CacheRepo,
    listed: HashSet<String>,
    snapshot: PathBuf,
    commit: &'a str,
    progress: &'a dyn Progress,
}

impl Listing for Remote<'_> {
    fn has(&self, name: &str) -> bool {
        self.listed.contains(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, HubError> {
        self.provide(name)?;
        read_small(&self.snapshot.join(name))
    }

    fn missing(&self, name: &str) -> HubError {
        self.broken(name, "the repository has no such file".to_owned())
    }

    fn broken(&self, name: &str, reason: String) -> HubError {
        self.client.store.bad_repo(name, reason)
    }
}

impl Remote<'_> {
    /// Makes sure that a file is in the snapshot.
    fn provide(&self, name: &str) -> Result<(), HubError> {
        // A file appears there only when its blob is complete.
        if self.snapshot.join(name).is_file() {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match self.provide_once(name) {
                Err(HubError::Unreachable { reason, .. })
                    if attempt < ATTEMPTS_MAX && !self.client.stalled.get() =>
                {
                    tracing::warn!("{name}: {reason}; trying again");
                    std::thread::sleep(RETRY_PAUSE * attempt);
                    attempt += 1;
                }
                Ok(()) => {
                    self.progress.finished(name);
                    return Ok(());
                }
                error => return error,
            }
        }
    }

    fn provide_once(&self, name: &str) -> Result<(), HubError> {
        let what = format!("file `{name}`");
        let (api, url) = (self.client.api.clone(), self.repo.url(name));
        let metadata = self.client.call(&what, move |_pulse| api.metadata(&url), |_| ())?;
        self.check(name, &metadata)?;
        let size = metadata.size() as u64;
        let blob = self.cache.blob_path(metadata.etag());
        let pointer = self.snapshot.join(name);
        if file_size(&blob) == Some(size) && link(&blob, &pointer, name).is_ok() {
            return Ok(());
        }
        drop_useless_part(&blob, size).map_err(|source| io_error(&blob, source))?;
        let mut meter = Meter { progress: self.progress, file: name, bytes_total: size, bytes_done: 0 };
        let (repo, file) = (Arc::clone(&self.repo), name.to_owned());
        let call = move |pulse| repo.download_with_progress(&file, pulse);
        self.client.call(&what, call, |beat| meter.count(beat))?;
        if file_size(&pointer) == Some(size) {
            return Ok(());
        }
        // A server that ignored the range, for instance. Nothing of it can be trusted.
        let found = file_size(&pointer).unwrap_or(0);
        for path in [&pointer, &blob] {
            std::fs::remove_file(path).map_err(|source| io_error(path, source))?;
        }
        Err(self.client.unreachable(format!("`{name}` came with {found} bytes instead of {size}")))
    }

    /// Refuses answers that would put a file in the wrong place or take too much room.
    fn check(&self, name: &str, metadata: &Metadata) -> Result<(), HubError> {
        if !is_plain_name(metadata.etag()) {
            return Err(self.broken(name, format!("its ETag is `{}`", metadata.etag().escape_debug())));
        }
        if metadata.commit_hash() != self.commit {
            let other = metadata.commit_hash().escape_debug();
            return Err(self.broken(name, format!("it is of commit `{other}`, not `{}`", self.commit)));
        }
        if name.ends_with(".json") && metadata.size() as u64 > JSON_BYTES_MAX {
            return Err(
                self.broken(name, format!("it has {} bytes, more than {JSON_BYTES_MAX}", metadata.size()))
            );
        }
        Ok(())
    }
}

fn file_size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// A blob that an earlier revision brought needs only a link, as hf-hub itself makes them.
#[cfg(unix)]
fn link(blob: &Path, pointer: &Path, name: &str) -> std::io::Result<()> {
    let up = "../".repeat(name.split('/').count() + 1);
    let etag = blob.file_name().ok_or(ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(pointer.parent().ok_or(ErrorKind::InvalidInput)?)?;
    if pointer.is_symlink() {
        std::fs::remove_file(pointer)?;
    }
    std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), pointer)
}

#[cfg(not(unix))]
fn link(_blob: &Path, _pointer: &Path, _name: &str) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// A part that is as long as the file or longer cannot be resumed: the hub refuses the empty rest.
fn drop_useless_part(blob: &Path, size: u64) -> std::io::Result<()> {
    let part = blob.with_extension("part");
    match file_size(&part) {
        Some(length) if length >= size => std::fs::remove_file(&part),
        _ => Ok(()),
    }
}

/// Passes hf-hub's counts on.
struct Meter<'a> {
    progress: &'a dyn Progress,
    file: &'a str,
    bytes_total: u64,
    bytes_done: u64,
}

impl Meter<'_> {
    fn count(&mut self, beat: Beat) {
        match beat {
            // Comes again after a resume, which then counts what is there already.
            Beat::Began => self.bytes_done = 0,
            Beat::Came(bytes) => {
                self.bytes_done += bytes as u64;
                self.tell();
            }
            Beat::Ended => self.tell(),
        }
    }

    fn tell(&self) {
        let Self { file, bytes_total, bytes_done, .. } = *self;
        self.progress.advanced(FileProgress { file, bytes_total, bytes_done });
    }
}

const ATTEMPTS_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(300);
