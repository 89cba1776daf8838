//! Files that are locked while a head or an agent lives.

use std::fs::{File, TryLockError};
use std::io::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// Takes the lock for this process; none if another one keeps it. It is given back when the file is closed.
///
/// Who asks [`is_taken`] holds it for a moment, so it is tried for a little longer than such moments last.
pub(super) async fn take(path: &Path) -> Result<Option<File>> {
    let file = open(path)?;
    let until = Instant::now() + TAKE_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return Ok(None),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(AGAIN).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Whether some process keeps the lock. Those who ask do not see each other.
pub(super) fn is_taken(path: &Path) -> bool {
    path.exists()
        && open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

const TAKE_MAX: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(task: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
    }

    #[test]
    fn who_asks_does_not_keep_the_taker_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!is_taken(&path) && !path.exists());
        // One who asks, and is not let run on for a while.
        let asks = open(&path).unwrap();
        asks.try_lock_shared().unwrap();
        assert!(!is_taken(&path), "another one who asks");
        let asked = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(40));
            drop(asks);
        });
        let taken = run(take(&path)).unwrap();
        asked.join().unwrap();
        assert!(taken.is_some() && is_taken(&path));
        assert!(run(take(&path)).unwrap().is_none(), "it is kept");
        drop(taken);
        assert!(!is_taken(&path) && run(take(&path)).unwrap().is_some());
    }
}
