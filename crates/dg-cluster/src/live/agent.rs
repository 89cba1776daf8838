//! `dg-cluster agent`: what a node runs, and its ranks.

use crate::failure::Failure;
use crate::model;
use crate::place::name;
use clap::{Args, ValueHint};
use dg_core::ExitCode;
use dg_net::endpoint::Options;
use dg_net::identity::Name;
use dg_runtime::fleet::agent::{self, AgentError};
use dg_runtime::fleet::{OpenModel, rank as rank_process};
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The node: `NAME.pem` of the state folder is its certificate.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Name,
    /// Where the head listens.
    #[arg(long, value_name = "HOST:PORT")]
    head: String,
    /// Folder with the certificate. Default: that of a node of this name, as `dg-cluster join` makes it.
    #[arg(long = "state_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
}

/// Runs the agent of a node until the head, or a signal, ends it.
pub(crate) fn agent(args: &AgentArgs) -> Result<(), Failure> {
    super::log();
    let program = std::env::current_exe().map_err(|e| {
        Failure::new(ExitCode::Failed, format!("cannot find this program: {e}"), "was it moved or removed?")
    })?;
    let args = agent::AgentArgs {
        name: args.name.clone(),
        head: args.head.clone(),
        state_dir: args.state_dir.clone().unwrap_or_else(|| usual_folder(&args.name)),
        rank: (program, vec!["rank".into()]),
        open: open(),
        options: Options { uni_streams_max: 256, ..Options::dialer() },
    };
    super::runtime()?.block_on(agent::run(args, super::asked_to_end())).map_err(Failure::from)
}

/// Runs a rank, for the agent that has started this process.
pub(crate) fn rank() -> Result<(), Failure> {
    super::log();
    let ended = rank_process::run(open());
    ended.map(|_| ()).map_err(|e| {
        Failure::new(ExitCode::Usage, e, "ranks are started by agents: `dg-cluster up FILE` does it all")
    })
}

/// The folder of a node that has joined by a token.
pub(super) fn usual_folder(name: &Name) -> PathBuf {
    dg_runtime::fleet::places::base().join("nodes").join(name.as_str())
}

fn open() -> OpenModel {
    Arc::new(|name| model::open(name).map_err(|failure| failure.message))
}

impl From<AgentError> for Failure {
    fn from(e: AgentError) -> Self {
        let hint = match &e {
            AgentError::Runs(_) => "a node has one agent: end the other one first",
            AgentError::Identity(_) => "`dg-cluster join TOKEN --name NAME` gets the certificate of a node",
            AgentError::Alone { .. } => {
                "is the head up (`dg-cluster status` on its host), and does UDP reach it from here? Then start the agent again"
            }
            AgentError::System(_) => "messages before this one have the details",
            _ => "the head's log has the details",
        };
        let (exit, text) = (e.exit(), e.to_string());
        let message = text.split_once("; hint: ").map_or(text.as_str(), |(message, _)| message);
        Self::new(exit, message, hint)
    }
}
