//! Runs the built program.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a finished run left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// This output if the program ended with status 0; panics with what it said if not.
    pub fn expect_success(self) -> Self {
        assert_eq!(self.status, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

/// The `diffgentor` program of the profile that the running test was built with. It is brought up to date once.
pub fn diffgentor_bin() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("diffgentor"))
}

/// The `dg-cluster` program, likewise.
pub fn cluster_bin() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("dg-cluster"))
}

/// The `dg-bench` program, likewise.
pub fn bench_bin() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("dg-bench"))
}

fn built(name: &str) -> PathBuf {
    let profile_dir = profile_dir();
    build(&profile_dir, name);
    let program = profile_dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "cargo build left no {}", program.display());
    program
}

/// A `Command` for `diffgentor` in `dir`, without the settings that the environment may hold for it.
pub fn command<S: AsRef<OsStr>>(args: &[S], dir: &Path) -> Command {
    command_of(diffgentor_bin(), args, dir)
}

/// The same for any of the programs.
pub fn command_of<S: AsRef<OsStr>>(program: &Path, args: &[S], dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy();
        if ["DG_", "HF_"].iter().any(|prefix| known.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs the program with `args` in `dir` and waits. Panics if it takes longer than ten minutes.
pub fn run<S: AsRef<OsStr>>(args: &[S], dir: &Path) -> Output {
    let child = command(args, dir).spawn().expect("the program was just built");
    finish(child, TIMEOUT)
}

/// Waits for a program started from [`command`]; kills it and panics after `timeout`.
pub fn finish(mut child: Child, timeout: Duration) -> Output {
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let deadline = Instant::now() + timeout;
    let (status, late) = loop {
        if let Some(status) = child.try_wait().expect("it is a child of this process") {
            break (status, false);
        }
        if Instant::now() > deadline {
            child.kill().expect("it is a child of this process");
            break (child.wait().expect("it is a child of this process"), true);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |reader: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().expect("reading a pipe does not panic")).into_owned()
    };
    let output = Output { status: status.code(), stdout: text(stdout), stderr: text(stderr) };
    assert!(!late, "not done after {timeout:?}\nstdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
    output
}

/// Reads a pipe to its end on a thread of its own, so that a full pipe never stops the program.
fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut content = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before a broken pipe is still worth showing.
            let _ = pipe.read_to_end(&mut content);
        }
        content
    })
}

/// `target/<profile>`, from the running test `target/<profile>/deps/<name>-<hash>`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = test.parent().expect("a program lies in a folder");
    let folder =
        if folder.ends_with("deps") { folder.parent().expect("deps lies in a folder") } else { folder };
    folder.to_owned()
}

/// Builds with the features that the whole workspace selects, as `cargo test --workspace` does: nothing is built
/// twice after it, and a program older than its source is never tested.
fn build(profile_dir: &Path, program: &str) {
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        None | Some("debug") => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", "--bin", program, "--profile", profile]);
    command.current_dir(crate::workspace_dir());
    // What cargo tells this test about its own package; some build scripts (ring's) take a change of it for a reason
    // to build again.
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy();
        if ["CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|prefix| known.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    let status = command.status().expect("cargo runs the tests, so it can be started");
    assert!(status.success(), "cargo build of {program} failed");
}

const TIMEOUT: Duration = Duration::from_secs(600);
