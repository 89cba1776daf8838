use super::*;
use crate::{Launch, NodeDevice};

fn read(text: &str) -> Result<ClusterFile, FileError> {
    let file = ClusterFile::read(Path::new("conf/rig.toml"), text)?;
    file.check_layout(text)?;
    Ok(file)
}

fn refuse(text: &str, expect: &str, hint: &str) {
    let e = read(text).unwrap_err();
    let shown = e.to_string();
    assert!(
        shown.starts_with(&format!("conf/rig.toml:{expect}")),
        "{text:?} gave\n{shown}\nexpected\n{expect}"
    );
    assert!(e.hint.as_deref().unwrap_or("").contains(hint), "{text:?} hint {:?}", e.hint);
}

#[test]
fn a_whole_file_is_typed() {
    let text = "[cluster]\nname = \"rig\"\nlisten = \"10.0.0.1:7443\"\nstate_dir = \"state\"\nlinks = \"eth100\"\n\
                idle_timeout = \"2s\"\n\
                [[node]]\nname = \"a\"\nlocal = true\ngpus = [2, 3]\ngpu_model = \"a100\"\nmemory = \"70GiB\"\n\
                model_path = \"m/flux\"\n\
                [[node]]\nname = \"b\"\naddress = \"10.0.0.2\"\nssh = \"user@b\"\ndevice = \"cuda\"\nranks = 2\n\
                labels = [\"new\"]\nenv = { NCCL_DEBUG = \"WARN\" }\nmodel_path = \"~/flux\"\n\
                [parallel]\nulysses_degree = 2\ndata_parallel_degree = 2\nthreads = 3\n\
                [failure]\nhang_factor = 2.5\nrank_deaths = 5\n\
                [security]\ntoken_lifetime = \"1h\"\ntensor_tls = false\ncertificate = \"c.pem\"\nkey = \"/k.pem\"\n";
    let file = read(text).unwrap();
    let c = &file.cluster;
    assert_eq!(
        (c.name.as_str(), c.listen.to_string().as_str(), c.links.as_str()),
        ("rig", "10.0.0.1:7443", "eth100")
    );
    assert_eq!(c.state_dir.as_deref(), Some(Path::new("./conf/state")));
    assert_eq!((c.keep_alive.as_millis(), c.idle_timeout.as_secs(), c.lease_ttl.as_secs()), (250, 2, 5));
    let [a, b] = file.nodes.as_slice() else { panic!("{:?}", file.nodes) };
    assert_eq!(a.device, NodeDevice::Cuda { gpus: vec![2, 3], model: "a100".into() });
    assert_eq!((a.ranks, a.memory, a.line, a.host()), (2, Some(70 << 30), Some(7), "local"));
    assert_eq!((&a.launch, a.links.as_str(), a.cpu_threads), (&Launch::Local, "nvlink", Some(3)));
    assert_eq!(a.model_path.as_deref(), Some(Path::new("./conf/m/flux")));
    assert_eq!(b.device, NodeDevice::Cuda { gpus: vec![0, 1], model: "h100".into() });
    assert_eq!((b.launch.clone(), b.host()), (Launch::Ssh { target: "user@b".into() }, "10.0.0.2"));
    assert_eq!((b.env["NCCL_DEBUG"].as_str(), b.labels[0].as_str()), ("WARN", "new"));
    assert_eq!(b.model_path.as_deref(), Some(Path::new("~/flux")));
    assert_eq!(
        (file.failure.hang_factor, file.failure.rank_deaths, file.failure.checkpoint_every),
        (2.5, 5, 1)
    );
    assert_eq!(file.security.certificate, Some(("./conf/c.pem".into(), "/k.pem".into())));
    assert!(!file.security.tensor_tls && file.has_nodes() && file.ranks() == 4);
}

#[test]
fn a_file_without_nodes_has_one() {
    let file = read("[parallel]\nulysses_degree = 2\nuse_cfg_parallel = true\n").unwrap();
    let node = &file.nodes[0];
    assert_eq!((node.ranks, node.device.kind(), node.local, node.line), (4, "cpu", true, None));
    assert!(!file.has_nodes() && file.cluster.idle_timeout.as_secs() == 3);
    assert_eq!(read("").unwrap().ranks(), 1);
    let gpus = read("[parallel]\nnum_gpus = 8\ndevice = \"cuda\"\n").unwrap();
    assert_eq!(
        (gpus.ranks(), gpus.nodes[0].device.kind(), gpus.cluster.idle_timeout.as_secs()),
        (8, "cuda", 1)
    );
}

#[test]
fn a_local_run_checks_these_sections_and_ignores_them() {
    let text = "[generate]\nheight = 64\n[[node]]\nname = \"a\"\nlocal = true\n[cluster]\nname = \"x\"\n";
    let entries = file::read(Path::new("x.toml"), text).unwrap();
    assert_eq!((entries.len(), entries[0].key), (1, Key::Height));
    assert!(file::read(Path::new("x.toml"), "[[node]]\nnam = \"a\"\n").is_err());
    // degrees that do not suit the nodes may suit this machine
    let text = "[parallel]\nulysses_degree = 3\n[[node]]\nname = \"a\"\nlocal = true\n";
    assert_eq!(file::read(Path::new("x.toml"), text).unwrap().len(), 1);
}

#[test]
fn replicas_have_one_kind() {
    let kinds = |text: &str| {
        let node = |(i, part): (usize, &str)| {
            let (device, ranks) = part.split_once(':').unwrap();
            format!("[[node]]\nname = \"n{i}\"\nlocal = true\ndevice = \"{device}\"\nranks = {ranks}\n")
        };
        let text: String = text.split(' ').enumerate().map(node).collect();
        ClusterFile::read(Path::new("x.toml"), &text).unwrap().nodes
    };
    for (nodes, replica, expect) in [
        ("cpu:2 cpu:2", 4, None),
        ("cuda:2 cpu:2", 2, None),
        ("cuda:2 cpu:2", 4, Some((0, "n0", "n1"))),
        ("cuda:4 cpu:2", 3, Some((1, "n0", "n1"))),
        ("cpu:1 cpu:1 cuda:2", 2, None),
        ("cpu:1 cpu:2 cuda:1", 2, Some((1, "n1", "n2"))),
        ("cuda:3 cpu:3", 1, None),
    ] {
        let nodes_read = kinds(nodes);
        let found = mesh::mixed(&nodes_read, replica);
        let found = found.map(|m| (m.replica, m.first.name.as_str(), m.other.name.as_str()));
        assert_eq!(found, expect, "{nodes} in {replica}");
    }
}

#[test]
fn mistakes_are_refused_where_they_are() {
    let node = |more: &str| format!("[[node]]\nname = \"a\"\nlocal = true\n{more}\n");
    refuse("[clustre]\n", "1:2: unknown section", "did you mean `[cluster]`?");
    refuse("[[nodes]]\n", "1:3: unknown section", "did you mean `[[node]]`?");
    refuse("[node]\nname = \"a\"\n", "1:2: `node` is a list", "write `[[node]]`");
    refuse(
        "[cluster]\nkeepalive = \"1s\"\n",
        "2:1: unknown key `keepalive` in [cluster]",
        "did you mean `keep_alive`?",
    );
    refuse("[cluster]\nranks = 2\n", "2:1: unknown key `ranks`", "belongs under `[[node]]`");
    refuse("[cluster]\nseed = 2\n", "2:1: unknown key `seed`", "belongs under `[generate]`");
    refuse("[cluster]\nname = \"My rig\"\n", "2:8: name does not accept `\"My rig\"`", "node-1");
    refuse("[cluster]\nlisten = \"a:b\"\n", "2:10: listen does not accept", "10.0.0.7:7443");
    refuse("[cluster]\nlisten = \"10.0.0.1\"\n", "2:10: listen `10.0.0.1` has no port", "10.0.0.1:7443");
    refuse(
        "[cluster]\nkeep_alive = 250\n",
        "2:14: keep_alive does not accept `250`",
        "keep_alive = \"250ms\"",
    );
    refuse("[cluster]\nlease_ttl = \"5\"\n", "2:13: lease_ttl does not accept `\"5\"`", "lease_ttl = \"5s\"");
    refuse("[cluster]\nidle_timeout = \"6s\"\n", "2:16: lease_ttl 5s is not more", "raise lease_ttl");
    refuse("[cluster]\nkeep_alive = \"2s\"\n", "2:14: idle_timeout 3s is less", "lower keep_alive");
    refuse("[cluster]\nlinks = \"eth40\"\n", "2:9: links does not accept", "docs/cluster.md");
    refuse(
        "[cluster]\nstate_dir = \"${HOME}/x\"\n",
        "2:13: state_dir does not accept `${HOME}/x`: variables",
        "",
    );
    refuse("[[node]]\nlocal = true\n", "1:1: a node has no name", "name = \"node-1\"");
    refuse("[[node]]\nname = \"head\"\n", "2:8: name `head` is the head's own", "another");
    refuse("[[node]]\nname = \"a\"\n", "2:8: node `a` has neither", "address");
    refuse(&node("ranks = 0"), "4:9: ranks does not accept `0`", "ranks = 2");
    refuse(&node("gpus = [0, 0]"), "4:8: gpus has 0 twice", "");
    refuse(&node("gpus = []"), "4:8: gpus does not accept `[]`", "gpus = [0, 1]");
    refuse(&node("gpus = [0]\nranks = 2"), "5:9: node `a` has 2 ranks for 1 GPUs", "remove `ranks`");
    refuse(&node("gpus = [0]\ndevice = \"cpu\""), "5:10: node `a` has GPUs", "device = \"cuda\"");
    refuse(
        &node("device = \"gpu\""),
        "4:10: device does not accept `\"gpu\"`: expected one of cpu, cuda",
        "",
    );
    refuse(&node("memory = 24"), "4:10: memory does not accept `24`", "24GiB");
    refuse(&node("threads = 2"), "4:1: unknown key `threads` in [[node]]", "did you mean `cpu_threads`?");
    refuse(&node("launch = \"ssh\""), "4:10: node `a` is launched by ssh", "ssh = ");
    refuse(&node("ssh = \"-oProxyCommand=x\""), "4:7: ssh does not accept", "user@gpu-1");
    refuse(&node("address = \"0.0.0.0\""), "4:11: address `0.0.0.0` of node `a` leads nowhere", "");
    refuse(&node("env = { A = 1 }"), "4:7: env: `A` is no text", "");
    refuse(&node("env = { CUDA_VISIBLE_DEVICES = \"1\" }"), "4:7: env: CUDA_VISIBLE_DEVICES follows", "");
    refuse(&(node("") + &node("")), "6:8: two nodes are called `a`, the first in line 1", "name of its own");
    refuse("[failure]\nrank_deaths = 0\n", "2:15: rank_deaths does not accept `0`", "");
    refuse("[failure]\norphan_exit = \"2s\"\n", "2:15: orphan_exit 2s is less than lease_ttl 5s", "raise");
    refuse("[security]\nkey = \"k\"\n", "2:7: key is of no use without certificate", "add `certificate`");
    refuse("[security]\ntoken_lifetime = \"90d\"\n", "2:18: token_lifetime does not accept", "24h");
}

#[test]
fn nodes_that_do_not_fit_together_are_refused() {
    let local = "[[node]]\nname = \"a\"\nlocal = true\ngpus = [0, 1]\n";
    let clash = format!("{local}[[node]]\nname = \"b\"\nlocal = true\ngpus = [1]\n");
    refuse(&clash, "8:8: GPU 1 of host local has node `a` already", "different GPUs");
    let far = "[[node]]\nname = \"b\"\naddress = \"10.0.0.2\"\ndevice = \"cpu\"\nranks = 2\n";
    refuse(far, "1:1: listen `127.0.0.1:7443` is no address that node `b`", "`listen` under `[cluster]`");
    let any = format!("[cluster]\nlisten = \"0.0.0.0:7443\"\n{far}");
    refuse(&any, "2:10: listen `0.0.0.0:7443`", "10.0.0.1:7443");
    let head = "[cluster]\nlisten = \"10.0.0.1:7443\"\n";
    refuse(
        &format!("{head}{far}model_path = \"flux\"\n"),
        "8:14: model_path `flux` of node `b` is relative",
        "~/",
    );
    let again = far.replace("\"b\"", "\"c\"");
    refuse(&format!("{head}{far}{again}"), "10:11: nodes `b` and `c` have the same address", "another");
    let mixed = format!("{head}{local}{far}[parallel]\nulysses_degree = 4\n");
    refuse(
        &mixed,
        "7:1: replica 0 would have cuda ranks of node `a` and cpu ranks of node `b`",
        "a multiple of 4",
    );
    assert!(
        read(&format!("{head}{local}{far}[parallel]\nulysses_degree = 2\ndata_parallel_degree = 2\n"))
            .is_ok()
    );
    let wrong = format!("{head}{local}[parallel]\nulysses_degree = 4\n");
    refuse(&wrong, "8:1: the degrees need 4 ranks, the nodes have 2", "change the degrees");
    let half = format!(
        "{head}{local}{}[parallel]\nulysses_degree = 2\n",
        local.replace("\"a\"", "\"b\"").replace("0, 1", "2, 3")
    );
    refuse(&half, "12:1: the degrees need 2 ranks, the nodes have 4", "`data_parallel_degree = 2` fills");
    refuse(
        &format!("{local}[parallel]\nnum_gpus = 3\n"),
        "6:1: num_gpus = 3, but the nodes have 2",
        "num_gpus = 2",
    );
}
