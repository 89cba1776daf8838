//! The table of the cluster's keys.

use crate::field::{Field, FieldKind};
use FieldKind::{
    Address, Bytes, Choice, Duration, Env, Indices, Integer, Name, Number, Path, Ssh, Switch, Words,
};

/// The sections of the TOML schema that only a cluster looks at; `[[node]]` may stand many times.
pub const CLUSTER_SECTIONS: [&str; 4] = ["cluster", "node", "failure", "security"];

/// Kinds of links, as `dg-plan` knows them.
pub const LINKS: &[&str] = &[
    "memory",
    "shm",
    "nvlink",
    "nvlink3",
    "pcie5",
    "pcie4",
    "pcie4host",
    "socket",
    "ib400",
    "ib200",
    "eth100",
    "eth25",
    "eth10",
    "eth1",
];
/// Models of GPUs, as `dg-plan` knows them.
pub const GPU_MODELS: &[&str] = &["h100", "a100", "l40", "l20", "rtx4090"];

/// Nodes of a cluster.
pub const NODES_MAX: usize = 1024;
/// Ranks of a node.
pub const NODE_RANKS_MAX: u64 = 1024;
/// Ranks of a cluster, as many as degrees can name.
pub const RANKS_MAX: u64 = 65_536;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const fn field(section: &'static str, name: &'static str, kind: FieldKind, help: &'static str) -> Field {
    Field { section, name, kind, default: "", otherwise: "", help }
}

impl Field {
    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn otherwise(self, otherwise: &'static str) -> Self {
        Self { otherwise, ..self }
    }
}

/// A key by its section and name.
pub fn named(section: &str, name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|f| f.section == section && f.name == name)
}

/// All keys, in the order of the manual.
pub const FIELDS: &[Field] = &[
    field("cluster", "name", Name, "Name of the cluster, in messages and in its state folder.")
        .default("local"),
    field("cluster", "listen", Address, "Where the head listens (QUIC, so a UDP port). Nodes of other hosts must be able to reach it.")
        .default("127.0.0.1:7443"),
    field("cluster", "state_dir", Path, "Folder of what the head keeps: event log, certificates, sockets. A relative path starts at the file's folder.")
        .otherwise("`$XDG_STATE_HOME/dg-cluster/NAME`, or `~/.local/state/dg-cluster/NAME`"),
    field("cluster", "links", Choice(LINKS), "What joins the hosts, for predictions. The kinds are in parallel.md.")
        .default("eth10"),
    field("cluster", "keep_alive", Duration(10, MINUTE), "A connection that is silent for so long sends a sign of life.")
        .default("250ms"),
    field("cluster", "idle_timeout", Duration(100, 10 * MINUTE), "A connection without any sign of life for so long is lost. At least twice keep_alive.")
        .otherwise("`1s`; `3s` if a node has CPU ranks, which starve network threads"),
    field("cluster", "lease_ttl", Duration(500, HOUR), "A node that the head did not hear for so long stops its ranks by itself. More than idle_timeout.")
        .default("5s"),
    field("node", "name", Name, "Name of the node, different for each; it stands in the node's certificate. `head` is taken.")
        .otherwise("required"),
    field("node", "local", Switch, "The node is on the host of the head.").default("false"),
    field("node", "address", Address, "Where other nodes reach this one. Required unless local.").otherwise("none"),
    field("node", "launch", Choice(&["local", "ssh", "manual"]), "Who starts the node: the head on its own host, the head by ssh, or somebody by hand with a join token.")
        .otherwise("`local` if local, `ssh` if ssh is given, else `manual`"),
    field("node", "ssh", Ssh, "Destination for the system's ssh, user@host for instance.").otherwise("none"),
    field("node", "device", Choice(&["cpu", "cuda"]), "What its ranks compute on.")
        .otherwise("`cuda` if gpus or gpu_model is given, else `[parallel] device`, else `cpu`"),
    field("node", "ranks", Integer(1, NODE_RANKS_MAX), "Ranks, each a process; on CUDA as many as GPUs.")
        .otherwise("as many as gpus, else 1"),
    field("node", "gpus", Indices(255), "GPUs of its ranks by index, as nvidia-smi has them, in the order of the ranks.")
        .otherwise("the first ones, on CUDA"),
    field("node", "gpu_model", Choice(GPU_MODELS), "What its GPUs are, for predictions and memory.")
        .otherwise("`h100`, on CUDA"),
    field("node", "cpu_threads", Integer(1, 1024), "Threads of each rank.")
        .otherwise("`[parallel] threads`, else the node's cores shared out among its ranks"),
    field("node", "memory", Bytes(1 << 20, 64 << 40), "Memory that each rank may use.")
        .otherwise("that of gpu_model; not bounded on a CPU"),
    field("node", "links", Choice(LINKS), "What joins the ranks of this node, for predictions.")
        .otherwise("`nvlink` on CUDA, `shm` on CPUs"),
    field("node", "model_path", Path, "Folder of the model on this node, in place of `[model] name`. Absolute or below `~/`; of a local node it may be relative to the file.")
        .otherwise("`[model] name`, looked up on the node"),
    field("node", "labels", Words, "Words of your own, to tell nodes apart in tables.").otherwise("none"),
    field("node", "env", Env, "Environment variables of its ranks, NCCL_SOCKET_IFNAME for instance. Texts are taken as they are. CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER of a rank with a GPU follow from gpus.")
        .otherwise("none"),
    field("failure", "epochs_without_progress", Integer(1, 100), "So many starts of a job in a row without a new step make it fail.")
        .default("3"),
    field("failure", "hang_factor", Number(1.0, 1000.0), "A rank hangs if for this many times the median step no layer is done.")
        .default("3"),
    field("failure", "hang_min", Duration(100, HOUR), "But not before this time is over.").default("10s"),
    field("failure", "hang_first", Duration(100, HOUR), "Before the first step and after the last, where a GPU's kernels may be compiled, it hangs if no layer is done for this time.")
        .default("2min"),
    field("failure", "abort_grace", Duration(10, MINUTE), "Ranks that are told to abort have so long to answer; those that do not are killed.")
        .default("300ms"),
    field("failure", "rank_deaths", Integer(1, 1000), "A rank that dies so many times within rank_deaths_within is not started again: its device is taken for broken.")
        .default("3"),
    field("failure", "rank_deaths_within", Duration(SECOND, DAY), "The time that rank_deaths looks back.")
        .default("5min"),
    field("failure", "orphan_exit", Duration(SECOND, DAY), "Ranks without a head end after this time. At least lease_ttl.")
        .default("60s"),
    field("failure", "checkpoint_every", Integer(1, 1000), "Steps between checkpoints: so many may be lost with a rank.")
        .default("1"),
    field("security", "ca", Path, "Certificate of the authority that all certificates come from (PEM).")
        .otherwise("`ca.crt` in state_dir"),
    field("security", "certificate", Path, "The head's own certificate (PEM). Needs key.")
        .otherwise("`head.pem` in state_dir"),
    field("security", "key", Path, "Private key of that certificate (PEM). Needs certificate.")
        .otherwise("`head.pem` in state_dir, which has both"),
    field("security", "token_lifetime", Duration(MINUTE, 30 * DAY), "A join token that was not used by then is worthless.")
        .default("24h"),
    field("security", "tensor_tls", Switch, "Encrypt tensors between nodes (TLS 1.3). Ranks of one node meet by unix sockets, and NCCL never encrypts.")
        .default("true"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for (i, f) in FIELDS.iter().enumerate() {
            assert!(CLUSTER_SECTIONS.contains(&f.section) && f.help.ends_with('.'), "{}", f.name);
            assert!(FIELDS[..i].iter().all(|o| (o.section, o.name) != (f.section, f.name)), "{}", f.name);
            assert_eq!(f.built_in().is_some(), !f.default.is_empty(), "{}", f.name);
            assert!(f.default.is_empty() != f.otherwise.is_empty(), "{} has one default", f.name);
        }
    }
}
