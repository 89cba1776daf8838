//! What is missing on this machine, and what a device or NCCL says.

use std::path::PathBuf;

/// Result of a call to a device or to NCCL.
pub type Result<T> = std::result::Result<T, GpuError>;

/// Why a GPU or NCCL cannot be used, or what it answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The NVIDIA driver's library is not there.
    #[error("no NVIDIA driver here: {tried} cannot be loaded ({reason}); hint: install the driver")]
    NoDriver {
        /// Names that were tried.
        tried: String,
        /// What the system said of the last one.
        reason: String,
    },
    /// The driver has no such device.
    #[error(
        "there is no CUDA device {ordinal}: the driver has {count}; hint: CUDA_VISIBLE_DEVICES hides devices"
    )]
    NoDevice {
        /// The number that was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// NCCL is not there.
    #[error(
        "no NCCL here: {tried} cannot be loaded ({reason}); hint: install libnccl2, or name the library in DG_NCCL_LIBRARY"
    )]
    NoNccl {
        /// Names that were tried.
        tried: String,
        /// What the system said of the last one.
        reason: String,
    },
    /// NVRTC is not there.
    #[error(
        "no NVRTC here: {tried} cannot be loaded ({reason}); hint: install the CUDA toolkit (12 or 13), or its NVRTC package"
    )]
    NoNvrtc {
        /// Names that were tried.
        tried: String,
        /// What the system said of the last one.
        reason: String,
    },
    /// A library lacks a function that is needed.
    #[error("{library} lacks the function {symbol}; hint: it is another library of that name, or too old")]
    NoSymbol {
        /// Where it was looked for.
        library: PathBuf,
        /// Its name.
        symbol: &'static str,
    },
    /// NCCL is older than what is used of it.
    #[error(
        "{library} is NCCL {have}; {need} or newer is needed; hint: update it, or name another library in DG_NCCL_LIBRARY, as that of `pip install \"nvidia-nccl-cu12>=2.27\"`"
    )]
    TooOld {
        /// The library.
        library: PathBuf,
        /// Its version.
        have: Version,
        /// The oldest that will do.
        need: Version,
    },
    /// There is not enough memory on the device.
    #[error("the device has no {need} bytes left ({free} of {total} are free)")]
    OutOfMemory {
        /// What was asked for.
        need: u64,
        /// What is free.
        free: u64,
        /// What there is.
        total: u64,
    },
    /// The driver refuses.
    #[error("{call}: {what} (CUDA error {code})")]
    Cuda {
        /// The function.
        call: &'static str,
        /// What the driver calls the error.
        what: String,
        /// Its number.
        code: i32,
    },
    /// The code that makes room for messages has a fault.
    #[error("making room for a message panicked: {0}")]
    Panicked(String),
    /// NCCL refuses.
    #[error("{call}: {what} (NCCL error {code}); hint: NCCL_DEBUG=INFO tells more")]
    Nccl {
        /// The function.
        call: &'static str,
        /// What NCCL calls the error, and what it said last.
        what: String,
        /// Its number.
        code: i32,
    },
}

/// Version of NCCL as it numbers itself since 2.9: 10 000 × major + 100 × minor + patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Before 2.9: 1 000 × major + 100 × minor + patch.
        let (major, rest) = if self.0 >= 10_000 {
            (self.0 / 10_000, self.0 % 10_000)
        } else {
            (self.0 / 1000, self.0 % 1000)
        };
        write!(f, "{major}.{}.{}", rest / 100, rest % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_read_as_nccl_writes_them() {
        let texts = [21_803, 22_304, 2708, 23_007].map(|number| Version(number).to_string());
        assert_eq!(texts, ["2.18.3", "2.23.4", "2.7.8", "2.30.7"]);
    }
}
