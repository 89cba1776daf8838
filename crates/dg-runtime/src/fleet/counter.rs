//! Numbers that are larger after each start, whatever the clock says.

use std::fs::File;
use std::io::{ErrorKind, Result, Write};
use std::path::Path;

/// The next number of the file: above the last one, and at least `least`.
pub(super) fn next(path: &Path, least: u64) -> Result<u64> {
    let last = match std::fs::read_to_string(path) {
        Ok(text) => {
            let number = text.trim().parse::<u64>();
            Some(number.map_err(|e| std::io::Error::new(ErrorKind::InvalidData, e))?)
        }
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let next = last.map_or(1, |last| last.saturating_add(1)).max(least);
    let temporary = path.with_added_extension("tmp");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{next}")?;
    // Or a power cut leaves a file without a number.
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::next;

    #[test]
    fn numbers_grow_when_the_clock_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.start");
        assert_eq!(next(&path, 0).unwrap(), 1);
        let clock = [1000, 1000, 400, 2000, 0].map(|now| next(&path, now).unwrap());
        assert_eq!(clock, [1000, 1001, 1002, 2000, 2001]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2001\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        std::fs::write(&path, "x").unwrap();
        assert!(next(&path, 7).is_err());
    }
}
