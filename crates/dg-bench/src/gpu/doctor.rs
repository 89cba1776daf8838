//! Devices and libraries.

use super::Kind;
use super::part::Row;
use crate::measure::cpu_name;
use dg_nccl::facts::{Facts, Found, look as look_for};
use serde_json::{Value, json};

/// What there is. On a CPU nothing of it is missed.
pub(super) fn look(device: Kind) -> Vec<Row> {
    let mut rows = vec![
        Row::told("cpu", cpu_name(), json!({ "kernels": dg_kernels::path() })),
        Row::told("program", env!("CARGO_PKG_VERSION"), json!({ "cuda": cfg!(feature = "cuda") })),
    ];
    let facts = look_for();
    rows.extend(libraries(device, &facts));
    if let Ok(nvml) = &facts.nvml {
        rows.extend(nvml.devices.iter().map(|gpu| {
            let (used, total) = (gpu.used_bytes, gpu.total_bytes);
            let detail = format!("{}, {:.1} of {:.1} GiB in use", gpu.name, gib(used), gib(total));
            let numbers = json!({ "name": gpu.name, "used_bytes": used, "total_bytes": total });
            Row::told(format!("gpu {}", gpu.index), detail, numbers)
        }));
    }
    rows
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
    vec![
        row("driver", true, driver),
        row("nvrtc", true, facts.nvrtc.as_ref().map(found).map_err(Clone::clone)),
        row("headers", true, headers.ok_or_else(|| "no CUDA headers; hint: CUDA_PATH".into())),
        // One GPU does without.
        row("nccl", false, facts.nccl.as_ref().map(found).map_err(ToString::to_string)),
    ]
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
