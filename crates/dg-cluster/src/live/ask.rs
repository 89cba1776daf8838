//! Commands that ask the head something small, and how it is found.

use crate::failure::{Failure, print};
use crate::load::load;
use clap::{Args, ValueHint};
use dg_config::{ClusterFile, state_folder};
use dg_core::ExitCode;
use dg_net::endpoint::Options;
use dg_runtime::fleet::client::{Ask, AskError, CLIENT, HeadClient};
use dg_runtime::fleet::{head, places};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Which cluster a command is about.
#[derive(Clone, Debug, Args)]
pub(crate) struct Which {
    /// The cluster's file. Default: the only cluster that is up.
    #[arg(long = "cluster", value_name = "FILE", value_hint = ValueHint::FilePath)]
    cluster: Option<PathBuf>,
    /// The state folder, whatever the file says.
    #[arg(long = "state_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
    /// The certificate of the state folder to ask with.
    #[arg(long = "client", value_name = "NAME", default_value = CLIENT)]
    client: String,
}

impl Which {
    /// The cluster of a file.
    pub(crate) fn of(file: &ClusterFile, folder: &Path) -> Self {
        Self { cluster: Some(file.path.clone()), state_dir: Some(folder.into()), client: CLIENT.into() }
    }

    /// Connects to its head.
    pub(crate) async fn connect(&self) -> Result<HeadClient, Failure> {
        let (folder, options) = self.find()?;
        Ok(HeadClient::of_state(&folder, &self.client, options).await?)
    }

    /// The same; a failure is no news.
    pub(crate) async fn connect_quietly(&self) -> Result<HeadClient, AskError> {
        let folder = self.state_dir.clone().unwrap_or_default();
        HeadClient::of_state(&folder, &self.client, Options::dialer()).await
    }

    fn find(&self) -> Result<(PathBuf, Options), Failure> {
        if let Some(path) = &self.cluster {
            let file = load(path)?.file;
            let folder = self.state_dir.clone().unwrap_or_else(|| state_folder(&file));
            return Ok((folder, head::options(&file)));
        }
        if let Some(folder) = &self.state_dir {
            return Ok((folder.clone(), Options::dialer()));
        }
        Ok((only_running()?, Options::dialer()))
    }
}

/// The state folder of the only cluster that is up on this host.
pub(crate) fn only_running() -> Result<PathBuf, Failure> {
    match places::running().as_slice() {
        [(_, folder)] => Ok(folder.clone()),
        [] => Err(Failure::new(
            ExitCode::Unreachable,
            "no cluster is up on this host",
            "`dg-cluster up FILE -d --wait` starts one; one of another host is named by --cluster",
        )),
        several => {
            let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
            let message = format!("several clusters are up: {}", names.join(", "));
            Err(Failure::new(ExitCode::Usage, message, "name the file of one with --cluster"))
        }
    }
}

impl From<AskError> for Failure {
    fn from(e: AskError) -> Self {
        let hint = e.hint().unwrap_or_else(|| "`dg-cluster status` shows the cluster".into());
        if let AskError::Identity(e) = e {
            return e.into();
        }
        Self::new(e.exit(), e.to_string(), hint)
    }
}

/// Ends a cluster.
pub(crate) fn down(which: &Which) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        let client = which.connect().await?;
        let pid = client.status().await?.head.pid;
        let _: String = client.ask(&Ask::Down).await?;
        client.closed(DOWN_MAX).await;
        // Its process ends a moment later: who starts another one at once is not to find it.
        let (folder, until) = (which.find()?.0, Instant::now() + DOWN_MAX);
        while places::is_up(&folder) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        print(&format!("the cluster is down (its head was process {pid})"))
    })
}

/// Gives a node no new work, or work again.
pub(crate) fn drain(which: &Which, node: &str, is_undone: bool) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        let client = which.connect().await?;
        let _: String = client.ask(&Ask::Drain(node.into(), !is_undone)).await?;
        print(&match is_undone {
            true => format!("node {node} gets work again"),
            false => format!("node {node} gets no new work; `dg-cluster status` shows when it has none"),
        })
    })
}

/// Cancels a job.
pub(crate) fn cancel(which: &Which, job: &str) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        let _: String = which.connect().await?.ask(&Ask::Cancel(job.into())).await?;
        print(&format!("job {job} is cancelled"))
    })
}

const DOWN_MAX: Duration = Duration::from_secs(15);
