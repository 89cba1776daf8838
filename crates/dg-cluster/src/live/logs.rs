//! `dg-cluster logs`.

use super::ask::Which;
use crate::failure::{Failure, print};
use clap::Args;
use dg_core::ExitCode;
use dg_runtime::fleet::client::{Ask, HeadClient, Status};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Which cluster.
    #[command(flatten)]
    which: Which,
    /// A node, for all of its ranks, or the number of a rank.
    #[arg(value_name = "NODE|RANK")]
    of: String,
    /// Go on as lines come, until Ctrl-C.
    #[arg(short = 'f', long)]
    follow: bool,
}

#[derive(Deserialize)]
struct Lines {
    last: u64,
    lines: Vec<String>,
}

/// Shows what ranks wrote: the last lines of the processes that run.
pub(crate) fn logs(args: &LogArgs) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        let client = args.which.connect().await?;
        let ranks = ranks(&client.status().await?, &args.of)?;
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        loop {
            for rank in &ranks {
                show(&client, *rank, seen.entry(*rank).or_default(), ranks.len() > 1).await?;
            }
            if !args.follow {
                return Ok(());
            }
            tokio::select! {
                () = super::asked_to_end() => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
            }
        }
    })
}

/// All lines after those that were seen.
async fn show(client: &HeadClient, rank: u32, seen: &mut u64, is_named: bool) -> Result<(), Failure> {
    loop {
        let Lines { last, lines } = client.ask(&Ask::Logs(rank, *seen)).await?;
        // A new process counts from 1 again.
        *seen = last;
        if lines.is_empty() {
            return Ok(());
        }
        for line in lines {
            print(&if is_named { format!("rank {rank}: {line}") } else { line })?;
        }
    }
}

fn ranks(status: &Status, of: &str) -> Result<Vec<u32>, Failure> {
    let number = of.parse::<u32>().ok();
    let is_of = |rank: &&dg_runtime::fleet::client::RankStatus| rank.node == of || Some(rank.rank) == number;
    let found: Vec<u32> = status.ranks.iter().filter(is_of).map(|rank| rank.rank).collect();
    if found.is_empty() {
        let message = format!("`{of}` is neither a node nor a rank of cluster `{}`", status.cluster);
        return Err(Failure::new(ExitCode::Config, message, "`dg-cluster status` lists them"));
    }
    Ok(found)
}
