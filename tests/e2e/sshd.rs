//! A node that a real `sshd` on this host starts.

use super::live::Live;
use super::place::{expect_exit, text};
use dg_testkit::program::{cluster_bin, finish};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The programs, if all are here.
fn programs() -> Option<[PathBuf; 3]> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let find =
        |name: &str| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    Some([find("sshd")?, find("ssh")?, find("ssh-keygen")?])
}

/// An `sshd` of its own keys, ports and users. Dropping it ends it and what it has started.
struct Sshd {
    process: Child,
}

impl Sshd {
    /// Listens on `port`; everything of it lies in `folder`. Who comes with the key there gets a shell of this user with
    /// this environment.
    fn start(
        [sshd, _, keygen]: &[PathBuf; 3],
        folder: &Path,
        port: u16,
        environment: &str,
    ) -> Result<Self, String> {
        for name in ["host", "user"] {
            let file = folder.join(name);
            let made =
                Command::new(keygen).args(["-q", "-t", "ed25519", "-N", "", "-f", text(&file)]).status();
            assert!(made.is_ok_and(|status| status.success()), "ssh-keygen");
        }
        let at = text(folder);
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nPidFile none\nAuthorizedKeysFile {at}/user.pub\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nPermitUserEnvironment no\nSetEnv {environment}\n"
        );
        std::fs::write(folder.join("sshd_config"), config).expect("the folder is writable");
        if rustix::process::geteuid().is_root() {
            // Where it separates its privileges.
            std::fs::create_dir_all("/run/sshd").map_err(|error| format!("/run/sshd: {error}"))?;
        }
        let log = std::fs::File::create(folder.join("sshd.log")).expect("the folder is writable");
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f", &format!("{at}/sshd_config")]).stdin(Stdio::null()).stderr(log);
        let mut sshd = Self { process: command.spawn().map_err(|error| error.to_string())? };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(folder.join("sshd.log")).unwrap_or_default();
            if sshd.process.try_wait().is_ok_and(|ended| ended.is_some()) || Instant::now() > until {
                return Err(format!("sshd does not listen: {}", log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(sshd)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

#[test]
fn a_node_is_started_by_a_real_sshd() {
    let Some(programs) = programs() else {
        eprintln!(
            "SKIPPED SKIPPED SKIPPED: no sshd, ssh and ssh-keygen here: nodes by a real ssh were NOT tried"
        );
        return;
    };
    let live = Live::new(
        "[[node]]\nname = \"far\"\nlocal = true\nlaunch = \"ssh\"\nssh = \"far-host\"\ncpu_threads = 1\n",
    );
    let (folder, port) = (live.0.path("ssh"), free_port());
    std::fs::create_dir(&folder).expect("the folder is writable");
    let bin = cluster_bin().parent().expect("it is in a folder");
    let usual = std::env::var("PATH").unwrap_or_default();
    // What a user of that host would have.
    let there = live.0.path("there");
    let environment = format!("PATH={}:{usual} XDG_STATE_HOME={}", text(bin), text(&there));
    let sshd = match Sshd::start(&programs, &folder, port, &environment) {
        Ok(sshd) => sshd,
        Err(why) => {
            eprintln!("SKIPPED SKIPPED SKIPPED: {why}: nodes by a real ssh were NOT tried");
            return;
        }
    };
    // ssh reads the settings of its user, wherever HOME is; so it is told where ours are.
    let user = Command::new("id").arg("-un").output().expect("a user").stdout;
    let (at, user) = (text(&folder), String::from_utf8(user).expect("a name"));
    let settings = format!(
        "Host far-host\n HostName 127.0.0.1\n Port {port}\n User {}\n IdentityFile {at}/user\n IdentitiesOnly yes\n \
         UserKnownHostsFile {at}/known\n StrictHostKeyChecking accept-new\n",
        user.trim()
    );
    live.0.write("ssh/config", settings);
    std::fs::create_dir(folder.join("bin")).expect("the folder is writable");
    live.0.write("ssh/bin/ssh", format!("#!/bin/sh\nexec {} -F {at}/config \"$@\"\n", text(&programs[1])));
    let ssh = folder.join("bin/ssh");
    std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is there");
    let path = format!("{at}/bin:{usual}");
    live.0.cluster(&["up", "small.toml", "-d"], &[("PATH", path.as_str())]).expect_success();
    let token = live.ok(&["token", "create", "--cluster", "small.toml", "--node", "far"]);
    let mut join = Command::new(&ssh);
    join.args(["far-host", "dg-cluster", "join", token.trim(), "--name", "far"]);
    join.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(join.spawn().expect("ssh starts"), Duration::from_secs(60)).expect_success();
    assert!(there.join("dg-cluster/nodes/far/far.pem").is_file(), "the key is made there");
    let status = live.wait(|status| status["ranks"][0]["state"] == "idle");
    let agent = status["nodes"][0]["pid"].as_u64().expect("an agent");
    assert!(is_below(agent, sshd.process.id()), "{agent} was started by sshd");
    expect_exit(&live.draw("made", &["--cluster", "small.toml"]), 0, &[]);
    expect_exit(&live.draw("serial", &[]), 0, &[]);
    assert!(live.0.tree("made") == live.0.tree("serial"), "the serial picture");
    live.ok(&["down"]);
    let until = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{agent}")).exists() {
        assert!(Instant::now() < until, "the agent {agent} goes with its cluster");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process descends from another.
fn is_below(process: u64, of: u32) -> bool {
    let parent = |pid: u64| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may have spaces.
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let mut line = std::iter::successors(Some(process), |pid| parent(*pid)).take(10);
    line.any(|pid| pid == u64::from(of))
}
