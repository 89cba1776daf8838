//! `dg-cluster status`.

use super::ask::Which;
use crate::args::Form;
use crate::failure::{Failure, print};
use crate::table::{bytes, columns, count};
use clap::Args;
use dg_runtime::fleet::client::{RankStatus, Status};
use std::time::Duration;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Which cluster.
    #[command(flatten)]
    which: Which,
    /// Show it again every second, until Ctrl-C.
    #[arg(short = 'w', long)]
    watch: bool,
    /// Form of the status.
    #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// Shows nodes and ranks.
pub(crate) fn status(args: &StatusArgs) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        let client = args.which.connect().await?;
        loop {
            let status = client.status().await?;
            match args.output {
                Form::Json => print(&serde_json::to_string(&status).unwrap_or_default())?,
                Form::Text if args.watch => print(&format!("{}\n", page(&status)))?,
                Form::Text => print(page(&status).trim_end())?,
            }
            if !args.watch {
                return Ok(());
            }
            tokio::select! {
                () = super::asked_to_end() => return Ok(()),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    })
}

/// What each rank of a node reaches.
fn speed(flops: f64) -> String {
    let tera = flops / 1e12;
    match tera {
        0.0 => "-".into(),
        tera if tera < 10.0 => format!("{tera:.2} TFLOP/s"),
        tera => format!("{tera:.0} TFLOP/s"),
    }
}

fn page(status: &Status) -> String {
    let head = &status.head;
    let heading = ["node", "state", "agent", "ranks", "device", "speed", "memory"];
    let mut nodes = vec![heading.map(String::from).to_vec()];
    nodes.extend(status.nodes.iter().map(|node| {
        let memory = if node.memory == 0 { "-".into() } else { bytes(node.memory) };
        let pid = node.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        vec![
            node.node.clone(),
            node.state.clone(),
            pid,
            node.ranks.to_string(),
            node.device.clone(),
            speed(node.rank_flops),
            memory,
        ]
    }));
    format!(
        "cluster {} at {}, head {} since {:.0} s, {} waiting, {} running\n\n{}\n{}",
        status.cluster,
        head.address,
        head.pid,
        head.uptime_s,
        count(status.waiting, "job"),
        count(status.running, "job"),
        columns(&nodes, &[2, 3, 5, 6]),
        columns(&ranks(&status.ranks), &[0, 2, 5, 7, 8, 9])
    )
}

/// Rows of ranks. What GPUs say of themselves is there only if one does.
fn ranks(all: &[RankStatus]) -> Vec<Vec<String>> {
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let has_gpu = all.iter().any(|rank| rank.gpu_utilisation.is_some() || rank.gpu_memory.is_some());
    let mut heading = vec!["rank", "node", "pid", "state", "job", "step", "device", "memory"];
    if has_gpu {
        heading.extend(["gpu", "gpu memory"]);
    }
    let mut rows = vec![heading.into_iter().map(String::from).collect()];
    rows.extend(all.iter().map(|rank| {
        let step = rank.job.as_ref().map(|_| rank.step.to_string());
        let mut row = vec![
            rank.rank.to_string(),
            rank.node.clone(),
            or(rank.pid.map(|pid| pid.to_string())),
            rank.state.clone(),
            or(rank.job.clone()),
            or(step),
            rank.device.clone(),
            if rank.memory == 0 { "-".into() } else { bytes(rank.memory) },
        ];
        if has_gpu {
            let memory = rank.gpu_memory.zip(rank.gpu_memory_total);
            row.push(or(rank.gpu_utilisation.map(|busy| format!("{busy} %"))));
            row.push(or(memory.map(|(used, total)| format!("{} of {}", bytes(used), bytes(total)))));
        }
        row
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: u32) -> RankStatus {
        RankStatus {
            rank,
            node: "a".into(),
            pid: Some(7),
            state: "idle".into(),
            job: None,
            epoch: None,
            step: 0,
            device: "h100".into(),
            memory: 0,
            gpu_utilisation: None,
            gpu_memory: None,
            gpu_memory_total: None,
        }
    }

    #[test]
    fn gpus_have_columns_if_one_tells() {
        assert!(ranks(&[rank(0), rank(1)]).iter().all(|row| row.len() == 8));
        let gpu = RankStatus {
            gpu_utilisation: Some(97),
            gpu_memory: Some(3 << 30),
            gpu_memory_total: Some(80 << 30),
            ..rank(1)
        };
        let rows = ranks(&[rank(0), gpu]);
        let last = |row: &[String]| row[8..].join("|");
        let last: Vec<_> = rows.iter().map(|row| last(row)).collect();
        assert_eq!(last, ["gpu|gpu memory", "-|-", "97 %|3.0 GiB of 80.0 GiB"]);
    }
}
