//! `diffgentor doctor`: what this machine has, and what to do about what it has not.

use crate::engine::{self};
use crate::failure::Failure;
use crate::output::printer::print;
use crate::{hub, machine, models};
use dg_core::ExitCode;
use dg_flux::ModelRepo;
use dg_nccl::facts::{Facts, Found};
use dg_nccl::variables::{Host, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, ok: true, detail: detail.into(), hint: None }
    }

    fn bad(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, ok: false, detail: detail.into(), hint: Some(hint.into()) }
    }
}

/// Checks the machine. Asks nothing of the network.
pub(crate) fn doctor(json: bool) -> Result<ExitCode, Failure> {
    let mut checks = vec![cpu(), threads(), memory(), disk(), demo(), hub()];
    let needed = checks.len();
    checks.extend(gpus(&dg_nccl::facts::look()));
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    checks.extend(variables(&std::env::vars_os().filter_map(text).collect(), &Host::this()));
    if json {
        // a GPU is not missed: pictures are made without one
        let ok = checks.iter().take(needed).all(|c| c.ok);
        print(&serde_json::json!({"ok": ok, "checks": checks}).to_string());
    } else {
        let lines: Vec<String> = checks.iter().map(|c| line(c, unicode())).collect();
        print(&lines.join("\n"));
    }
    Ok(ExitCode::Ok)
}

fn cpu() -> Check {
    let detail = format!("{}, kernels: {}", std::env::consts::ARCH, engine::kernels());
    match engine::kernels() {
        "portable" => {
            Check::bad("cpu", detail, "pictures are the same, only slower: AVX2 and FMA would help")
        }
        _ => Check::good("cpu", detail),
    }
}

fn threads() -> Check {
    let logical = std::thread::available_parallelism().map_or(1, |n| n.get());
    Check::good(
        "threads",
        format!("{} physical cores, {logical} usable processors", machine::physical_cores()),
    )
}

fn memory() -> Check {
    match machine::memory() {
        Some(m) if m.available >= MEMORY_SMALL => {
            Check::good("memory", format!("{} free", machine::bytes(m.available)))
        }
        Some(m) => Check::bad(
            "memory",
            format!("{} free", machine::bytes(m.available)),
            "the built-in model fits; FLUX.1-dev in bfloat16 needs about 35 GiB",
        ),
        None => Check::bad("memory", "unknown", "this system has no /proc/meminfo: use --force with care"),
    }
}

fn disk() -> Check {
    match machine::disk_free(Path::new(".")) {
        Some(free) if free >= DISK_SMALL => {
            Check::good("disk", format!("{} free here", machine::bytes(free)))
        }
        Some(free) => {
            Check::bad("disk", format!("{} free here", machine::bytes(free)), "make room for pictures")
        }
        None => Check::bad("disk", "unknown", "check that this folder exists"),
    }
}

fn demo() -> Check {
    let Some(source) = engine::demo() else {
        return Check::bad("demo model", "not in this build", "build with `--features demo`");
    };
    let checked =
        ModelRepo::open(source, models::DEMO).and_then(|repo| Ok((repo.verify()?, repo.weight_bytes())));
    match checked {
        Ok((sum, bytes)) => Check::good("demo model", format!("{}, blake3 {sum:.12}", machine::bytes(bytes))),
        Err(e) => Check::bad("demo model", e.to_string(), "this build is broken: build it again"),
    }
}

fn hub() -> Check {
    match hub::facts() {
        Some(facts) => {
            let cache = facts.cache.map_or_else(|| "none".into(), |p| p.display().to_string());
            let detail =
                format!("{} models in {cache}, endpoint {} (not asked)", facts.models, facts.endpoint);
            Check::good("hub", detail)
        }
        None => Check::bad("hub", "not in this build", "build with `--features hub`, or use folders"),
    }
}

/// The devices, and what they need. Where no driver is, nothing else is said.
fn gpus(facts: &Facts) -> Vec<Check> {
    let driver = match &facts.driver {
        Ok(driver) => driver,
        Err(error) => {
            let text = error.to_string();
            let what = text.split("; hint: ").next().unwrap_or_default().to_owned();
            return vec![Check::bad(
                "gpu",
                what,
                "pictures are made on the CPU; docs/gpu.md has what a GPU needs",
            )];
        }
    };
    let devices = driver.devices.iter().enumerate().map(|(number, device)| {
        let busy = facts.nvml.as_ref().ok().and_then(|nvml| nvml.devices.get(number));
        let busy = busy.filter(|usage| usage.name == device.name).map(|usage| {
            let percent = usage.busy_percent.map_or(String::new(), |percent| format!(", {percent} % busy"));
            format!(", {} in use{percent}", machine::bytes(usage.used_bytes))
        });
        let (major, minor) = device.capability;
        let (name, memory) = (&device.name, machine::bytes(device.bytes));
        let busy = busy.unwrap_or_default();
        Check::good("gpu", format!("{number}: {name}, compute capability {major}.{minor}, {memory}{busy}"))
    });
    let mut checks: Vec<Check> = devices.collect();
    checks.push(build(cfg!(feature = "cuda")));
    if driver.devices.is_empty() {
        checks.push(Check::bad("gpu", "the driver sees no device", "CUDA_VISIBLE_DEVICES hides devices"));
    }
    let packages =
        facts.nvml.as_ref().map_or_else(|error| format!("NVML: {error}"), |nvml| nvml.driver.clone());
    let library = format!("{packages}, CUDA {}, {}", driver.library.version, driver.library.path.display());
    checks.push(Check::good("driver", library));
    checks.push(found("nvrtc", facts.nvrtc.clone(), "kernels cannot be compiled without it"));
    if let Some(why) = facts.misfit() {
        let (what, hint) = why.split_once("; hint: ").unwrap_or((&why, "docs/gpu.md has what a GPU needs"));
        checks.push(Check::bad("gpu use", what, hint));
    }
    let headers = facts.headers.as_ref().map(|folder| folder.display().to_string());
    checks.push(headers.map_or_else(
        || Check::bad("cuda", "no headers", "install the CUDA toolkit, or set CUDA_PATH"),
        |headers| Check::good("cuda", format!("headers in {headers}")),
    ));
    let nccl = facts.nccl.clone().map_err(|error| error.to_string());
    checks.push(found("nccl", nccl, "one GPU needs none; several of one job do"));
    checks
}

/// Whether this program computes on them.
fn build(has_cuda: bool) -> Check {
    match has_cuda {
        true => Check::good("cuda build", "pictures can be made on GPUs"),
        false => Check::bad(
            "cuda build",
            "this build computes on the CPU only",
            "build with `--features cuda` (docs/gpu.md)",
        ),
    }
}

/// What the environment tells NCCL: a line for what is well, and one for each variable that is not.
fn variables(environment: &BTreeMap<String, String>, host: &Host) -> Vec<Check> {
    let name = "nccl env";
    let (mut fine, mut checks) = (Vec::new(), Vec::new());
    for finding in dg_nccl::variables::look(environment, Some(host)) {
        let set = format!("{}={}", finding.name, finding.value);
        match finding.verdict {
            Verdict::Fine => fine.push(set),
            Verdict::Odd(what) | Verdict::Bad(what) => {
                let hint = "change it, or leave it out; docs/gpu.md has those that matter";
                checks.push(Check::bad(name, format!("{set}: {what}"), hint));
            }
        }
    }
    if !fine.is_empty() {
        checks.insert(0, Check::good(name, fine.join(", ")));
    }
    checks
}

fn found(name: &'static str, library: Result<Found, String>, otherwise: &str) -> Check {
    match library {
        Ok(found) => Check::good(name, format!("{}, {}", found.version, found.path.display())),
        Err(error) => {
            let (what, hint) = error.split_once("; hint: ").unwrap_or((&error, otherwise));
            Check::bad(name, what, format!("{hint}; {otherwise}"))
        }
    }
}

fn line(c: &Check, unicode: bool) -> String {
    let mark = match (c.ok, unicode) {
        (true, true) => "✓",
        (false, true) => "✗",
        (true, false) => "ok",
        (false, false) => "--",
    };
    let hint = c.hint.as_ref().map(|h| format!("\n    hint: {h}")).unwrap_or_default();
    format!("{mark} {:<11} {}{hint}", c.name, c.detail)
}

/// Whether the locale says UTF-8.
fn unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

const MEMORY_SMALL: u64 = 1 << 30;
const DISK_SMALL: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with two GPUs and no NCCL, and one without a driver.
    #[test]
    fn gpus_are_listed_with_what_they_need() {
        use dg_nccl::GpuError;
        use dg_nccl::driver::About;
        use dg_nccl::facts::{DriverFacts, NvmlFacts};
        let found = |version: &str| Found { path: "/lib/x.so".into(), version: version.into() };
        let device = About { name: "H200".into(), bytes: 139 << 30, capability: (9, 0) };
        let devices = vec![device.clone(), device];
        let none = |tried: &str| (tried.to_owned(), "not found".to_owned());
        let (tried, reason) = none("libnccl.so.2");
        let facts = Facts {
            driver: Ok(DriverFacts { library: found("12.8"), devices }),
            nvml: Ok(NvmlFacts { driver: "570.1".into(), devices: Vec::new() }),
            nvrtc: Ok(found("12.8")),
            headers: None,
            nccl: Err(GpuError::NoNccl { tried, reason }),
        };
        let checks = gpus(&facts);
        let names: Vec<_> = checks.iter().map(|check| (check.name, check.ok)).collect();
        let expected = [
            ("gpu", true),
            ("gpu", true),
            ("cuda build", cfg!(feature = "cuda")),
            ("driver", true),
            ("nvrtc", true),
            ("cuda", false),
            ("nccl", false),
        ];
        assert_eq!(names, expected);
        assert_eq!(checks[1].detail, "1: H200, compute capability 9.0, 139.0 GiB");
        assert_eq!(checks[3].detail, "570.1, CUDA 12.8, /lib/x.so");
        assert!(
            checks[6].hint.as_ref().is_some_and(|hint| hint.contains("libnccl2") && hint.contains("one GPU"))
        );
        let misfit = gpus(&Facts { nvrtc: Ok(found("13.0")), ..facts.clone() });
        assert_eq!((misfit[5].name, misfit[5].ok, misfit.len()), ("gpu use", false, checks.len() + 1));
        assert!(misfit[5].detail.contains("NVRTC is of CUDA 13.0") && !misfit[5].detail.contains("hint"));
        let (tried, reason) = none("libcuda.so.1");
        let bare = gpus(&Facts { driver: Err(GpuError::NoDriver { tried, reason }), ..facts });
        assert!(bare.len() == 1 && bare[0].detail.starts_with("no NVIDIA driver here"), "{bare:?}");
        assert!(!bare[0].detail.contains("hint"), "{bare:?}");
    }

    #[test]
    fn lines_are_plain_where_they_must_be() {
        let bad = Check::bad("gpu", "none", "buy one");
        assert_eq!(line(&bad, true), "✗ gpu         none\n    hint: buy one");
        assert!(line(&bad, false).is_ascii() && line(&Check::good("a", "b"), false).is_ascii());
    }
}
