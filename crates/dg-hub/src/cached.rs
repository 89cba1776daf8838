//! What the cache holds.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use crate::store::{Store, read_reference, read_small};
use crate::{HubOptions, RepoId};

/// One revision of a FLUX-like model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// The repository.
    pub id: RepoId,
    /// The branch or tag that it was asked for by, or the commit if none is known.
    pub revision: String,
    /// Its folder.
    pub path: PathBuf,
    /// The size of its files.
    pub bytes: u64,
    /// Whether all files that the pipeline needs are there.
    pub complete: bool,
}

/// The FLUX-like models in the cache, by name. Empty if there is no cache.
pub fn cached(options: &HubOptions) -> Vec<CachedModel> {
    let Ok(cache) = options.checked_cache_dir() else { return Vec::new() };
    let mut models: Vec<_> = entries(&cache)
        .filter_map(|folder| {
            RepoId::parse(&folder.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1))
                .ok()
        })
        .flat_map(|id| revisions(&cache, &id))
        .collect();
    models.sort_by(|a, b| (a.id.as_str(), &a.revision).cmp(&(b.id.as_str(), &b.revision)));
    models
}

fn revisions(cache: &Path, id: &RepoId) -> Vec<CachedModel> {
    let at = |revision: String| Store { id: id.clone(), revision, cache: cache.to_owned() };
    let folder = at(String::new()).folder();
    let mut names = BTreeMap::new();
    collect_references(&folder.join("refs"), "", 0, &mut names);
    for snapshot in entries(&folder.join("snapshots")) {
        let Some(commit) = snapshot.file_name().and_then(|name| name.to_str()) else { continue };
        if !names.values().any(|known| known == commit) {
            names.insert(commit.to_owned(), commit.to_owned());
        }
    }
    let model = |(revision, commit): (String, String)| {
        let store = at(revision.clone());
        let path = store.snapshot(&commit);
        if !is_flux(&path) {
            return None;
        }
        let bytes = folder_bytes(&path, 0, &mut HashSet::new());
        let complete = store.local().is_ok();
        Some(CachedModel { id: id.clone(), revision, path, bytes, complete })
    };
    names.into_iter().filter_map(model).collect()
}

/// Revision and commit of every file under `refs`; names may have slashes.
fn collect_references(folder: &Path, prefix: &str, depth: usize, names: &mut BTreeMap<String, String>) {
    for path in entries(folder) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = format!("{prefix}{name}");
        if path.is_dir() && depth < DEPTH_MAX {
            collect_references(&path, &format!("{name}/"), depth + 1, names);
        } else if let Some(commit) = read_reference(&path) {
            names.insert(name, commit);
        }
    }
}

fn is_flux(snapshot: &Path) -> bool {
    let index = read_small(&snapshot.join("model_index.json")).unwrap_or_default();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
    index
        .get("_class_name")
        .and_then(serde_json::Value::as_str)
        .is_some_and(|class| class.starts_with("Flux"))
}

/// The size of the files behind the links, each counted once.
fn folder_bytes(folder: &Path, depth: usize, seen: &mut HashSet<PathBuf>) -> u64 {
    let mut bytes = 0;
    for path in entries(folder) {
        if path.is_dir() {
            bytes += if depth < DEPTH_MAX { folder_bytes(&path, depth + 1, seen) } else { 0 };
        } else if let Ok(target) = path.canonicalize()
            && let Ok(metadata) = target.metadata()
            && seen.insert(target)
        {
            bytes += metadata.len();
        }
    }
    bytes
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// How deep folders are followed; a link that leads back to itself ends here.
const DEPTH_MAX: usize = 4;
