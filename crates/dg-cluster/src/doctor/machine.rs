//! What this machine has.

use super::Check;
use crate::date::day;
use crate::table::{bytes, count};
use dg_config::{ClusterFile, Node, NodeDevice};
use dg_net::endpoint::Options;
use dg_runtime::machine;
use rustix::process::{Resource, getrlimit};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// All of them; with a file, against what its local nodes ask for.
pub(super) fn checks(file: Option<&ClusterFile>) -> Vec<Check> {
    let local: Vec<&Node> = file.iter().flat_map(|file| &file.nodes).filter(|node| node.local).collect();
    let ranks = file.map_or(0, ClusterFile::ranks);
    vec![
        cpu(dg_kernels::path()),
        cores(machine::physical_cores().get() as u64, &local),
        memory(machine::memory().map(|memory| memory.available), &local),
        open_files(getrlimit(Resource::Nofile).current, ranks),
        buffers("udp receive", "rmem_max"),
        buffers("udp send", "wmem_max"),
        clock(SystemTime::now()),
    ]
}

fn cpu(kernels: &str) -> Check {
    let detail = format!("{}, kernels: {kernels}", std::env::consts::ARCH);
    match kernels {
        "portable" => {
            Check::warn("cpu", detail, "pictures are the same, only slower: AVX2 and FMA would help")
        }
        _ => Check::ok("cpu", detail),
    }
}

fn cores(physical: u64, local: &[&Node]) -> Check {
    let usable = std::thread::available_parallelism().map_or(1, |n| n.get());
    let detail = format!("{}, {usable} usable", count(physical as usize, "physical core"));
    let cpu = local.iter().filter(|node| node.device == NodeDevice::Cpu);
    let asked: u64 = cpu.map(|node| u64::from(node.ranks) * u64::from(node.cpu_threads.unwrap_or(1))).sum();
    if asked > physical {
        let detail = format!("{detail}; CPU ranks of this host ask for {asked}");
        return Check::warn("cores", detail, "lower `ranks` or `cpu_threads`: ranks that share a core wait");
    }
    Check::ok("cores", detail)
}

fn memory(free: Option<u64>, local: &[&Node]) -> Check {
    let Some(free) = free else {
        return Check::warn("memory", "unknown", "this system has no /proc/meminfo");
    };
    let detail = format!("{} free", bytes(free));
    let bounded = local.iter().filter(|node| node.device == NodeDevice::Cpu);
    let asked = bounded.fold(0_u64, |sum, node| {
        sum.saturating_add(node.memory.unwrap_or(0).saturating_mul(u64::from(node.ranks)))
    });
    if asked > free {
        let detail = format!("{detail}; CPU ranks of this host may use {}", bytes(asked));
        return Check::warn("memory", detail, "lower `memory`, or end other programs");
    }
    if free < MEMORY_SMALL {
        let hint = "the built-in model fits; `dg-cluster plan` tells what others need";
        return Check::warn("memory", detail, hint);
    }
    Check::ok("memory", detail)
}

/// Every rank is a process with a log, and talks to every other one. No limit is `None`.
fn open_files(limit: Option<u64>, ranks: u64) -> Check {
    let Some(limit) = limit else { return Check::ok("open files", "no limit") };
    let detail = format!("{limit} for each process");
    let wanted = FILES_WANTED.max(ranks.saturating_mul(FILES_PER_RANK));
    let hint = format!("raise it: `ulimit -n {wanted}`, or LimitNOFILE={wanted} in a systemd unit");
    match limit {
        limit if limit < FILES_MIN => Check::fail("open files", detail, hint),
        limit if limit < wanted => Check::warn("open files", detail, hint),
        _ => Check::ok("open files", detail),
    }
}

fn buffers(name: &'static str, key: &str) -> Check {
    let text = std::fs::read_to_string(Path::new("/proc/sys/net/core").join(key)).ok();
    buffer(name, key, text.and_then(|text| text.trim().parse().ok()))
}

fn buffer(name: &'static str, key: &str, limit: Option<u64>) -> Check {
    let wanted = Options::default().socket_buffer_bytes as u64;
    let hint = format!("as root: `sysctl -w net.core.{key}={wanted}`; bursts overrun smaller buffers");
    match limit {
        Some(limit) if limit >= wanted => Check::ok(name, format!("buffers of up to {}", bytes(limit))),
        Some(limit) => Check::warn(
            name,
            format!("buffers of up to {}, {} are asked for", bytes(limit), bytes(wanted)),
            hint,
        ),
        None => Check::warn(name, "the limit of buffers is not known", hint),
    }
}

fn clock(now: SystemTime) -> Check {
    let seconds = |at: u64| UNIX_EPOCH + Duration::from_secs(at);
    if (seconds(CLOCK_MIN)..seconds(CLOCK_MAX)).contains(&now) {
        return Check::ok("clock", format!("{}, and certificates allow it 5 minutes", crate::date::utc(now)));
    }
    let hint = "set it, by NTP best: certificates are valid for a time";
    Check::fail("clock", format!("it says {}", day(now)), hint)
}

/// What a process has open anyway, and what is comfortable.
const FILES_MIN: u64 = 256;
const FILES_PER_RANK: u64 = 8;
const FILES_WANTED: u64 = 1024;
const MEMORY_SMALL: u64 = 1 << 30;
/// 2025 and 2100: a clock beyond was never set.
const CLOCK_MIN: u64 = 1_735_689_600;
const CLOCK_MAX: u64 = 4_102_444_800;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn file(node: &str) -> ClusterFile {
        let text = format!("[[node]]\nname = \"a\"\nlocal = true\n{node}");
        ClusterFile::read(Path::new("x.toml"), &text).unwrap()
    }

    fn expect(check: &Check, status: Status, said: &str) {
        let hint = check.hint.as_deref().unwrap_or_default();
        assert!(check.status == status && (check.detail.contains(said) || hint.contains(said)), "{check:?}");
        assert_eq!(hint.is_empty(), status == Status::Ok, "{check:?}");
    }

    #[test]
    fn limits_are_compared() {
        use Status::{Fail, Ok, Warn};
        expect(&cpu("avx2"), Ok, "kernels: avx2");
        expect(&cpu("portable"), Warn, "AVX2");
        let four = file("ranks = 2\ncpu_threads = 2\nmemory = \"2GiB\"\n");
        expect(&cores(4, &[&four.nodes[0]]), Ok, "4 physical cores");
        expect(&cores(3, &[&four.nodes[0]]), Warn, "ask for 4");
        expect(&memory(Some(4 << 30), &[&four.nodes[0]]), Ok, "4.0 GiB");
        expect(&memory(Some(3 << 30), &[&four.nodes[0]]), Warn, "may use 4.0 GiB");
        expect(&memory(Some(1 << 29), &[]), Warn, "built-in");
        expect(&memory(None, &[]), Warn, "unknown");
        expect(&open_files(None, 9), Ok, "no limit");
        expect(&open_files(Some(1024), 4), Ok, "1024");
        expect(&open_files(Some(1024), 1000), Warn, "ulimit -n 8000");
        expect(&open_files(Some(255), 0), Fail, "LimitNOFILE=1024");
        expect(&buffer("udp receive", "rmem_max", Some(4 << 20)), Ok, "4.0 MiB");
        expect(&buffer("udp receive", "rmem_max", Some(212_992)), Warn, "net.core.rmem_max=4194304");
        expect(&clock(UNIX_EPOCH + Duration::from_secs(CLOCK_MIN)), Ok, "2025-01-01");
        expect(&clock(UNIX_EPOCH), Fail, "1970-01-01");
    }
}
