//! Where a cluster keeps its state.

use crate::ClusterFile;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folder that the head of this cluster keeps its certificates, tokens and log in, and that its clients on this host
/// look for certificates in: `[cluster] state_dir`, or the usual one of a cluster of this name.
pub fn state_folder(file: &ClusterFile) -> PathBuf {
    folder_of(file, std::env::var_os("XDG_STATE_HOME"), std::env::home_dir())
}

/// A relative `XDG_STATE_HOME` counts as none: what defines it says so.
fn folder_of(file: &ClusterFile, state_home: Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let home = home.filter(|home| !home.as_os_str().is_empty());
    if let Some(dir) = &file.cluster.state_dir {
        return match (dir.strip_prefix("~"), home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => dir.clone(),
        };
    }
    let usual = || home.unwrap_or_else(|| Path::new(".").into()).join(".local/state");
    let state_home = state_home.map(PathBuf::from).filter(|path| path.is_absolute()).unwrap_or_else(usual);
    state_home.join("dg-cluster").join(&file.cluster.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, state_home: &str, home: &str, expect: &str) {
        let file = ClusterFile::read(Path::new("/etc/rig/rig.toml"), text).unwrap();
        let folder = folder_of(&file, Some(state_home.into()), Some(home.into()));
        assert_eq!(folder, Path::new(expect), "{text}");
    }

    #[test]
    fn the_file_wins_over_the_environment() {
        let named = "[cluster]\nname = \"rig\"\n";
        check(named, "/state", "/home/me", "/state/dg-cluster/rig");
        check(named, "", "/home/me", "/home/me/.local/state/dg-cluster/rig");
        check(named, "relative", "/home/me", "/home/me/.local/state/dg-cluster/rig");
        check("", "", "", "./.local/state/dg-cluster/local");
        for (dir, expect) in [("s", "/etc/rig/s"), ("/var/rig", "/var/rig"), ("~/rig", "/home/me/rig")] {
            check(&format!("{named}state_dir = \"{dir}\"\n"), "/state", "/home/me", expect);
        }
    }
}
