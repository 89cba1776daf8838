//! `dg-cluster join`: a certificate for a node, by a token.

use super::agent::usual_folder;
use crate::failure::{Failure, print};
use crate::place::name;
use clap::{Args, ValueHint};
use dg_core::ExitCode;
use dg_net::endpoint::Options;
use dg_net::identity::{Name, State};
use dg_net::join::JoinToken;
use std::path::PathBuf;

/// Arguments of `join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// As `dg-cluster token create` printed it. It works once.
    #[arg(value_name = "TOKEN")]
    token: String,
    /// What this node is called in the cluster's file.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Name,
    /// Where the certificate is kept. Default: the usual folder of a node of this name.
    #[arg(long = "state_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
}

/// Gets the certificate, and says how the agent is started.
pub(crate) fn join(args: &JoinArgs) -> Result<(), Failure> {
    let token: JoinToken = args.token.parse().map_err(|e| {
        Failure::new(ExitCode::Usage, format!("{e}"), "paste all of what `dg-cluster token create` printed")
    })?;
    let folder = args.state_dir.clone().unwrap_or_else(|| usual_folder(&args.name));
    let state = State::create(&folder)?;
    let joined = super::runtime()?.block_on(dg_net::join::join(&token, &args.name, &Options::default()));
    let identity = joined.map_err(|e| {
        let text = e.to_string();
        let (message, hint) = text.rsplit_once("; hint: ").unwrap_or((&text, "ask for another token"));
        Failure::new(e.exit_code(), message, hint)
    })?;
    state.save(&identity, true)?;
    let (name, head) = (&args.name, token.address());
    print(&format!(
        "node {name} has its certificate: {}\nstart it with: dg-cluster agent --name {name} --head {head} --state_dir {}",
        state.identity_path(name).display(),
        folder.display()
    ))
}
