//! Which clusters are up on this host.

use std::path::{Path, PathBuf};

/// The folder below which state is kept unless somebody says otherwise.
pub fn base() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let usual = || home().unwrap_or_else(|| Path::new(".").into()).join(".local/state");
    state.unwrap_or_else(usual).join("dg-cluster")
}

/// Notes that the head of this cluster, whose state folder this is, runs here.
///
/// # Errors
/// If the note cannot be written.
pub fn announce(name: &str, folder: &Path) -> std::io::Result<()> {
    let notes = base().join("running");
    std::fs::create_dir_all(&notes)?;
    std::fs::write(notes.join(note(name, folder)), folder.canonicalize()?.as_os_str().as_encoded_bytes())
}

/// Takes the note away.
pub fn withdraw(name: &str, folder: &Path) {
    let _ = std::fs::remove_file(base().join("running").join(note(name, folder)));
}

/// Names and state folders of the clusters whose heads run here. Notes of those that died are swept.
pub fn running() -> Vec<(String, PathBuf)> {
    let notes = std::fs::read_dir(base().join("running")).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for note in notes {
        let name = note.file_name().to_string_lossy().into_owned();
        let Ok(folder) = std::fs::read_to_string(note.path()) else { continue };
        let folder = PathBuf::from(folder);
        if is_up(&folder) {
            let name = name.rsplit_once('-').map_or(name.as_str(), |(name, _)| name).to_owned();
            found.push((name, folder));
        } else {
            let _ = std::fs::remove_file(note.path());
        }
    }
    found.sort();
    found
}

/// Whether the head whose state folder this is runs on this host.
pub fn is_up(folder: &Path) -> bool {
    // Held by the head while it lives.
    super::lock::is_taken(&folder.join("head.lock"))
}

/// Clusters of one name may have several folders.
fn note(name: &str, folder: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    folder.canonicalize().unwrap_or_else(|_| folder.into()).hash(&mut hasher);
    format!("{name}-{:08x}", hasher.finish() as u32)
}
