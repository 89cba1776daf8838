//! What this machine has of GPUs and of the libraries that they need.
#![allow(unsafe_code, reason = "NVRTC is asked for its version")]

use crate::driver::{About, Driver};
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
    /// Each device.
    pub devices: Vec<About>,
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
    let toolkit = toolkit();
    Facts {
        driver: Driver::load().and_then(driver),
        nvml: Meter::open()
            .and_then(|meter| Ok(NvmlFacts { driver: meter.driver_version()?, devices: meter.read()? })),
        nvrtc: nvrtc(toolkit.as_deref()),
        headers: toolkit.map(|folder| folder.join("include")).filter(|at| at.join("cuda_fp16.h").is_file()),
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

/// The folder of the CUDA toolkit, by the rule of cubecl, which gives NVRTC its headers and no other's.
fn toolkit() -> Option<PathBuf> {
    toolkit_of(std::env::var("CUDA_PATH").ok(), |path| path.exists())
}

/// `CUDA_PATH` whatever it is, or the first of the usual folders that is there: that of a distribution's packages only if
/// they have the compiler.
fn toolkit_of(named: Option<String>, is_there: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let usual =
        [("/usr/local/cuda", "/usr/local/cuda"), ("/opt/cuda", "/opt/cuda"), ("/usr/bin/nvcc", "/usr")];
    let first = || usual.iter().find(|(sign, _)| is_there(Path::new(sign)));
    named.map(PathBuf::from).or_else(|| first().map(|(_, folder)| PathBuf::from(folder)))
}

fn nvrtc(toolkit: Option<&Path>) -> std::result::Result<Found, String> {
    let names = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
    let beside = toolkit.into_iter().flat_map(|folder| ["lib64", "lib"].map(|lib| folder.join(lib)));
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
        if let Some(why) = self.misfit() {
            return Some(why);
        }
        self.headers.is_none().then(|| no_headers(toolkit().as_deref()))
    }

    /// What is here but too old, or does not fit together. What is missing is told elsewhere.
    pub fn misfit(&self) -> Option<String> {
        let driver = self.driver.as_ref().ok()?;
        let speaks = numbers(&driver.library.version);
        if let Some(have) = speaks.filter(|have| *have < CUDA_OLDEST) {
            let (have, need) = (dotted(have), dotted(CUDA_OLDEST));
            return Some(format!(
                "the NVIDIA driver speaks CUDA {have}; {need} (R570) or newer is needed; hint: update the driver"
            ));
        }
        let compiles = self.nvrtc.as_ref().ok().and_then(|nvrtc| numbers(&nvrtc.version));
        if let (Some(driver), Some(nvrtc)) = (speaks, compiles)
            && nvrtc > driver
        {
            let (nvrtc, driver) = (dotted(nvrtc), dotted(driver));
            return Some(format!(
                "NVRTC is of CUDA {nvrtc}, and the driver loads kernels of at most CUDA {driver}; hint: update the driver, or use a toolkit of at most CUDA {driver} (LD_LIBRARY_PATH, CUDA_PATH)"
            ));
        }
        // Ranks compute on the first device that they see.
        let old = driver.devices.first().filter(|device| device.capability < CAPABILITY_LEAST)?;
        let (have, need) = (dotted(old.capability), dotted(CAPABILITY_LEAST));
        Some(format!(
            "{} has compute capability {have}; kernels need {need} or above; hint: use a newer GPU (CUDA_VISIBLE_DEVICES chooses), or --device cpu",
            old.name
        ))
    }
}

fn no_headers(toolkit: Option<&Path>) -> String {
    let place = toolkit.map_or_else(
        || "there is no CUDA toolkit in /usr/local/cuda, /opt/cuda or /usr".to_owned(),
        |folder| format!("CUDA's headers (include/cuda_fp16.h) are not in {}", folder.display()),
    );
    format!("{place}; hint: install the CUDA toolkit, or set CUDA_PATH to the folder of one with headers")
}

/// Major and minor of a version as it is shown.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// cudarc's bindings of the newest CUDA call `cuEventElapsedTime_v2`, which older drivers do not have.
const CUDA_OLDEST: (u32, u32) = (12, 8);
/// Attention multiplies bfloat16 on tensor cores (`mma.m16n8k16`).
const CAPABILITY_LEAST: (u32, u32) = (8, 0);

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let found = || Found { path: "lib".into(), version: "12.8".into() };
        let device = About { name: "a".into(), bytes: 1, capability: (8, 0) };
        Facts {
            driver: Ok(DriverFacts { library: found(), devices: vec![device] }),
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
        assert!(headers.contains("CUDA_PATH") && headers.contains("hint: "), "{headers}");
    }

    /// Facts with these versions of the driver and of NVRTC, and a device of this compute capability.
    fn versions(driver: &str, nvrtc: &str, capability: (u32, u32)) -> Facts {
        let found = |version: &str| Found { path: "lib".into(), version: version.into() };
        let device = About { name: "T4".into(), bytes: 1, capability };
        let driver = Ok(DriverFacts { library: found(driver), devices: vec![device] });
        Facts { driver, nvrtc: Ok(found(nvrtc)), ..facts() }
    }

    #[test]
    fn what_does_not_fit_together_is_told_with_numbers_and_a_hint() {
        let fit = [("12.8", "12.8"), ("13.0", "12.9"), ("13.1", "13.0"), ("12.10", "12.9")];
        for (driver, nvrtc) in fit {
            assert_eq!(versions(driver, nvrtc, (9, 0)).obstacle(), None, "{driver} and {nvrtc}");
        }
        let cases = [
            (versions("12.4", "12.4", (9, 0)), "speaks CUDA 12.4; 12.8 (R570) or newer is needed; hint: "),
            (
                versions("12.8", "12.9", (9, 0)),
                "NVRTC is of CUDA 12.9, and the driver loads kernels of at most CUDA 12.8; hint: ",
            ),
            (versions("12.9", "13.0", (9, 0)), "NVRTC is of CUDA 13.0"),
            (
                versions("13.0", "13.0", (7, 5)),
                "T4 has compute capability 7.5; kernels need 8.0 or above; hint: ",
            ),
        ];
        for (facts, words) in cases {
            let said = facts.obstacle().unwrap();
            assert!(said.contains(words), "{said}");
            assert_eq!(facts.misfit(), Some(said));
        }
        let bare = Facts { nvrtc: Err("no NVRTC here".into()), ..versions("12.8", "12.8", (9, 0)) };
        assert_eq!((bare.misfit(), bare.obstacle()), (None, Some("no NVRTC here".into())));
    }

    #[test]
    fn the_toolkit_is_that_of_cubecl() {
        let of = |named: Option<&str>, there: &[&str]| {
            let found =
                toolkit_of(named.map(Into::into), |path| there.iter().any(|at| Path::new(at) == path));
            found.map(|folder| folder.display().to_string())
        };
        let all = ["/usr/local/cuda", "/opt/cuda", "/usr/bin/nvcc"];
        assert_eq!(of(None, &all).as_deref(), Some("/usr/local/cuda"));
        assert_eq!(of(None, &all[1..]).as_deref(), Some("/opt/cuda"));
        assert_eq!(of(None, &all[2..]).as_deref(), Some("/usr"));
        assert_eq!(of(None, &["/usr/include/cuda_fp16.h"]), None, "headers without a compiler");
        assert_eq!(of(Some("/nowhere"), &all).as_deref(), Some("/nowhere"), "it is not looked past");
        let bare = no_headers(Some(Path::new("/usr/local/cuda")));
        assert!(bare.contains("are not in /usr/local/cuda; hint: ") && bare.contains("CUDA_PATH"), "{bare}");
        assert!(no_headers(None).contains("no CUDA toolkit"));
    }

    #[test]
    fn nvrtc_is_told_by_its_version() {
        let error = nvrtc_of(&["libm.so.6".into()]).unwrap_err();
        assert!(matches!(error, GpuError::NoSymbol { symbol: "nvrtcVersion", .. }), "{error}");
        assert!(matches!(nvrtc_of(&["libno-nvrtc.so".into()]), Err(GpuError::NoNvrtc { .. })));
    }
}
