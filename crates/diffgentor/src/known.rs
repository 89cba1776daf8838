//! Folders of models that were used before, by model hash.
//!
//! A picture records the name and the hash of its model but no path, so that equal pictures are equal
//! files on all machines. This is how `--from_image` finds the folder again: one small file per
//! model in the user's cache folder. Everything here may fail in silence; then `--model_name` is needed.

use crate::output::write;
use std::path::{Path, PathBuf};

/// A folder that was used before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its model hash at that time.
    pub(crate) hash: String,
    /// Where it was.
    pub(crate) path: PathBuf,
}

/// Remembers where the model with this hash is.
pub(crate) fn remember(hash: &str, folder: &Path) {
    let Some(cache) = cache().filter(|_| is_hash(hash)) else { return };
    remember_in(&cache, hash, folder);
}

/// Where the model with this hash was, if it was used before.
pub(crate) fn recall(hash: &str) -> Option<PathBuf> {
    recall_in(&cache()?, hash)
}

/// All folders that were used before and are still there.
pub(crate) fn all() -> Vec<Known> {
    let Some(entries) = cache().and_then(|c| std::fs::read_dir(c).ok()) else { return Vec::new() };
    let hashes = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let known = hashes.filter_map(|hash| Some(Known { path: recall(&hash)?, hash }));
    let mut known: Vec<Known> = known.collect();
    known.sort_by(|a, b| a.path.cmp(&b.path));
    known
}

fn remember_in(cache: &Path, hash: &str, folder: &Path) {
    let Some(text) = folder.canonicalize().ok().and_then(|p| p.into_os_string().into_string().ok()) else {
        return;
    };
    if recall_in(cache, hash).is_some_and(|known| known == Path::new(&text)) {
        return;
    }
    let written =
        std::fs::create_dir_all(cache).and_then(|()| write::atomically(&cache.join(hash), text.as_bytes()));
    if let Err(e) = written {
        tracing::debug!("cannot remember {}: {e}", folder.display());
    }
}

fn recall_in(cache: &Path, hash: &str) -> Option<PathBuf> {
    if !is_hash(hash) {
        return None;
    }
    let path = PathBuf::from(std::fs::read_to_string(cache.join(hash)).ok()?);
    (path.is_absolute() && path.is_dir()).then_some(path)
}

/// Nothing but a hash becomes a file name.
fn is_hash(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())
}

fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("diffgentor").join("models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, model) = (dir.path().join("cache"), dir.path().join("model"));
        std::fs::create_dir(&model).unwrap();
        let hash = "0123456789abcdef".repeat(4);
        assert_eq!(recall_in(&cache, &hash), None);
        remember_in(&cache, &hash, &model);
        assert_eq!(recall_in(&cache, &hash), Some(model.canonicalize().unwrap()));
        std::fs::remove_dir(&model).unwrap();
        assert_eq!(recall_in(&cache, &hash), None);
        for bad in ["", "../x", "0123", &"/".repeat(64)] {
            assert_eq!(recall_in(&cache, bad), None);
        }
    }
}
