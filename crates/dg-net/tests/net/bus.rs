//! A head and a node, each a process: the actors of one process could not tell each other from their own.

use crate::support::Forge;
use bytes::Bytes;
use dg_net::bus::{Bus, BusError, Guest, Link, Received, greet};
use dg_net::endpoint::{Endpoint, Listener, Options};
use dg_net::identity::{Admitted, Name, Role, State};
use dg_net::wire::{Message, decode, encode};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Says {
    Number(u32),
    Text(String),
}

impl Message for Says {}

struct Head {
    endpoint: Endpoint,
    listener: Listener,
    bus: Bus,
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Nodes would meet the actors of another head in this process, and could not tell them from those of their own.
static ALONE: Mutex<()> = Mutex::const_new(());

impl Drop for Head {
    fn drop(&mut self) {
        self.bus.stop();
    }
}

async fn head(names: &[&str]) -> Head {
    let alone = ALONE.lock().await;
    let forge = Forge::new();
    let folder = tempfile::tempdir().unwrap();
    let state = State::create(folder.path().join("state")).unwrap();
    for name in names {
        state.save(&forge.identity(name, Role::Node), false).unwrap();
    }
    let identity = forge.identity("head", Role::Head);
    let loopback = "127.0.0.1:0".parse().unwrap();
    let (endpoint, listener) =
        Endpoint::listener(loopback, &identity, Admitted::everyone(), None, Options::default()).unwrap();
    Head { endpoint, listener, bus: Bus::start("head", 3, None).await.unwrap(), folder, _alone: alone }
}

impl Head {
    /// Starts `a_node` with the certificate of `name`.
    fn node(&self, name: &str, does: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "bus::a_node", "--ignored", "--nocapture"]).stdout(Stdio::null());
        command.env("DG_TEST_HEAD", self.endpoint.local_addr().unwrap().to_string());
        command.env("DG_TEST_STATE", self.folder.path().join("state")).env("DG_TEST_NAME", name);
        command.env("DG_TEST_DOES", does).spawn().unwrap()
    }

    async fn guest(&mut self) -> Result<Guest, BusError> {
        Guest::hear(self.listener.accept().await.unwrap()).await
    }

    async fn link(&mut self) -> Link {
        let guest = self.guest().await.unwrap();
        assert_eq!(decode::<Says>(&guest.hello().facts).unwrap(), Says::Text("facts".into()));
        guest.take(&self.bus, 3, encode(&Says::Number(9)).unwrap()).await.unwrap()
    }
}

async fn next(link: &Link) -> Option<Received> {
    tokio::time::timeout(Duration::from_secs(20), link.receive()).await.expect("in time")
}

/// Ports on which a process listens for TCP connections.
fn tcp_listeners(pid: u32) -> usize {
    let inodes: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()?.into_os_string().into_string().ok())
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let tables = ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/{pid}/net/{t}")).unwrap());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|f| f[3] == "0A" && inodes.iter().any(|inode| inode == f[9])).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_calls_and_bulk_go_both_ways_and_nothing_listens_on_tcp() {
    let mut head = head(&["node-1", "node-2"]).await;
    let mut children = [head.node("node-1", "talk"), head.node("node-2", "talk")];
    let mut links = [head.link().await, head.link().await];
    links.sort_by_key(|link| link.peer().name().to_string()); // They come in any order.
    for link in &links {
        let (mut numbers, mut bulk) = (Vec::new(), None);
        // Bulk has a stream of its own: it may come before what was said earlier.
        while numbers.len() < 3 || bulk.is_none() {
            match next(link).await {
                Some(Received::Cast(bytes)) => numbers.push(decode::<Says>(&bytes).unwrap()),
                Some(Received::Bulk(bytes, body)) => bulk = Some((decode::<Says>(&bytes).unwrap(), body)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(numbers, [0, 1, 2].map(Says::Number), "in order");
        let (said, body) = bulk.unwrap();
        assert_eq!(said, Says::Text(link.peer().name().to_string()), "of this node");
        assert!(body.len() == 3 << 20 && body.iter().all(|byte| *byte == 7));
        let answer: Says = link.call(&Says::Number(20), Duration::from_secs(5)).await.unwrap();
        assert_eq!(answer, Says::Number(21));
    }
    for pid in children.iter().map(Child::id).chain([std::process::id()]) {
        assert_eq!(tcp_listeners(pid), 0, "of process {pid}");
    }
    let long = Says::Text("x".repeat(70_000));
    assert!(matches!(links[0].cast(&long), Err(BusError::Wire(_))), "64 KiB are the limit");
    for (link, child) in links.iter().zip(&mut children) {
        link.cast(&Says::Text("bye".into())).unwrap();
        assert!(next(link).await.is_none(), "the end of the process is the end of the link");
        assert!(child.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_and_started_again_joins_at_once() {
    let mut head = head(&["node-1"]).await;
    let mut links = Vec::new();
    for _ in 0..10 {
        let mut child = head.node("node-1", "talk");
        links.push(tokio::time::timeout(Duration::from_secs(5), head.link()).await.expect("at once"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_says_to_be_another_is_not_heard_and_a_refused_one_learns_why() {
    let mut head = head(&["node-1"]).await;
    let mut liar = head.node("node-1", "lie");
    let error = head.guest().await.err().expect("no guest").to_string();
    assert!(error.contains("node-2"), "{error}");
    assert!(liar.wait().unwrap().success(), "it was told");
    let mut refused = head.node("node-1", "be refused");
    head.guest().await.unwrap().refuse("the house is full").await;
    assert!(refused.wait().unwrap().success(), "it was told");
}

#[test]
#[ignore = "run by the other tests of this file"]
fn a_node() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(node(&std::env::var("DG_TEST_DOES").unwrap()));
}

async fn node(does: &str) {
    let env = |name: &str| std::env::var(name).unwrap();
    let state = State::open(env("DG_TEST_STATE")).unwrap();
    let identity = state.load(&Name::parse(&env("DG_TEST_NAME")).unwrap()).unwrap();
    let local = "127.0.0.1:0".parse().unwrap();
    let dialer = Endpoint::dialer(local, &identity, Admitted::everyone(), Options::default()).unwrap();
    let address: SocketAddr = env("DG_TEST_HEAD").parse().unwrap();
    let peer = dialer.connect(address, &Name::head()).await.unwrap();
    let name = if does == "lie" { "node-2".into() } else { env("DG_TEST_NAME") };
    let facts = encode(&Says::Text("facts".into())).unwrap();
    let greeted = greet(peer, &name, u64::from(std::process::id()), facts).await;
    if does != "talk" {
        let error = greeted.err().expect("refused").to_string();
        assert!(does == "lie" || error.contains("the house is full"), "{error}");
        return;
    }
    let (_bus, link, facts) = greeted.unwrap();
    assert_eq!(decode::<Says>(&facts).unwrap(), Says::Number(9));
    for number in 0..3 {
        link.cast(&Says::Number(number)).unwrap();
    }
    let body = Bytes::from(vec![7; 3 << 20]);
    link.bulk(&Says::Text(name), body).await.unwrap();
    while let Some(received) = next(&link).await {
        match received {
            Received::Call(bytes, reply) => {
                let Says::Number(number) = decode(&bytes).unwrap() else { panic!("a number") };
                reply.send(&Says::Number(number + 1)).unwrap();
            }
            Received::Cast(bytes) => {
                assert_eq!(decode::<Says>(&bytes).unwrap(), Says::Text("bye".into()));
                return;
            }
            Received::Bulk(..) => panic!("no bulk"),
        }
    }
}
