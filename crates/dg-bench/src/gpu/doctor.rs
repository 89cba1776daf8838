//! Devices and libraries.

use super::Kind;
use super::part::{Part, Row};
use crate::measure::cpu_name;
use dg_nccl::facts::{Facts, Found, look as look_for};
use serde_json::{Value, json};

/// What there is. On a CPU nothing of it is missed.
pub(super) fn look(device: Kind, part: &mut Part) {
    let first = [
        Row::told("cpu", cpu_name(), json!({ "kernels": dg_kernels::path() })),
        Row::told("program", env!("CARGO_PKG_VERSION"), json!({ "cuda": cfg!(feature = "cuda") })),
    ];
    first.into_iter().for_each(|row| part.put(row));
    let facts = look_for();
    libraries(device, &facts).into_iter().for_each(|row| part.put(row));
    for (number, about) in facts.driver.iter().flat_map(|driver| driver.devices.iter().enumerate()) {
        let (major, minor) = about.capability;
        let detail = format!("{}, compute capability {major}.{minor}", about.name);
        let numbers = json!({ "name": about.name, "capability": [major, minor], "bytes": about.bytes });
        part.put(Row::told(format!("device {number}"), detail, numbers));
    }
    for gpu in facts.nvml.iter().flat_map(|nvml| &nvml.devices) {
        let (used, total) = (gpu.used_bytes, gpu.total_bytes);
        let detail = format!("{}, {:.1} of {:.1} GiB in use", gpu.name, gib(used), gib(total));
        let numbers = json!({ "name": gpu.name, "used_bytes": used, "total_bytes": total });
        part.put(Row::told(format!("gpu {}", gpu.index), detail, numbers));
    }
}

fn libraries(device: Kind, facts: &Facts) -> Vec<Row> {
    let found =
        |found: &Found| (format!("{} at {}", found.version, found.path.display()), json!(found.version));
    let row = |name: &str, is_needed: bool, what: Result<(String, Value), String>| match what {
        Ok((detail, version)) => Row::new(name, true, detail, json!({ "version": version })),
        Err(why) if is_needed && device == Kind::Cuda => Row::new(name, false, why, Value::Null),
        Err(why) => Row::told(name, why, Value::Null),
    };
    let driver = facts.driver.as_ref().map(|driver| found(&driver.library)).map_err(ToString::to_string);
    let headers = facts.headers.as_ref().map(|path| (path.display().to_string(), Value::Null));
    let misfit = facts.misfit().filter(|_| device == Kind::Cuda);
    let misfit = misfit.map(|why| Row::new("fit", false, why, Value::Null));
    let mut rows = vec![
        row("driver", true, driver),
        row("nvrtc", true, facts.nvrtc.as_ref().map(found).map_err(Clone::clone)),
        row("headers", true, headers.ok_or_else(|| "no CUDA headers; hint: CUDA_PATH".into())),
        // One GPU does without.
        row("nccl", false, facts.nccl.as_ref().map(found).map_err(ToString::to_string)),
    ];
    rows.extend(misfit);
    rows
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
