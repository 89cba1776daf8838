//! What this machine has: cores, memory, disk.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Memory that a new program may use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What is free now, page cache counted as free.
    pub available: u64,
    /// What set the limit: the system or a control group.
    pub limit: Limit,
}

/// What limits the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// All memory of the machine.
    System,
    /// A control group, as containers have.
    ControlGroup,
}

/// Physical cores that this process may use, at least 1: hyperthreads counted once, affinity and
/// CPU quota respected.
pub fn physical_cores() -> NonZeroUsize {
    let usable = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let cores = cores_of(Path::new("/"), &affinity());
    NonZeroUsize::new(cores).map_or(usable, |cores| cores.min(usable))
}

/// Processors that the scheduler may put this process on.
fn affinity() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => Vec::new(),
    }
}

/// Distinct (package, core) pairs of `cpus`, 0 if the system does not tell.
fn cores_of(root: &Path, cpus: &[usize]) -> usize {
    let id = |cpu: usize, file: &str| {
        let path = root.join(format!("sys/devices/system/cpu/cpu{cpu}/topology/{file}"));
        read_number(&path)
    };
    let core = |cpu: &usize| Some((id(*cpu, "physical_package_id")?, id(*cpu, "core_id")?));
    cpus.iter().filter_map(core).collect::<BTreeSet<_>>().len()
}

/// Free memory, if the system tells.
pub fn memory() -> Option<Memory> {
    memory_of(Path::new("/"))
}

fn memory_of(root: &Path) -> Option<Memory> {
    let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let available = field(&meminfo, "MemAvailable:")?.checked_mul(1024)?;
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_groups = groups.lines().filter_map(|line| group_available(root, line)).min();
    Some(match of_groups {
        Some(free) if free < available => Memory { available: free, limit: Limit::ControlGroup },
        _ => Memory { available, limit: Limit::System },
    })
}

/// What the control group of one line of `/proc/self/cgroup` and its parents leave free.
fn group_available(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let v1 = controllers.split(',').any(|c| c == "memory");
    if !v1 && !controllers.is_empty() {
        return None;
    }
    let mount = root.join(if v1 { "sys/fs/cgroup/memory" } else { "sys/fs/cgroup" });
    let (limit, usage, caches) = match v1 {
        true => {
            let caches = ["total_inactive_file", "total_active_file"];
            ("memory.limit_in_bytes", "memory.usage_in_bytes", caches)
        }
        false => ("memory.max", "memory.current", ["inactive_file", "active_file"]),
    };
    // inside a container the path may name a folder that only the host sees: the mount is then ours
    let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|p| mount.join(p));
    let free = |folder: PathBuf| {
        let limit = read_number(&folder.join(limit))?;
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        // as in `MemAvailable`: weights that are mapped can leave
        let cached: u64 = caches.iter().filter_map(|cache| field(&stat, cache)).sum();
        let used = read_number(&folder.join(usage))?.saturating_sub(cached);
        Some(limit.saturating_sub(used))
    };
    folders.filter_map(free).min()
}

/// Bytes free for this user on the file system of `path`, or of its nearest parent that exists.
pub fn disk_free(path: &Path) -> Option<u64> {
    let path = if path.is_absolute() { path.to_path_buf() } else { std::env::current_dir().ok()?.join(path) };
    let stat = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok())?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// What a rank needs and what its device has.
pub(crate) fn short_of(need: u64, free: Option<u64>) -> String {
    let free = free.map_or_else(String::new, |free| format!(", {} are free", bytes(free)));
    format!("it needs {}{free}", bytes(need))
}

/// `12.3 GiB`.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1024.0 * 1024.0 => format!("{:.0} KiB", n / 1024.0),
        n if n < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", n / 1024.0 / 1024.0),
        n => format!("{:.1} GiB", n / 1024.0 / 1024.0 / 1024.0),
    }
}

/// The number behind `name` in lines of `name number …`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n");

    fn check(files: &[(&str, &str)], available: u64, limit: Limit) {
        let root = machine(files);
        assert_eq!(memory_of(root.path()), Some(Memory { available, limit }), "{files:?}");
    }

    #[test]
    fn the_smallest_limit_counts() {
        check(&[MEMINFO], 1_024_000, Limit::System);
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let max = ("sys/fs/cgroup/a/memory.max", "5000\n");
        let current = ("sys/fs/cgroup/a/memory.current", "4000\n");
        let stat = ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 500\nactive_file 200\n");
        check(&[MEMINFO, v2, max, current, stat], 1700, Limit::ControlGroup);
        let unlimited = ("sys/fs/cgroup/a/memory.max", "max\n");
        check(&[MEMINFO, v2, unlimited, current], 1_024_000, Limit::System);
        let v1 = ("proc/self/cgroup", "3:cpu:/x\n9:hugetlb,memory:/only/on/host\n");
        let max = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
        let current = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4000\n");
        check(&[MEMINFO, v1, max, current], 1000, Limit::ControlGroup);
    }

    #[test]
    fn hyperthreads_count_once() {
        let mut files = Vec::new();
        for (cpu, core) in [(0, "0"), (1, "0"), (2, "1"), (3, "1")] {
            files.push((format!("sys/devices/system/cpu/cpu{cpu}/topology/core_id"), core));
            files.push((format!("sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"), "0"));
        }
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let root = machine(&files);
        assert_eq!(cores_of(root.path(), &[0, 1, 2, 3]), 2);
        assert_eq!(cores_of(root.path(), &[0, 1]), 1);
        assert_eq!(cores_of(root.path(), &[9]), 0);
        assert!(physical_cores().get() >= 1);
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(1 << 30), "1.0 GiB");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
        assert!(disk_free(Path::new("surely/not/there")).is_some());
    }
}
