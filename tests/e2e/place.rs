//! A folder of its own for a test, and short ways to run the program in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use dg_testkit::Output;
use dg_testkit::program::{cluster_bin, command, command_of, finish};
use serde_json::Value;
use std::time::Duration;

pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect("the folder is writable");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A command that keeps to this folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args, self.0.path());
        command.env("XDG_CACHE_HOME", self.path(".cache")).env("XDG_STATE_HOME", self.path(".state"));
        command.env("NO_COLOR", "1");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, &[])
    }

    pub(crate) fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = self.command(args);
        command.envs(env.iter().copied());
        finish(command.spawn().expect("the program was just built"), TIMEOUT)
    }

    /// Runs `dg-cluster`.
    pub(crate) fn cluster(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = command_of(cluster_bin(), args, self.0.path());
        // Clusters of others on this host are none of its business.
        command.env("XDG_STATE_HOME", self.path(".state")).env("NO_COLOR", "1").envs(env.iter().copied());
        finish(command.spawn().expect("the program was just built"), TIMEOUT)
    }

    /// `t2i` with the built-in model at its smallest.
    pub(crate) fn small(&self, args: &[&str]) -> Output {
        self.run(&[SMALL, args].concat())
    }

    /// Names and contents of the files in a folder, hidden ones too; empty if it is not there.
    pub(crate) fn tree(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else { return BTreeMap::new() };
        let files = entries.map(|e| e.expect("a readable folder").path()).map(|path| {
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a readable file"))
        });
        files.collect()
    }

    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        self.tree(folder).into_keys().collect()
    }
}

/// Panics unless the program ended with this status and, for errors, said one error and what to do.
pub(crate) fn expect_exit(output: &Output, status: i32, said: &[&str]) {
    assert_eq!(output.status, Some(status), "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
    for part in said {
        assert!(output.stderr.contains(part), "no `{part}` in\n{}", output.stderr);
    }
}

pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test folders have plain names")
}

/// The smallest pictures of the built-in model.
pub(crate) const SMALL: &[&str] = &["t2i", "--height", "64", "--width", "64", "--num_inference_steps", "2"];

pub(crate) const TIMEOUT: Duration = Duration::from_secs(300);
