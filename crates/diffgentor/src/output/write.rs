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
    let folder = folder_of(path);
    let (temp, mut file) = Temp::create(folder)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temp.0, path)?;
    temp.forget();
    // some file systems cannot sync a folder: the picture itself is safe by then
    let _ = File::open(folder).and_then(|f| f.sync_all());
    Ok(())
}

/// Writes `bytes` to what `path` names: in place of a regular file, behind symbolic links too, and
/// into a device, a FIFO or a descriptor of this process, which are never replaced.
pub(crate) fn to_target(path: &Path, bytes: &[u8]) -> Result<()> {
    match target(path)? {
        Target::Replace(path) => atomically(&path, bytes),
        // `append`: what went to a redirected standard output before stays
        Target::Into => OpenOptions::new().append(true).open(path)?.write_all(bytes),
    }
}

/// Whether [`to_target`] can be expected to work; a full disk does not count as a refusal.
pub(crate) fn probe_target(path: &Path) -> Result<()> {
    match target(path)? {
        Target::Replace(path) => probe(folder_of(&path)),
        // opening a FIFO would wait for its reader
        Target::Into => Ok(()),
    }
}

/// What a path stands for.
enum Target {
    /// This file, whether it is there or not, can be renamed over.
    Replace(PathBuf),
    /// Something that must be opened.
    Into,
}

fn target(path: &Path) -> Result<Target> {
    let there = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Err(ErrorKind::IsADirectory.into()),
        Ok(meta) if !meta.is_file() => return Ok(Target::Into),
        Ok(_) => true,
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        // `/dev/stdout` and its like: a link to an open file
        if there && (path.starts_with("/dev/fd") || path.starts_with("/proc")) {
            return Ok(Target::Into);
        }
        match std::fs::read_link(&path) {
            Ok(link) => path = folder_of(&path).join(link),
            Err(_) => return Ok(Target::Replace(path)),
        }
    }
    Err(Error::other("too many symbolic links"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Whether no other file can be written either: the file system is full, over quota or read-only.
pub(crate) fn is_no_room(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
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
const LINKS_MAX: usize = 40;

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
    fn links_and_devices_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        for (link, to) in [("a", "b"), ("b", "d/c"), ("loop", "loop"), ("null", "/dev/null")] {
            std::os::unix::fs::symlink(to, path(link)).unwrap();
        }
        for text in ["one", "two"] {
            to_target(&path("a"), text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(path("d/c")).unwrap(), text);
        }
        to_target(&path("null"), b"x").unwrap();
        for name in ["loop", "d", "none/x"] {
            assert!(to_target(&path(name), b"x").is_err() && probe_target(&path(name)).is_err(), "{name}");
        }
        for name in ["a", "null", "new"] {
            probe_target(&path(name)).unwrap();
        }
        assert_eq!(names(dir.path()), ["a", "b", "d", "loop", "null"]);
        assert!(path("a").is_symlink() && path("b").is_symlink() && path("null").is_symlink());
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
