//! Libraries that are looked for when the program runs.
#![allow(unsafe_code, reason = "functions of other libraries are what they say they are")]

use crate::error::{GpuError, Result};
use std::error::Error;
use std::path::{Path, PathBuf};

/// A library that is loaded, for as long as the program runs: what it has started in this process cannot be stopped.
#[derive(Debug)]
pub(crate) struct Dynamic {
    library: libloading::Library,
    pub(crate) path: PathBuf,
}

impl Dynamic {
    /// The first of `names` that loads; otherwise all names, and the last reason.
    pub(crate) fn first(names: &[PathBuf]) -> std::result::Result<&'static Self, (String, String)> {
        let mut reason = String::from("nothing was tried");
        for name in names {
            // SAFETY: these are the vendor's libraries, or what the user names instead; their initialisers are theirs.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => {
                    let path = whence(name);
                    return Ok(Box::leak(Box::new(Self { library, path })));
                }
                // What the system says is behind it.
                Err(error) => reason = error.source().map_or_else(|| error.to_string(), ToString::to_string),
            }
        }
        let tried: Vec<_> = names.iter().map(|name| name.display().to_string()).collect();
        Err((tried.join(", "), reason))
    }

    /// A function by its name.
    ///
    /// # Safety
    /// `F` must be the type of that function: `extern "C"` with the arguments of the library's header.
    pub(crate) unsafe fn function<F: Copy>(&self, symbol: &'static str) -> Result<F> {
        // SAFETY: the caller's promise.
        let found = unsafe { self.library.get::<F>(symbol.as_bytes()) };
        found.map(|found| *found).map_err(|_| GpuError::NoSymbol { library: self.path.clone(), symbol })
    }
}

/// The file that was loaded under a name, as far as the system tells.
fn whence(name: &Path) -> PathBuf {
    if name.is_absolute() {
        return name.to_owned();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let file = name.file_name().unwrap_or(name.as_os_str()).to_string_lossy().into_owned();
    let of_name = |path: &&str| {
        let last = path.rsplit('/').next().unwrap_or_default();
        last.starts_with(file.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
    };
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths
        .clone()
        .find(|path| path.ends_with(&*file))
        .or_else(|| paths.clone().find(of_name))
        .map_or_else(|| name.to_owned(), PathBuf::from)
}
