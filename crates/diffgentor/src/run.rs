//! `diffgentor t2i`.

use crate::args::T2iArgs;
use crate::batches::{Ending, Runner};
use crate::engine::Cluster;
use crate::failure::Failure;
use crate::output::write;
use crate::prepare::{self, Prepared};
use crate::report::Recorder;
use crate::signals::{Signal, Stop};
use crate::{dry_run, log, setup};
use dg_config::Key;
use dg_core::ExitCode;
use dg_flux::ModelRepo;
use std::path::Path;
use std::time::Instant;

/// Makes pictures.
pub(crate) fn t2i(args: &T2iArgs) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start threads: {e}")))?;
    let result = runtime.block_on(whole(args, start));
    // a computation that was cancelled may still be in a block: the process does not wait for it
    runtime.shutdown_background();
    result
}

async fn whole(args: &T2iArgs, start: Instant) -> Result<ExitCode, Failure> {
    let stop = Stop::listen().map_err(|e| Failure::failed(format!("cannot listen for signals: {e}")))?;
    let (prepared, repo) = prepare::prepare(setup::layers(args)?)?;
    if prepared.settings.switch(Key::DryRun) {
        dry_run::show(&prepared);
        // the exit code answers whether it can be done
        return prepared.check_memory().map(|()| ExitCode::Ok);
    }
    let report = prepared.settings.text(Key::Report).map(str::to_string);
    let mut recorder = Recorder::new(start);
    let weights = repo.weight_bytes();
    let result = make(&prepared, repo, stop, &mut recorder).await;
    if let Err(failure) = &result {
        let stopped = matches!(failure.exit, ExitCode::Interrupted | ExitCode::Terminated);
        recorder.event(if stopped { "cancelled" } else { "failed" }, &failure.message);
    }
    if let Some(path) = report {
        let text = serde_json::to_string_pretty(&recorder.finish(weights)).expect("text keys only");
        write::atomically(Path::new(&path), (text + "\n").as_bytes()).map_err(|e| {
            Failure::failed(format!("cannot write the report {path}: {e}")).hint("check --report")
        })?;
    }
    result
}

async fn make(
    prepared: &Prepared,
    repo: ModelRepo,
    mut stop: Stop,
    recorder: &mut Recorder,
) -> Result<ExitCode, Failure> {
    let todo = prepared.todo();
    recorder.begin(
        &prepared.model,
        prepared.options.dtype,
        prepared.plan.pictures.first().map(|p| &p.request),
    );
    prepare::make_folder(&prepared.folder)?;
    let random_used = todo.iter().any(|i| prepared.plan.pictures[*i].any_seed);
    if random_used && !prepared.settings.switch(Key::Quiet) {
        log::note(&format!("seed {} (drawn at random)", prepared.base.seed.0));
    }
    let pictures = prepared.plan.pictures.len();
    let mut runner = Runner::new(prepared, recorder);
    if todo.is_empty() {
        runner.print_skipped(pictures);
        return Ok(ExitCode::Ok);
    }
    prepared.check_memory()?;
    runner.loading();
    let loading = Instant::now();
    let cluster = tokio::select! {
        biased;
        signal = stop.wait() => return Err(stopped(signal, 0, pictures)),
        cluster = Cluster::start(repo, prepared.options.clone()) => cluster?,
    };
    runner.loaded(loading.elapsed().as_secs_f64());
    let ending = runner.run(&cluster, &mut stop).await?;
    match ending {
        Ending::Stopped { signal, there } => Err(stopped(signal, there, pictures)),
        Ending::Failed { failures, only } => {
            cluster.shutdown().await;
            let summary = format!("{failures} of {pictures} pictures failed");
            Err(only
                .unwrap_or_else(|| Failure::failed(summary).hint("run the same command again to make them")))
        }
        Ending::Done => {
            cluster.shutdown().await;
            Ok(ExitCode::Ok)
        }
    }
}

fn stopped(signal: Signal, there: usize, pictures: usize) -> Failure {
    let message = format!("stopped by {signal}: {there} of {pictures} pictures are there");
    Failure { exit: signal.exit(), message, hint: Some("run the same command again to continue".into()) }
}

/// Threads of the asynchronous runtime; the computation has its own.
const WORKERS: usize = 2;
