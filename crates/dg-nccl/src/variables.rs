//! Variables that NCCL reads from the environment of a rank: which apply, and which do harm. Pure but for [`Host`].

use std::collections::BTreeMap;
use std::path::Path;

/// What a variable does here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It applies.
    Fine,
    /// It is of no use, or not one that is known.
    Odd(String),
    /// With it ranks will not find each other, or hang.
    Bad(String),
}

/// A variable with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What it does.
    pub verdict: Verdict,
}

/// What variables may name on the host of a rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Interfaces of the network.
    pub interfaces: Vec<String>,
    /// InfiniBand adapters.
    pub adapters: Vec<String>,
}

impl Host {
    /// This one.
    pub fn this() -> Self {
        let names = |folder: &str| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        Self { interfaces: names("/sys/class/net"), adapters: names("/sys/class/infiniband") }
    }
}

/// Looks at the variables of NCCL in an environment, in the order of their names. What they name is looked for on
/// `host`, unless that is another one.
pub fn look(environment: &BTreeMap<String, String>, host: Option<&Host>) -> Vec<Finding> {
    let ours = environment.iter().filter(|(name, _)| name.starts_with("NCCL_"));
    let finding = |(name, value): (&String, &String)| Finding {
        name: name.clone(),
        value: value.clone(),
        verdict: verdict(name, value, host),
    };
    ours.map(finding).collect()
}

fn verdict(name: &str, value: &str, host: Option<&Host>) -> Verdict {
    let bad = |what: &str| Verdict::Bad(what.to_owned());
    match name {
        "NCCL_SOCKET_IFNAME" | "NCCL_OOB_NET_IFNAME" => match host {
            Some(host) => named(value, &host.interfaces, "interface"),
            None => Verdict::Fine,
        },
        "NCCL_IB_HCA" => match host {
            // Without adapters NCCL takes sockets, whatever this says.
            Some(host) if host.adapters.is_empty() => Verdict::Odd("this host has no InfiniBand".into()),
            Some(host) => named(value, &host.adapters, "adapter"),
            None => Verdict::Fine,
        },
        "NCCL_COMM_BLOCKING" if value.trim() != "0" => {
            bad("calls of NCCL would block, and a rank that waits for a dead one would do so for ever")
        }
        "NCCL_COMM_ID" => {
            bad("all communicators would meet at one address, and there is one for each direction")
        }
        "NCCL_DEBUG" if !LEVELS.contains(&value.trim().to_ascii_uppercase().as_str()) => {
            Verdict::Odd(format!("`{value}` is none of {}", LEVELS.join(", ")))
        }
        "NCCL_CONF_FILE" | "NCCL_TOPO_FILE" | "NCCL_GRAPH_FILE"
            if host.is_some() && !Path::new(value).is_file() =>
        {
            Verdict::Odd(format!("`{value}` is no file"))
        }
        _ if KNOWN.contains(&name.trim_start_matches("NCCL_")) => Verdict::Fine,
        _ => Verdict::Odd("not a variable that is known; NCCL ignores those of other names".into()),
    }
}

/// `^` before the list excludes, `=` asks for whole names, else their beginnings count; ports stand behind a colon.
fn named(list: &str, there: &[String], what: &str) -> Verdict {
    let (list, is_out) = list.strip_prefix('^').map_or((list, false), |list| (list, true));
    let (list, is_whole) = list.strip_prefix('=').map_or((list, false), |list| (list, true));
    let names: Vec<&str> = list
        .split(',')
        .map(|name| name.split(':').next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty())
        .collect();
    let is_named = |one: &&String| {
        names.iter().any(|name| if is_whole { one.as_str() == *name } else { one.starts_with(name) })
    };
    if there.iter().any(|one| is_named(&one) != is_out) {
        return Verdict::Fine;
    }
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Verdict::Bad(match is_out {
        true => format!("it excludes every {what} of this host: {there}"),
        false => format!("this host has no such {what}: {there}"),
    })
}

/// Of `NCCL_DEBUG`.
const LEVELS: [&str; 5] = ["VERSION", "WARN", "INFO", "ABORT", "TRACE"];

/// Without `NCCL_`; as the documentation of NCCL 2.27 has them, and some older ones.
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "ALGO", "ALLOC_P2P_NET_LL_BUFFERS", "BUFFSIZE", "CGA_CLUSTER_SIZE", "CHECKS_DISABLE", "CHECK_POINTERS",
    "COLLNET_ENABLE", "COLLNET_NODE_THRESHOLD", "COMM_BLOCKING", "CONF_FILE", "CROSS_NIC", "CUMEM_ENABLE",
    "CUMEM_HOST_ENABLE", "DEBUG", "DEBUG_FILE", "DEBUG_SUBSYS", "DEBUG_TIMESTAMP_FORMAT", "DEBUG_TIMESTAMP_LEVELS",
    "DMABUF_ENABLE", "GRAPH_DUMP_FILE", "GRAPH_FILE", "GRAPH_MIXING_SUPPORT", "GRAPH_REGISTER", "HOSTID",
    "IB_ADAPTIVE_ROUTING", "IB_ADDR_FAMILY", "IB_ADDR_RANGE", "IB_AR_THRESHOLD", "IB_CUDA_SUPPORT", "IB_DISABLE",
    "IB_ECE_ENABLE", "IB_FIFO_TC", "IB_GID_INDEX", "IB_HCA", "IB_MERGE_NICS", "IB_PCI_RELAXED_ORDERING",
    "IB_QPS_PER_CONNECTION", "IB_RETRY_CNT", "IB_RETURN_ASYNC_EVENTS", "IB_ROCE_VERSION_NUM", "IB_SL",
    "IB_SPLIT_DATA_ON_QPS", "IB_TC", "IB_TIMEOUT", "IGNORE_CPU_AFFINITY", "IPC_USE_ABSTRACT_SOCKET", "LAUNCH_MODE",
    "LAUNCH_ORDER_IMPLICIT", "LAUNCH_RACE_FATAL", "LEGACY_CUDA_REGISTER", "LL_THRESHOLD", "LOCAL_REGISTER",
    "MAX_CTAS", "MAX_NCHANNELS", "MAX_NRINGS", "MAX_P2P_NCHANNELS", "MIN_CTAS", "MIN_NCHANNELS", "MIN_NRINGS",
    "MIN_P2P_NCHANNELS", "MNNVL_CLIQUE_ID", "MNNVL_ENABLE", "MNNVL_UUID", "NCHANNELS_PER_NET_PEER", "NET",
    "NET_GDR_C2C", "NET_GDR_LEVEL", "NET_GDR_READ", "NET_PLUGIN", "NET_SHARED_BUFFERS", "NET_SHARED_COMMS",
    "NSOCKS_PERTHREAD", "NTHREADS", "NVB_DISABLE", "NVLS_CHUNKSIZE", "NVLS_ENABLE", "NVLS_NCHANNELS",
    "OOB_NET_ENABLE", "OOB_NET_IFNAME", "P2P_DIRECT_DISABLE", "P2P_DISABLE", "P2P_LEVEL", "P2P_LL_THRESHOLD",
    "P2P_NET_CHUNKSIZE", "P2P_PXN_LEVEL", "PROFILER_PLUGIN", "PROTO", "PXN_DISABLE", "RAS_ADDR", "RAS_ENABLE",
    "RAS_TIMEOUT_FACTOR", "RUNTIME_CONNECT", "SET_STACK_SIZE", "SET_THREAD_NAME", "SHM_DISABLE",
    "SINGLE_PROC_MEM_REG_ENABLE", "SINGLE_RING_THRESHOLD", "SOCKET_FAMILY", "SOCKET_IFNAME", "SOCKET_NTHREADS",
    "SOCKET_RETRY_CNT", "SOCKET_RETRY_SLEEP_MSEC", "TOPO_DUMP_FILE", "TOPO_FILE", "TREE_THRESHOLD", "TUNER_PLUGIN",
    "UID_STAGGER_RATE", "UID_STAGGER_THRESHOLD", "WIN_ENABLE",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Verdict {
        let names = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let host =
            Host { interfaces: names(&["eth0", "eth1", "lo"]), adapters: names(&["mlx5_0", "mlx5_1"]) };
        let environment = BTreeMap::from([(name.to_owned(), value.to_owned()), ("PATH".into(), "/".into())]);
        let found = look(&environment, Some(&host));
        assert!(found.len() == 1 && found[0].name == name && found[0].value == value, "{found:?}");
        found[0].verdict.clone()
    }

    fn says(verdict: &Verdict, is_bad: bool, words: &str) {
        let said = match verdict {
            Verdict::Bad(what) if is_bad => what,
            Verdict::Odd(what) if !is_bad => what,
            other => panic!("{other:?}"),
        };
        assert!(said.contains(words), "{said}");
    }

    #[test]
    fn what_a_variable_names_must_be_there() {
        for fine in ["eth", "eth1", "=eth0", "^lo", "^=lo,eth0", "ib0,eth0", "eth0:0"] {
            assert_eq!(of("NCCL_SOCKET_IFNAME", fine), Verdict::Fine, "{fine}");
        }
        says(&of("NCCL_SOCKET_IFNAME", "ib0"), true, "no such interface: eth0, eth1, lo");
        says(&of("NCCL_SOCKET_IFNAME", "=eth"), true, "no such interface");
        says(&of("NCCL_OOB_NET_IFNAME", "^eth,lo"), true, "excludes every interface");
        assert_eq!(of("NCCL_IB_HCA", "mlx5_1:1"), Verdict::Fine);
        says(&of("NCCL_IB_HCA", "hfi"), true, "no such adapter: mlx5_0, mlx5_1");
        says(&of("NCCL_TOPO_FILE", "/nowhere.xml"), false, "no file");
        let elsewhere = BTreeMap::from([("NCCL_SOCKET_IFNAME".to_owned(), "ib0".to_owned())]);
        assert_eq!(look(&elsewhere, None)[0].verdict, Verdict::Fine, "another host may have it");
        let bare = look(&BTreeMap::from([("NCCL_IB_HCA".into(), "mlx5".into())]), Some(&Host::default()));
        says(&bare[0].verdict, false, "no InfiniBand");
    }

    #[test]
    fn what_makes_ranks_hang_and_what_is_unknown_is_told() {
        says(&of("NCCL_COMM_BLOCKING", "1"), true, "for ever");
        assert_eq!(of("NCCL_COMM_BLOCKING", "0"), Verdict::Fine);
        says(&of("NCCL_COMM_ID", "10.0.0.1:7000"), true, "one address");
        says(&of("NCCL_DEBUG", "loud"), false, "VERSION, WARN");
        for (name, value) in [("NCCL_DEBUG", "info"), ("NCCL_P2P_DISABLE", "1"), ("NCCL_IB_TIMEOUT", "22")] {
            assert_eq!(of(name, value), Verdict::Fine, "{name}");
        }
        says(&of("NCCL_SOCKET_IFNAMES", "eth0"), false, "not a variable that is known");
    }

    /// As `docs/gpu.md` names them.
    #[test]
    fn documented_variables_are_known() {
        let text = include_str!("../../../docs/gpu.md");
        let (_, table) = text.split_once("## NCCL between nodes").unwrap();
        let (table, _) = table.split_once("\n## ").unwrap();
        let words = table.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names: Vec<&str> = words.filter_map(|word| word.strip_prefix("NCCL_")).collect();
        assert!(names.len() > 8, "{names:?}");
        for name in names {
            assert!(KNOWN.contains(&name) || name == "COMM_ID", "{name}");
        }
    }
}
