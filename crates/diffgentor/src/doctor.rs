//! `diffgentor doctor`: what this machine has, and what to do about what it has not.

use crate::engine::{self};
use crate::failure::Failure;
use crate::output::printer::print;
use crate::{hub, machine, models};
use dg_core::ExitCode;
use dg_flux::ModelRepo;
use serde::Serialize;
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
    let checks = [cpu(), threads(), memory(), disk(), demo(), hub(), gpu()];
    if json {
        // a GPU is not missed: this build has no use for one
        let ok = checks.iter().all(|c| c.ok || c.name == "gpu");
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

fn gpu() -> Check {
    Check::bad("gpu", "not in this build", "pictures are made on the CPU")
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

    #[test]
    fn lines_are_plain_where_they_must_be() {
        let bad = Check::bad("gpu", "none", "buy one");
        assert_eq!(line(&bad, true), "✗ gpu         none\n    hint: buy one");
        assert!(line(&bad, false).is_ascii() && line(&Check::good("a", "b"), false).is_ascii());
    }
}
