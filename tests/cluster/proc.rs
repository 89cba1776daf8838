//! Processes as the system shows them.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;

/// Sends a signal; whether the process was there.
pub(crate) fn send(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process has a number");
    kill_process(pid, signal).is_ok()
}

/// Whether a process is there and more than a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The letter of its state.
pub(crate) fn state(pid: u32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have spaces and brackets.
    text.rsplit_once(") ")?.1.chars().next()
}

/// Processes that have this text among their arguments or in their environment, and their arguments. Not this one, and
/// none that has ended.
pub(crate) fn with(text: &str) -> Vec<(u32, String)> {
    let folders = fs::read_dir("/proc").expect("Linux has /proc").flatten();
    let pids = folders.filter_map(|folder| folder.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<(u32, String)> = pids
        .filter(|pid| *pid != std::process::id() && is_alive(*pid))
        .filter_map(|pid| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let environment = String::from_utf8_lossy(&read("environ")).into_owned();
            (arguments.contains(text) || environment.contains(text)).then_some((pid, arguments))
        })
        .collect();
    found.sort_unstable();
    found
}

/// Open files of a process.
pub(crate) fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Resident bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Sockets of tensor planes that a process holds: abstract ones are in no folder.
pub(crate) fn plane_sockets(pid: u32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    let inodes: Vec<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let all = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let held = all.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(6);
        let (inode, name) = (words.next()?, words.next()?);
        (name.starts_with("@dg-plane") && inodes.iter().any(|own| own == inode)).then(|| name.to_owned())
    });
    held.collect()
}

/// Sockets of tensor planes that nobody's files lead to: none, unless the system leaks them.
pub(crate) fn plane_names() -> Vec<String> {
    let all = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = all.lines().filter_map(|line| line.split_whitespace().nth(7));
    names.filter(|name| name.starts_with("@dg-plane")).map(str::to_owned).collect()
}

/// Names in the folder of shared memory.
pub(crate) fn shared_memory() -> Vec<String> {
    let files = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let mut names: Vec<String> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Sockets and temporary files below a folder.
pub(crate) fn left_below(folder: &Path) -> Vec<String> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            found.extend(left_below(&path));
        } else if kind.is_socket() || path.extension().is_some_and(|end| end == "tmp") {
            found.push(path.display().to_string());
        }
    }
    found
}
