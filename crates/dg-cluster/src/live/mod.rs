//! The commands of a cluster that lives.

mod agent;
mod ask;
mod jobs;
mod join;
mod logs;
mod status;
mod up;

pub(crate) use agent::{AgentArgs, agent, rank};
pub(crate) use ask::{Which, cancel, down, drain, only_running};
pub(crate) use jobs::jobs;
pub(crate) use join::{JoinArgs, join};
pub(crate) use logs::{LogArgs, logs};
pub(crate) use status::{StatusArgs, status};
pub(crate) use up::{UpArgs, up};

use crate::failure::Failure;
use dg_core::ExitCode;
use std::io::IsTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

/// Threads and clock of everything that waits for the network.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    runtime.map_err(|e| {
        Failure::new(ExitCode::Failed, format!("cannot start threads: {e}"), "is there a limit on processes?")
    })
}

/// What happens is told on standard error, as much of it as `DG_LOG` says.
fn log() {
    let level = std::env::var("DG_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(LevelFilter::INFO);
    let targets = tracing_subscriber::filter::Targets::new()
        .with_target("ractor", LevelFilter::ERROR.min(level))
        .with_target("ractor_cluster", LevelFilter::ERROR.min(level))
        .with_target("quinn", LevelFilter::WARN.min(level))
        .with_default(level);
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let _ = tracing_subscriber::registry().with(targets).with(lines).try_init();
}

/// Until the process is asked to end.
async fn asked_to_end() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

const WORKERS: usize = 2;
