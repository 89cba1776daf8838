//! `--launch processes`: ranks that are processes, under an agent that is one too.

use crate::engine::EngineOptions;
use crate::failure::Failure;
use crate::hub::HubAsk;
use crate::models;
use clap::Args;
use dg_core::ExitCode;
use dg_flux::ModelSource;
use dg_net::endpoint::Options;
use dg_net::identity::Name;
use dg_runtime::fleet::agent::{self, AgentArgs};
use dg_runtime::fleet::client::HeadClient;
use dg_runtime::fleet::private::{Private, PrivateArgs, PrivateError};
use dg_runtime::fleet::{OpenModel, rank};
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `agent`, which this program starts itself.
#[derive(Debug, Args)]
pub(crate) struct AgentFlags {
    #[arg(long)]
    name: String,
    #[arg(long)]
    head: String,
    #[arg(long = "state_dir")]
    state_dir: PathBuf,
}

/// Starts the ranks of a run as processes.
pub(crate) async fn start(
    model: &ModelSource,
    options: &EngineOptions,
) -> Result<(Private, HeadClient), Failure> {
    let ranks = options.parallel.ask.layout.ranks();
    let args = PrivateArgs {
        ranks: u32::try_from(ranks).unwrap_or(u32::MAX),
        threads: u32::try_from(options.threads.get()).unwrap_or(1),
        model: name(model)?,
        program: this_program()?,
    };
    Ok(Private::start(&args).await?)
}

/// Runs the agent of the ranks.
pub(crate) fn agent(flags: &AgentFlags) -> Result<ExitCode, Failure> {
    let name = Name::parse(&flags.name).map_err(|e| Failure::usage(e.to_string()))?;
    let args = AgentArgs {
        name,
        head: flags.head.clone(),
        state_dir: flags.state_dir.clone(),
        rank: (this_program()?, vec!["rank".into()]),
        open: open(),
        options: Options { uni_streams_max: 256, ..Options::dialer() },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Failure::failed(format!("cannot start threads: {e}")))?;
    let ended = runtime.block_on(agent::run(args, std::future::pending()));
    ended.map(|()| ExitCode::Ok).map_err(|e| Failure { exit: e.exit(), message: e.to_string(), hint: None })
}

/// Runs a rank.
pub(crate) fn rank() -> Result<ExitCode, Failure> {
    rank::run(open()).map_err(|e| Failure::usage(e).hint("ranks are started by `t2i --launch processes`"))
}

/// What the ranks find the model by.
fn name(source: &ModelSource) -> Result<String, Failure> {
    match source {
        ModelSource::Embedded(_) => Ok(models::DEMO.into()),
        ModelSource::Folder(path) => {
            let path =
                path.canonicalize().map_err(|e| Failure::config(format!("{}: {e}", path.display())))?;
            path.into_os_string().into_string().map_err(|path| {
                Failure::config(format!("the path {} is not UTF-8", path.display()))
                    .hint("leave --launch processes out, or move the model")
            })
        }
    }
}

fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| Failure::failed(format!("cannot find this program: {e}")))
}

/// What the program that started it has found is there: nothing is downloaded.
fn open() -> OpenModel {
    Arc::new(|name| {
        let ask = HubAsk { local_files_only: true, silent: true, ..HubAsk::default() };
        models::open(name, &ask).map_err(|failure| failure.message)
    })
}

impl From<PrivateError> for Failure {
    fn from(e: PrivateError) -> Self {
        Self::failed(e.to_string()).hint("without --launch the ranks are threads of this process")
    }
}
