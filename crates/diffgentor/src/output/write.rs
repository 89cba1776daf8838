//! Files that are there whole or not at all: temporary file, fsync, rename, fsync of the folder.
//!
//! A temporary file is locked as long as its writer lives, so a sweep can tell a file that a killed
//! run left behind from one that another run is writing in the same folder.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `bytes` to `path` in place of what was there.
pub(crate) fn atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let (temp, mut file) = Temp::create(folder)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temp.0, path)?;
    temp.forget();
    // some file systems cannot sync a folder: the picture itself is safe by then
    let _ = File::open(folder).and_then(|f| f.sync_all());
    Ok(())
}

/// Whether a file can be made in `folder`; a full disk does not count as a refusal.
pub(crate) fn probe(folder: &Path) -> Result<()> {
    match Temp::create(folder) {
        Err(e) if e.kind() != ErrorKind::StorageFull => Err(e),
        _ => Ok(()),
    }
}

/// Removes the temporary files that runs which no longer live left in `folder`; says how many.
pub(crate) fn sweep(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let ours = entries.flatten().filter(|e| {
        let name = e.file_name();
        let named = name.to_str().is_some_and(|n| n.starts_with(PREFIX) && n.ends_with(SUFFIX));
        named && e.file_type().is_ok_and(|t| t.is_file())
    });
    let stale = |path: &PathBuf| File::open(path).is_ok_and(|f| f.try_lock().is_ok());
    ours.map(|e| e.path()).filter(|path| stale(path) && std::fs::remove_file(path).is_ok()).count()
}

/// Removes the temporary files of this process: it is about to end.
pub(crate) fn remove_own() {
    if let Ok(mut paths) = OWN.lock() {
        for path in paths.drain(..) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes its file when dropped.
struct Temp(PathBuf);

impl Temp {
    fn create(folder: &Path) -> Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..TRIES {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{PREFIX}{}-{n}{SUFFIX}", std::process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            if let Ok(mut paths) = OWN.lock() {
                paths.push(path.clone());
            }
            let temp = Self(path);
            // without locks (some network folders) a sweep leaves the file alone as well
            let _ = file.try_lock();
            // a sweep may have come between creating and locking: then the name is gone
            if temp.0.exists() {
                return Ok((temp, file));
            }
        }
        Err(Error::new(ErrorKind::AlreadyExists, "no free name for a temporary file"))
    }

    /// The file has another name now.
    fn forget(self) {
        self.unlist();
        std::mem::forget(self);
    }

    fn unlist(&self) {
        if let Ok(mut paths) = OWN.lock() {
            paths.retain(|p| *p != self.0);
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        self.unlist();
    }
}

static OWN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
const PREFIX: &str = ".dg-";
const SUFFIX: &str = ".tmp";
const TRIES: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        atomically(&path, b"one").unwrap();
        atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["x.png"]);
        // a folder in the way: an error, and nothing left behind
        std::fs::create_dir(dir.path().join("y.png")).unwrap();
        assert!(atomically(&dir.path().join("y.png"), b"one").is_err());
        assert!(atomically(&dir.path().join("none/z.png"), b"one").is_err());
        assert_eq!(names(dir.path()), ["x.png", "y.png"]);
    }

    #[test]
    fn a_sweep_takes_only_what_nobody_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (held, _file) = Temp::create(dir.path()).unwrap();
        for name in [".dg-1-1.tmp", ".dg-notes", "a.tmp", "x.png"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(sweep(dir.path()), 1);
        let held_name = held.0.file_name().unwrap().to_str().unwrap().to_string();
        let mut left = vec![held_name, ".dg-notes".into(), "a.tmp".into(), "x.png".into()];
        left.sort();
        assert_eq!(names(dir.path()), left);
    }
}
