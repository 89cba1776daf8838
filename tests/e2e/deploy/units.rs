//! The units of systemd.

use super::{expect_silence, read, tool};
use crate::place::Place;
use dg_testkit::program::cluster_bin;
use std::collections::BTreeMap;
use std::process::Command;

/// Section → key → values, in the order of the file.
type Unit = BTreeMap<String, BTreeMap<String, Vec<String>>>;

fn unit(path: &str) -> Unit {
    let mut unit = Unit::new();
    let mut section = None;
    for (number, line) in read(path).lines().enumerate() {
        let place = format!("{path}:{}", number + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        assert_eq!(line, line.trim(), "{place}: space around");
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').unwrap_or_else(|| panic!("{place}: {line}"));
            assert!(["Unit", "Service", "Install"].contains(&name), "{place}: section {name}");
            assert!(unit.insert(name.to_owned(), BTreeMap::new()).is_none(), "{place}: {name} twice");
            section = Some(name.to_owned());
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{place}: {line}"));
        let section = section.as_ref().unwrap_or_else(|| panic!("{place}: outside of sections"));
        assert!(KEYS.iter().any(|(s, keys)| s == section && keys.contains(&key)), "{place}: {key}");
        let keys = unit.get_mut(section).expect("it was just made");
        keys.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    unit
}

fn value<'a>(unit: &'a Unit, section: &str, key: &str) -> &'a str {
    match unit.get(section).and_then(|keys| keys.get(key)).map(Vec::as_slice) {
        Some([one]) => one,
        other => panic!("[{section}] {key} is {other:?}, not one value"),
    }
}

#[test]
fn units_are_hardened_and_let_ranks_compute() {
    for (path, apart) in [("systemd/dg-head.service", HEAD), ("systemd/dg-agent@.service", AGENT)] {
        let unit = unit(path);
        for (key, expected) in BOTH.iter().chain(apart) {
            assert_eq!(value(&unit, "Service", key), *expected, "{path}: {key}");
        }
        let command = value(&unit, "Service", "ExecStart");
        assert!(command.starts_with("/usr/local/bin/dg-cluster "), "{path}: {command}");
        assert_eq!(value(&unit, "Install", "WantedBy"), "multi-user.target");
        for key in ["StartLimitIntervalSec", "StartLimitBurst", "After", "Description"] {
            assert!(!value(&unit, "Unit", key).is_empty(), "{path}: {key}");
        }
        let nice: i32 = value(&unit, "Service", "Nice").parse().expect("a number");
        assert!(nice < 0, "{path}: it must answer while ranks compute");
    }
    let agent = unit("systemd/dg-agent@.service");
    let command = value(&agent, "Service", "ExecStart");
    assert!(command.contains("--name %i ") && command.contains("--head ${DG_HEAD} "), "{command}");
    let state = format!("/var/lib/{}", value(&agent, "Service", "StateDirectory"));
    assert!(command.ends_with(&format!("--state_dir {state}")), "{command} does not write to {state}");
    let drop_in = unit("systemd/cpu-only.conf");
    assert_eq!(drop_in.keys().collect::<Vec<_>>(), ["Service"]);
    for key in ["PrivateDevices", "MemoryDenyWriteExecute"] {
        let pair = (value(&drop_in, "Service", key), value(&agent, "Service", key));
        assert_eq!(pair, ("yes", "no"), "{key}");
    }
}

#[test]
fn systemd_understands_the_units() {
    let user: Vec<String> = read("systemd/dg-cluster.sysusers").lines().map(str::to_owned).collect();
    let lines: Vec<_> = user.iter().filter(|line| !line.starts_with('#')).collect();
    assert!(matches!(lines[..], [line] if line.starts_with("u dg-cluster - ")), "{lines:?}");
    let instead = "units were looked at by the test alone";
    let Some(analyze) = tool("systemd-analyze", instead) else { return };
    let place = Place::new();
    let program = cluster_bin().to_str().expect("a plain name");
    for name in ["dg-head.service", "dg-agent@.service"] {
        let unit = read(&format!("systemd/{name}")).replace("/usr/local/bin/dg-cluster", program);
        place.write(name, unit);
        let file = place.path(name);
        expect_silence(Command::new(&analyze).args(["verify", "--man=no"]).arg(file));
    }
}

/// What either unit has to say.
const BOTH: &[(&str, &str)] = &[
    ("Type", "exec"),
    ("Restart", "on-failure"),
    ("RestartPreventExitStatus", "2 3"),
    // the agent stops its ranks, not systemd
    ("KillMode", "mixed"),
    ("User", "dg-cluster"),
    ("UMask", "0077"),
    ("StateDirectoryMode", "0700"),
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("ProtectProc", "invisible"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallErrorNumber", "EPERM"),
    ("LimitNOFILE", "65536"),
    ("LimitCORE", "0"),
];

const HEAD: &[(&str, &str)] = &[
    ("PrivateDevices", "yes"),
    ("ProcSubset", "pid"),
    ("MemoryDenyWriteExecute", "yes"),
    ("SystemCallFilter", "@system-service"),
];

/// GPUs: devices, `/proc/driver`, compiled kernels, pinned memory. And a rank out of memory is not the end of the node.
const AGENT: &[(&str, &str)] = &[
    ("PrivateDevices", "no"),
    ("ProcSubset", "all"),
    ("MemoryDenyWriteExecute", "no"),
    ("SystemCallFilter", "@system-service pidfd_getfd"),
    ("LimitMEMLOCK", "infinity"),
    ("OOMPolicy", "continue"),
    ("EnvironmentFile", "/etc/dg-cluster/agent.env"),
];

/// Keys that are known here; whatever else is a mistake, or wants to be thought about.
const KEYS: [(&str, &[&str]); 3] = [
    ("Unit", &["After", "Description", "Documentation", "StartLimitBurst", "StartLimitIntervalSec", "Wants"]),
    (
        "Service",
        &[
            "AmbientCapabilities",
            "CacheDirectory",
            "CapabilityBoundingSet",
            "ConfigurationDirectory",
            "Environment",
            "EnvironmentFile",
            "ExecStart",
            "Group",
            "KillMode",
            "LimitCORE",
            "LimitMEMLOCK",
            "LimitNOFILE",
            "LockPersonality",
            "MemoryDenyWriteExecute",
            "MemoryMax",
            "Nice",
            "NoNewPrivileges",
            "OOMPolicy",
            "PrivateDevices",
            "PrivateTmp",
            "ProcSubset",
            "ProtectClock",
            "ProtectControlGroups",
            "ProtectHome",
            "ProtectHostname",
            "ProtectKernelLogs",
            "ProtectKernelModules",
            "ProtectKernelTunables",
            "ProtectProc",
            "ProtectSystem",
            "RemoveIPC",
            "Restart",
            "RestartPreventExitStatus",
            "RestartSec",
            "RestrictAddressFamilies",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "StateDirectory",
            "StateDirectoryMode",
            "SystemCallArchitectures",
            "SystemCallErrorNumber",
            "SystemCallFilter",
            "TasksMax",
            "TimeoutStopSec",
            "Type",
            "UMask",
            "User",
            "WorkingDirectory",
        ],
    ),
    ("Install", &["WantedBy"]),
];
