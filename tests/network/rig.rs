//! A cluster of processes in a folder of its own.

use crate::net::Net;
use dg_testkit::Output;
use dg_testkit::program::{cluster_bin, command_of, diffgentor_bin, finish};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Taken by each test for as long as it runs.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn run<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(task)
}

/// A number from the environment, for longer runs.
pub(crate) fn flag(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// A cluster that is up. Dropping it ends it.
pub(crate) struct Rig {
    folder: tempfile::TempDir,
    net: Option<Net>,
    agents: Vec<Child>,
    pub(crate) head: u32,
    pub(crate) address: SocketAddr,
}

impl Rig {
    /// Two local nodes of two ranks.
    pub(crate) fn local() -> Self {
        let nodes = ["left", "right"]
            .map(|name| format!("[[node]]\nname = \"{name}\"\nlocal = true\nranks = 2\ncpu_threads = 1\n"));
        Self::up(&format!("{}[parallel]\nulysses_degree = 4\n", nodes.concat()), None, true)
    }

    /// A cluster of these sections; its head and its commands run in the first host of `net`.
    pub(crate) fn up(sections: &str, net: Option<Net>, is_ready: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listen = match &net {
            Some(_) => format!("{}:7443", Net::ADDRESSES[0]),
            None => format!("127.0.0.1:{}", free_port()),
        };
        let text = format!(
            "[cluster]\nname = \"net\"\nlisten = \"{listen}\"\nstate_dir = \"state\"\n{sections}\n\
             [model]\nname = \"demo\"\n"
        );
        std::fs::write(folder.path().join("rig.toml"), text).expect("the folder is writable");
        let address = listen.parse().expect("an address");
        let mut rig = Self { folder, net, agents: Vec::new(), head: 0, address };
        let wait = if is_ready { &["up", "rig.toml", "-d", "--wait"][..] } else { &["up", "rig.toml", "-d"] };
        rig.cluster(wait).expect_success();
        rig.head = u32::try_from(rig.status()["head"]["pid"].as_u64().expect("a pid")).expect("a pid");
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// A command in the folder, in a host of the net if there is one.
    pub(crate) fn command(&self, program: &Path, args: &[&str], host: usize) -> Command {
        let mut words: Vec<&str> = Vec::new();
        let name = self.net.as_ref().map(|net| net.host(host).to_owned());
        let mut start = program;
        if let Some(name) = &name {
            start = Path::new("ip");
            words.extend(["netns", "exec", name, program.to_str().expect("a plain path")]);
        }
        words.extend(args);
        let mut command = command_of(start, &words, self.folder.path());
        command
            .env("NO_COLOR", "1")
            .env("XDG_STATE_HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Runs `dg-cluster`.
    pub(crate) fn cluster(&self, args: &[&str]) -> Output {
        finish(self.command(cluster_bin(), args, 0).spawn().expect("it was just built"), TIMEOUT)
    }

    /// Starts `diffgentor t2i` on the cluster; the pictures go to `folder`.
    pub(crate) fn start(&self, folder: &str, args: &[&str]) -> Child {
        let all = [&["t2i", "--cluster", "rig.toml", "--output_dir", folder], args].concat();
        self.command(diffgentor_bin(), &all, 0).spawn().expect("it was just built")
    }

    /// Files that `diffgentor t2i` makes on one rank of this host.
    pub(crate) fn serial(&self, args: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let all = [&["t2i", "--model_name", "demo", "--output_dir", "serial"], args].concat();
        let child = self.command(diffgentor_bin(), &all, 0).spawn().expect("it was just built");
        finish(child, TIMEOUT).expect_success();
        self.tree("serial")
    }

    /// Files that the cluster makes.
    pub(crate) fn pictures(&self, folder: &str, args: &[&str]) -> BTreeMap<String, Vec<u8>> {
        finish(self.start(folder, args), TIMEOUT).expect_success();
        self.tree(folder)
    }

    pub(crate) fn tree(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let files = std::fs::read_dir(self.path(folder)).expect("the folder was written").flatten();
        let content = |path: &Path| std::fs::read(path).expect("a readable file");
        let files = files.map(|e| (e.file_name().to_string_lossy().into_owned(), content(&e.path())));
        let files: BTreeMap<_, _> = files.collect();
        assert!(!files.is_empty(), "no file in {folder}");
        files
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.cluster(&["status", "--cluster", "rig.toml", "-o", "json"]).expect_success();
        serde_json::from_str(&output.stdout).expect("JSON")
    }

    /// What has happened, as the head wrote it down.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.state().join("events.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an event of this kind and node after the first `seen` ones; gives its time.
    pub(crate) fn await_event(&self, kind: &str, node: &str, seen: usize, within: Duration) -> f64 {
        let until = Instant::now() + within;
        loop {
            let events = self.events();
            let found = events.iter().skip(seen).find(|e| e["kind"] == kind && e["node"] == node);
            if let Some(event) = found {
                return event["time"].as_f64().expect("a time");
            }
            assert!(Instant::now() < until, "no `{kind}` of {node} within {within:?}: {events:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the status is as it should be.
    pub(crate) fn await_status(&self, what: &str, within: Duration, is_so: impl Fn(&Value) -> bool) {
        let until = Instant::now() + within;
        loop {
            let status = self.status();
            if is_so(&status) {
                return;
            }
            assert!(Instant::now() < until, "not {what} within {within:?}: {status:#}\n{}", self.head_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Every node is in and every rank idle or busy.
    pub(crate) fn await_ready(&self, within: Duration) {
        self.await_status("ready", within, |status| {
            let all = |key: &str| status[key].as_array().expect("a list").clone();
            let is_up = all("nodes").iter().all(|node| node["state"] == "up");
            is_up && all("ranks").iter().all(|rank| rank["state"] == "idle" || rank["state"] == "busy")
        });
    }

    pub(crate) fn head_log(&self) -> String {
        std::fs::read_to_string(self.state().join("log/head.log")).unwrap_or_default()
    }

    /// Starts the agent of a node in a host of the net; what it says goes to `NAME.out`.
    pub(crate) fn agent(&mut self, name: &str, folder: &Path, host: usize) {
        let (address, folder) = (self.address.to_string(), folder.to_str().expect("a plain path"));
        let args = ["agent", "--name", name, "--head", &address, "--state_dir", folder];
        let mut command = self.command(cluster_bin(), &args, host);
        let file = || {
            let path = self.path(&format!("{name}.out"));
            std::fs::File::options().create(true).append(true).open(path).expect("a writable folder")
        };
        command.stdout(file()).stderr(file());
        self.agents.push(command.spawn().expect("it was just built"));
    }

    /// What agents that were started here said.
    pub(crate) fn agent_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.out"))).unwrap_or_default()
    }

    pub(crate) fn net(&self) -> &Net {
        self.net.as_ref().expect("a rig with hosts")
    }

    /// Resident bytes of the head, and the most that it ever had.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.head);
        let text = std::fs::read_to_string(path).expect("the head lives");
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("a field");
            line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") << 10
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Files that the head has open.
    pub(crate) fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.head)).expect("the head lives").count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.head_log();
            let last = log.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev();
            eprintln!("--- the end of the head's log\n{}", last.collect::<Vec<_>>().join("\n"));
        }
        if let Some(net) = &self.net {
            let _ = net.rules("");
        }
        let args = ["down", "--cluster", "rig.toml"];
        let down = self.command(cluster_bin(), &args, 0).output();
        if !down.is_ok_and(|output| output.status.success()) && self.head != 0 {
            // Its agents end with it, a little later.
            let _ = Command::new("kill").args(["-9", &self.head.to_string()]).status();
        }
        for agent in &mut self.agents {
            let until = Instant::now() + Duration::from_secs(5);
            while agent.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.local_addr().expect("an address").port()
}

/// The smallest pictures.
pub(crate) const SMALL: &[&str] = &[
    "--prompt",
    "red apple",
    "--seed",
    "7",
    "--height",
    "64",
    "--width",
    "64",
    "--num_inference_steps",
    "2",
];

pub(crate) const TIMEOUT: Duration = Duration::from_secs(240);
