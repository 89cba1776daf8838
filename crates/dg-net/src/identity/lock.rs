//! One writer of a file at a time, among all processes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::IdentityError;
use super::state::file_error;

/// Held until it is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it is what unlocks")] File);

/// Waits until nobody else changes the file at `path`. A file of its own is locked: the other one is replaced, not
/// written to.
pub(crate) fn lock(path: &Path) -> Result<Lock, IdentityError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let path = path.with_file_name(format!(".{name}.lock"));
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|e| file_error(&path, e, "is the folder writable, the disk full?"))?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < WAIT_MAX => std::thread::sleep(PAUSE),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                let hint = "find out who holds it (`fuser`), and try again";
                return Err(file_error(&path, "another process has held it for five seconds", hint));
            }
            Err(e) => {
                let hint = "put the state folder on a file system that has locks (`state_dir`)";
                return Err(file_error(&path, e, hint));
            }
        }
    }
}

const PAUSE: Duration = Duration::from_millis(5);
const WAIT_MAX: Duration = Duration::from_secs(5);
