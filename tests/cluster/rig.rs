//! [`Rig`]: a cluster of real processes in a folder of its own, and nothing of it left behind.

use crate::pictures::{Drawing, read_pictures};
use crate::proc;
use dg_runtime::fleet::client::{CLIENT, HeadClient, JobStatus, Options, Status};
use dg_testkit::Output;
use dg_testkit::program::{cluster_bin, command, command_of, finish};
use rustix::process::Signal;
use serde::Deserialize;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How a cluster is to be.
pub(crate) struct Setting {
    ranks: Vec<u32>,
    cluster: String,
    failure: String,
    more: String,
    env: Vec<(String, String)>,
}

impl Setting {
    /// So many nodes, with so many ranks each.
    pub(crate) fn ranks(ranks: &[u32]) -> Self {
        Self {
            ranks: ranks.to_vec(),
            cluster: String::new(),
            failure: String::new(),
            more: String::new(),
            env: Vec::new(),
        }
    }

    /// Two nodes of two ranks.
    pub(crate) fn two_by_two() -> Self {
        Self::ranks(&[2, 2])
    }

    /// Lines of `[cluster]`.
    pub(crate) fn cluster(mut self, lines: &str) -> Self {
        self.cluster.push_str(lines);
        self
    }

    /// Lines of `[failure]`.
    pub(crate) fn failure(mut self, lines: &str) -> Self {
        self.failure.push_str(lines);
        self
    }

    /// More sections.
    pub(crate) fn more(mut self, lines: &str) -> Self {
        self.more.push_str(lines);
        self
    }

    /// A variable of the environment of `up`.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The cluster, up and ready.
    pub(crate) fn up(self) -> Rig {
        let rig = self.down();
        rig.up().expect_success();
        rig
    }

    /// The cluster's file alone.
    pub(crate) fn down(self) -> Rig {
        static TURN: Mutex<()> = Mutex::new(());
        // Built before anything is timed.
        let _ = (cluster_bin(), dg_testkit::diffgentor_bin());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let place = tempfile::tempdir().expect("a temporary folder");
        let port =
            UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let (env, begin, before) = (self.env.clone(), Instant::now(), proc::shared_memory());
        let rig = Rig { env, port, begin, before, place, _turn: turn };
        fs::write(rig.path("rig.toml"), self.text(port)).expect("the folder is writable");
        rig
    }

    fn text(&self, port: u16) -> String {
        let mut text = format!(
            "[cluster]\nname = \"rig\"\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"state\"\n{}",
            self.cluster
        );
        for (index, ranks) in self.ranks.iter().enumerate() {
            let name = NODES[index];
            text += &format!("[[node]]\nname = \"{name}\"\nlocal = true\nranks = {ranks}\ncpu_threads = 1\n");
        }
        let model = if self.more.contains("[model]") { "" } else { "[model]\nname = \"demo\"\n" };
        format!("{text}[failure]\n{}{model}{}", self.failure, self.more)
    }
}

/// A cluster. Dropped, it is down, and no process, socket or file of it may be left.
pub(crate) struct Rig {
    env: Vec<(String, String)>,
    pub(crate) port: u16,
    begin: Instant,
    before: Vec<String>,
    place: tempfile::TempDir,
    // Given back last.
    _turn: MutexGuard<'static, ()>,
}

impl Rig {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn folder(&self) -> &str {
        self.place.path().to_str().expect("temporary folders have plain names")
    }

    /// A command of `dg-cluster`, without the rig's extra environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.at_home(command_of(cluster_bin(), args, self.place.path()))
    }

    fn at_home(&self, mut command: Command) -> Command {
        command
            .env("NO_COLOR", "1")
            .env("XDG_STATE_HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Runs `dg-cluster`.
    pub(crate) fn cluster(&self, args: &[&str]) -> Output {
        finish(self.command(args).spawn().expect("the program was just built"), Duration::from_secs(150))
    }

    /// `up -d --wait`.
    pub(crate) fn up(&self) -> Output {
        let mut command = self.command(&["up", "rig.toml", "-d", "--wait", "--timeout", "60s"]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        finish(command.spawn().expect("the program was just built"), Duration::from_secs(90))
    }

    pub(crate) fn status(&self) -> Status {
        self.json(&["status", "-o", "json", "--cluster", "rig.toml"])
    }

    /// The latest first.
    pub(crate) fn jobs(&self) -> Vec<JobStatus> {
        #[derive(Deserialize)]
        struct Jobs {
            jobs: Vec<JobStatus>,
        }
        self.json::<Jobs>(&["jobs", "-o", "json", "--cluster", "rig.toml"]).jobs
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, args: &[&str]) -> T {
        let output = self.cluster(args).expect_success();
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
    }

    /// What happened, as the state folder has it.
    pub(crate) fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.path("state/events.jsonl")).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Events of a kind since a moment, see [`now`].
    pub(crate) fn since(&self, time: f64, kind: &str) -> Vec<Event> {
        self.events().into_iter().filter(|event| event.time >= time && event.kind == kind).collect()
    }

    pub(crate) fn head(&self) -> u32 {
        self.status().head.pid
    }

    pub(crate) fn agent(&self, node: &str) -> u32 {
        let status = self.status();
        let found = status.nodes.iter().find(|found| found.node == node);
        found.and_then(|found| found.pid).unwrap_or_else(|| panic!("no agent of {node}: {status:?}"))
    }

    /// Processes of the ranks, in their order.
    pub(crate) fn ranks(&self) -> Vec<u32> {
        let status = self.status();
        let pids: Vec<u32> = status.ranks.iter().filter_map(|rank| rank.pid).collect();
        assert_eq!(pids.len(), status.ranks.len(), "{status:?}");
        pids
    }

    /// Waits until all nodes are in and all ranks are there and have nothing to do.
    pub(crate) fn idle(&self, within: Duration) -> Status {
        let mut last = None;
        let found = self.wait(within, || {
            let status = self.status();
            let is_idle = status.nodes.iter().all(|node| node.state == "up")
                && status.ranks.iter().all(|rank| rank.state == "idle")
                && status.running + status.waiting == 0;
            last = Some(format!("{status:?}"));
            is_idle.then_some(status)
        });
        found.unwrap_or_else(|| panic!("not idle after {within:?}: {last:?}\n{}", self.story()))
    }

    /// What `look` finds, unless it takes too long.
    pub(crate) fn wait<T>(&self, within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let until = Instant::now() + within;
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Begins `t2i` on the cluster.
    pub(crate) fn start(&self, drawing: &Drawing) -> Run {
        let number = fs::read_dir(self.place.path()).map_or(0, Iterator::count);
        let folder = self.path(&format!("run-{number}-{}", nanos()));
        fs::create_dir(&folder).expect("a new folder");
        drawing.prepare(&folder);
        let file = self.path("rig.toml");
        let cluster = ["--cluster", file.to_str().expect("a plain name"), "--report", "report.json"];
        let args: Vec<&str> = drawing.args().chain(cluster).collect();
        let child = self.at_home(command(&args, &folder)).spawn().expect("the program was just built");
        Run { child, folder, begin: Instant::now(), since: now() }
    }

    /// `t2i` on the cluster to its end, which is a good one.
    pub(crate) fn draw(&self, drawing: &Drawing) -> Drawn {
        self.start(drawing).done(self)
    }

    /// What is known of what happened here, for messages.
    pub(crate) fn story(&self) -> String {
        let mut text = String::new();
        for event in self.events() {
            text += &format!("{:.3} {} {}\n", event.time, event.kind, event.message);
        }
        let logs = fs::read_dir(self.path("state/log")).into_iter().flatten().flatten();
        for log in logs {
            let content = fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            text += &format!("--- {}\n{tail}\n", log.path().display());
        }
        text
    }

    /// Processes of this cluster that live.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        proc::with(self.folder())
    }

    /// Takes it down, and looks for what is left.
    fn end(&self) {
        let sockets = proc::plane_names();
        let own: Vec<String> =
            self.processes().iter().flat_map(|(pid, _)| proc::plane_sockets(*pid)).collect();
        // Agents end a moment after the head whose end they are told.
        if self.path("state/head.addr").exists() {
            let output = self.cluster(&["down", "--cluster", "rig.toml"]);
            assert_eq!(output.status, Some(0), "{}\n{}", output.stderr, self.story());
        }
        let down = Instant::now();
        let gone = self.wait(Duration::from_secs(3), || self.processes().is_empty().then_some(()));
        assert!(gone.is_some(), "processes are left: {:?}\n{}", self.processes(), self.story());
        println!("the last process ended {} ms after `down` came back", down.elapsed().as_millis());
        let left: Vec<String> = proc::plane_names().into_iter().filter(|name| own.contains(name)).collect();
        assert!(left.is_empty(), "sockets are left: {left:?} of {sockets:?}");
        let left = proc::left_below(self.place.path());
        assert!(left.is_empty(), "files are left: {left:?}");
        let new: Vec<String> =
            proc::shared_memory().into_iter().filter(|name| !self.before.contains(name)).collect();
        assert!(!new.iter().any(|name| name.contains("dg")), "shared memory is left: {new:?}");
        assert!(!self.path("state/head.addr").exists(), "the address of a head that is gone");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.story());
            for (pid, _) in self.processes() {
                proc::send(pid, Signal::KILL);
            }
            return;
        }
        self.end();
        let test = std::thread::current();
        println!("{}: {:.1} s", test.name().unwrap_or("?"), self.begin.elapsed().as_secs_f64());
    }
}

/// A connection to a head, by which questions take less time than by a command.
pub(crate) struct Watch {
    runtime: tokio::runtime::Runtime,
    head: HeadClient,
}

impl Watch {
    pub(crate) fn new(rig: &Rig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let folder = rig.path("state");
        let head =
            runtime.block_on(HeadClient::of_state(&folder, CLIENT, Options::dialer())).expect("a head");
        Self { runtime, head }
    }

    /// Jobs that were submitted since a moment, see [`now`].
    pub(crate) fn jobs_since(&self, time: f64) -> Vec<JobStatus> {
        let jobs = self.runtime.block_on(self.head.jobs()).expect("the head answers");
        jobs.into_iter().filter(|job| job.submitted >= time).collect()
    }
}

/// A run of `t2i` that is under way.
pub(crate) struct Run {
    child: std::process::Child,
    folder: PathBuf,
    begin: Instant,
    /// When it began, see [`now`].
    pub(crate) since: f64,
}

impl Run {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// To its end, however it ends.
    pub(crate) fn ended(self) -> Drawn {
        let output = finish(self.child, Duration::from_secs(120));
        Drawn {
            pictures: read_pictures(&self.folder.join("output")),
            output,
            took: self.begin.elapsed(),
            folder: self.folder,
        }
    }

    /// To its end, which is a good one.
    pub(crate) fn done(self, rig: &Rig) -> Drawn {
        let drawn = self.ended();
        assert_eq!(drawn.output.status, Some(0), "{}\n{}", drawn.output.stderr, rig.story());
        drawn
    }
}

/// What a run of `t2i` left.
pub(crate) struct Drawn {
    pub(crate) output: Output,
    pub(crate) pictures: crate::pictures::Pictures,
    pub(crate) took: Duration,
    folder: PathBuf,
}

impl Drawn {
    pub(crate) fn report(&self) -> dg_core::report::Report {
        let text = fs::read(self.folder.join("report.json")).expect("a report");
        serde_json::from_slice(&text).expect("a report has its form")
    }
}

/// Something that happened in a cluster.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    /// Seconds since 1970.
    pub(crate) time: f64,
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) job: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) rank: Option<u32>,
    pub(crate) step: Option<u32>,
}

/// Seconds since 1970, as events have them.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// The text of a path.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

/// Names of nodes.
pub(crate) const NODES: [&str; 4] = ["left", "right", "third", "fourth"];
