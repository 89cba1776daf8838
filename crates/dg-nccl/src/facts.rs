//! What this machine has of GPUs and of the libraries that they need.
#![allow(unsafe_code, reason = "NVRTC is asked for its version")]

use crate::driver::Driver;
use crate::dynamic::Dynamic;
use crate::error::{GpuError, Result};
use crate::library::Library;
use crate::usage::{Meter, Usage};
use std::ffi::c_int;
use std::path::{Path, PathBuf};

/// All of it. What is missing is the error that its use would be.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The driver, and the devices that this process sees.
    pub driver: Result<DriverFacts>,
    /// The devices of the machine by NVML, or why it does not tell.
    pub nvml: std::result::Result<NvmlFacts, String>,
    /// What compiles kernels.
    pub nvrtc: std::result::Result<Found, String>,
    /// Folder of CUDA's headers, which kernels include.
    pub headers: Option<PathBuf>,
    /// What carries tensors between devices.
    pub nccl: Result<Found>,
}

/// A library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub version: String,
}

/// The driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFacts {
    /// The library; its version is the newest CUDA that it speaks.
    pub library: Found,
    /// Name and bytes of memory of each device.
    pub devices: Vec<(String, u64)>,
}

/// NVML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmlFacts {
    /// Version of the driver.
    pub driver: String,
    /// All devices.
    pub devices: Vec<Usage>,
}

/// Looks at everything. Nothing is computed; devices stay asleep.
pub fn look() -> Facts {
    let folders = toolkit_folders();
    Facts {
        driver: Driver::load().and_then(driver),
        nvml: Meter::open()
            .and_then(|meter| Ok(NvmlFacts { driver: meter.driver_version()?, devices: meter.read()? })),
        nvrtc: nvrtc(&folders),
        headers: folders
            .iter()
            .map(|folder| folder.join("include"))
            .find(|at| at.join("cuda_fp16.h").is_file()),
        nccl: Library::load()
            .map(|library| Found { path: library.path().into(), version: library.version().to_string() }),
    }
}

fn driver(driver: Driver) -> Result<DriverFacts> {
    let version = driver.version()?;
    let version = format!("{}.{}", version / 1000, version % 1000 / 10);
    let devices = (0..driver.count()?).map(|ordinal| driver.describe(ordinal)).collect::<Result<_>>()?;
    Ok(DriverFacts { library: Found { path: driver.path().into(), version }, devices })
}

/// Where a CUDA toolkit is looked for: `CUDA_PATH` alone if it is set.
fn toolkit_folders() -> Vec<PathBuf> {
    match std::env::var_os("CUDA_PATH").filter(|path| !path.is_empty()) {
        Some(path) => vec![path.into()],
        None => ["/usr/local/cuda", "/opt/cuda", "/usr"].map(PathBuf::from).to_vec(),
    }
}

fn nvrtc(folders: &[PathBuf]) -> std::result::Result<Found, String> {
    let names = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
    let beside = folders.iter().flat_map(|folder| ["lib64", "lib"].map(|lib| folder.join(lib)));
    let beside = beside.flat_map(|folder| names.map(|name| folder.join(name)));
    let all: Vec<_> = names.iter().map(PathBuf::from).chain(beside.filter(|file| file.is_file())).collect();
    nvrtc_of(&all).map_err(|error| error.to_string())
}

fn nvrtc_of(names: &[PathBuf]) -> Result<Found> {
    let missing = |(tried, reason)| GpuError::NoNvrtc { tried, reason };
    let library = Dynamic::first(names).map_err(missing)?;
    // SAFETY: the type is that of nvrtc.h.
    let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
        unsafe { library.function("nvrtcVersion")? };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two numbers.
    let code = unsafe { version(&raw mut major, &raw mut minor) };
    if code != 0 {
        return Err(GpuError::Cuda { call: "nvrtcVersion", what: "failed".into(), code });
    }
    Ok(Found { path: library.path.clone(), version: format!("{major}.{minor}") })
}

impl Facts {
    /// Why ranks cannot compute on a GPU here, with the first thing to put right; none if they can.
    pub fn obstacle(&self) -> Option<String> {
        match &self.driver {
            Err(error) => return Some(error.to_string()),
            Ok(driver) if driver.devices.is_empty() => {
                return Some(
                    "the NVIDIA driver sees no device; hint: CUDA_VISIBLE_DEVICES hides devices".into(),
                );
            }
            Ok(_) => {}
        }
        if let Err(reason) = &self.nvrtc {
            return Some(reason.clone());
        }
        self.headers.is_none().then(|| {
            let looked: Vec<_> = toolkit_folders().iter().map(|f: &PathBuf| shown(f)).collect();
            format!(
                "CUDA's headers (include/cuda_fp16.h) are in none of {}; hint: install the CUDA toolkit, or set CUDA_PATH",
                looked.join(", ")
            )
        })
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let found = || Found { path: "lib".into(), version: "1".into() };
        Facts {
            driver: Ok(DriverFacts { library: found(), devices: vec![("a".into(), 1)] }),
            nvml: Err("no".into()),
            nvrtc: Ok(found()),
            headers: Some("include".into()),
            nccl: Err(GpuError::NoNccl { tried: "x".into(), reason: "y".into() }),
        }
    }

    #[test]
    fn the_first_obstacle_is_told() {
        assert_eq!(facts().obstacle(), None, "one rank needs neither NVML nor NCCL");
        let none = GpuError::NoDriver { tried: "libcuda.so.1".into(), reason: "not found".into() };
        let all = Facts { driver: Err(none), headers: None, ..facts() };
        assert!(all.obstacle().unwrap().contains("no NVIDIA driver"));
        let hidden = Ok(DriverFacts { devices: vec![], ..facts().driver.unwrap() });
        assert!(Facts { driver: hidden, ..facts() }.obstacle().unwrap().contains("CUDA_VISIBLE_DEVICES"));
        let headers = Facts { headers: None, ..facts() }.obstacle().unwrap();
        assert!(headers.contains("cuda_fp16.h") && headers.contains("hint: "), "{headers}");
    }

    #[test]
    fn nvrtc_is_told_by_its_version() {
        let error = nvrtc_of(&["libm.so.6".into()]).unwrap_err();
        assert!(matches!(error, GpuError::NoSymbol { symbol: "nvrtcVersion", .. }), "{error}");
        assert!(matches!(nvrtc_of(&["libno-nvrtc.so".into()]), Err(GpuError::NoNvrtc { .. })));
    }
}
