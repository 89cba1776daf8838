//! Files from the disk.

use crate::failure::Failure;
use dg_config::ClusterFile;
use dg_core::ExitCode;
use std::io::Read;
use std::path::Path;

/// A file and the text that it was read from.
pub(crate) struct Loaded {
    /// What it says.
    pub(crate) file: ClusterFile,
    /// The text.
    pub(crate) text: String,
}

/// Reads and checks a file; whether its degrees suit its nodes is left to the caller.
pub(crate) fn load(path: &Path) -> Result<Loaded, Failure> {
    let fail = |what: String| {
        Failure::new(
            ExitCode::Config,
            format!("{}: {what}", path.display()),
            "name a TOML file; see docs/cluster.md",
        )
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| fail(e.to_string()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(fail(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|e| fail(format!("not UTF-8: {e}")))?;
    let file = ClusterFile::read(path, &text)?;
    Ok(Loaded { file, text })
}

const FILE_BYTES_MAX: u64 = 1 << 20;
