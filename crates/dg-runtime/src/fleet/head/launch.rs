//! Starting the agents that the head has to start.

use super::actor::{Message, State};
use super::{HeadArgs, agent_arguments};
use crate::fleet::lock;
use dg_config::{Launch, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How agents are started.
pub(super) struct Launcher {
    head: String,
    program: PathBuf,
    state_dir: PathBuf,
    restarts: BTreeMap<String, u32>,
    /// Nodes whose agent, or the ssh to it, is a child of this process.
    running: BTreeSet<String>,
}

impl Launcher {
    pub(super) fn new(args: &HeadArgs, address: &str) -> Self {
        let (program, state_dir) = (args.program.clone(), args.state_dir.clone());
        Self { head: address.into(), program, state_dir, restarts: BTreeMap::new(), running: BTreeSet::new() }
    }

    /// Whether the agent of a node is a child of this process, which sees to it when it ends.
    pub(super) fn is_running(&self, name: &str) -> bool {
        self.running.contains(name)
    }

    /// The agent of a node has joined: the next time that it ends is the first.
    pub(super) fn joined(&mut self, name: &str) {
        self.restarts.remove(name);
    }

    /// The command that is the agent of a node; none if somebody starts it by hand.
    fn command(&self, node: &Node) -> Option<Command> {
        match &node.launch {
            Launch::Manual => None,
            Launch::Local => {
                let mut command = Command::new(&self.program);
                command.args(agent_arguments(&node.name, &self.head, &self.state_dir));
                Some(command)
            }
            Launch::Ssh { target } => {
                let mut command = Command::new("ssh");
                command.args(ssh_arguments(target, &node.name, &self.head));
                Some(command)
            }
        }
    }
}

/// Arguments of `ssh`: no questions, a dead connection is noticed, and what runs there is one quoted command.
fn ssh_arguments(target: &str, node: &str, head: &str) -> Vec<String> {
    let remote = ["dg-cluster", "agent", "--name", node, "--head", head];
    let remote: Vec<String> = remote.into_iter().map(quote).collect();
    let options =
        ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-T", "--"];
    let options = options.into_iter().map(str::to_owned);
    options.chain([target.to_owned(), remote.join(" ")]).collect()
}

/// A word for the shell at the other end.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl State {
    pub(super) fn launch_all(&mut self) {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for name in names {
            self.launch(&name);
        }
    }

    /// Starts the agent of a node, unless one runs: that one finds the head by itself.
    pub(super) fn launch(&mut self, name: &str) {
        let is_there = self.node(name).is_some_and(|node| node.link.is_some());
        if self.is_going_down || is_there || self.launcher.is_running(name) {
            return;
        }
        let Some(node) = self.args.file.nodes.iter().find(|node| node.name == name) else { return };
        let Some(mut command) = self.launcher.command(node) else { return };
        let path = self.args.state_dir.join(format!("{name}.lock"));
        if node.launch == Launch::Local && lock::is_taken(&path) {
            tracing::info!(node = name, "its agent runs already");
            return self.launch_later(name);
        }
        let log = self.args.state_dir.join("log");
        let opened = std::fs::create_dir_all(&log).and_then(|()| {
            std::fs::File::options().create(true).append(true).open(log.join(format!("{name}.log")))
        });
        let output = opened.and_then(|file| Ok((file.try_clone()?, file)));
        let started = output.and_then(|(out, err)| {
            // Of its own group: what stops the head at a terminal does not stop it.
            command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).spawn()
        });
        match started {
            Ok(mut child) => {
                let (me, name, pid) = (self.me.clone(), name.to_owned(), child.id());
                self.launcher.running.insert(name.clone());
                tokio::spawn(async move {
                    let how = child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
                    let _ = me.cast(Message::AgentEnded(name, pid, how));
                });
            }
            Err(error) => {
                let event = self
                    .node(name)
                    .map(|n| n.event("agent_failed", format!("the agent of {name} does not start: {error}")));
                self.events.extend(event);
                self.launch_later(name);
            }
        }
    }

    pub(super) fn agent_ended(&mut self, name: &str, pid: Option<u32>, how: &str) {
        if self.is_going_down {
            return;
        }
        let event =
            self.node(name).map(|n| n.event("agent_ended", format!("the agent of {name} ended: {how}")));
        self.events.extend(event);
        // What it was connected by would be silent for a while yet.
        let own = |node: &&super::node::Node| node.facts.as_ref().map(|facts| facts.pid) == pid;
        if let Some(incarnation) = self.node(name).filter(own).map(|node| node.incarnation) {
            self.lost(name, incarnation, "its process ended");
        }
        self.launcher.running.remove(name);
        self.launch_later(name);
    }

    /// A node is not connected. A former head may have started its agent: nobody else sees to it then.
    pub(super) fn see_to_agent(&mut self, name: &str) {
        if !self.is_going_down && !self.launcher.is_running(name) {
            self.launch_later(name);
        }
    }

    /// Again, the later the more often it was since the node was in.
    pub(super) fn launch_later(&mut self, name: &str) {
        let restarts = self.launcher.restarts.entry(name.to_owned()).or_default();
        *restarts += 1;
        let wait = AGAIN.saturating_mul(1 << (*restarts).min(7)).min(AGAIN_MAX);
        let name = name.to_owned();
        self.me.send_after(wait, || Message::Launch(name));
    }
}

const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_runs_is_one_word_of_quoted_words() {
        let arguments = ssh_arguments("flux@rack", "a b'c", "10.0.0.1:7443");
        let last = arguments.last().unwrap();
        assert_eq!(last, r"dg-cluster agent --name 'a b'\''c' --head 10.0.0.1:7443");
        assert_eq!(arguments[arguments.len() - 3..arguments.len() - 1], ["--", "flux@rack"]);
        for word in ["$(reboot)", "`x`", "a;b", "", "a\nb", "ä"] {
            assert!(quote(word).starts_with('\'') && quote(word).ends_with('\''), "{word}");
        }
    }
}
