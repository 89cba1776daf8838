//! `diffgentor t2i`.

use crate::args::{Launch, T2iArgs};
use crate::batches::{Ending, Runner};
use crate::engine::{Cluster, EngineOptions, Model};
use crate::failure::Failure;
use crate::output::encode;
use crate::output::metadata::Record;
use crate::output::resume::{self, InTheWay};
use crate::output::{Format, write};
use crate::prepare::{self, Prepared};
use crate::report::Recorder;
use crate::signals::{Signal, Stop};
use crate::{dry_run, log, machine, processes, remote, setup, trace};
use dg_config::Key;
use dg_core::ExitCode;
use dg_flux::ModelRepo;
use dg_runtime::fleet::job::ModelCard;
use dg_runtime::fleet::private::Private;
use std::path::{Path, PathBuf};
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
    let file = remote::file(&args.cluster)?;
    let mut layers = setup::layers((&args.flags, &args.common), file.as_ref())?;
    let mut remote = remote::connect(&args.cluster, file.as_ref(), &layers.resolve()).await?;
    if let Some(remote) = &mut remote {
        remote.fill(&mut layers);
    }
    let (prepared, model) = prepare::prepare(layers, args.cluster.launch, remote)?;
    if prepared.settings.switch(Key::DryRun) {
        dry_run::show(&prepared)?;
        // the exit code answers whether it can be done
        check_replaced(&prepared)?;
        return prepared.check_memory().map(|()| ExitCode::Ok);
    }
    let report = prepared.settings.text(Key::Report).map(str::to_string);
    let mut recorder = Recorder::new(start, report.is_some());
    let weights = model.repo().map_or(0, ModelRepo::weight_bytes);
    let result = make(args, (&prepared, model), stop, &mut recorder).await;
    if let Err(failure) = &result {
        let stopped = matches!(failure.exit, ExitCode::Interrupted | ExitCode::Terminated);
        recorder.event(if stopped { "cancelled" } else { "failed" }, &failure.message);
    }
    if let Some(path) = report {
        let text = serde_json::to_string_pretty(&recorder.finish(weights)).expect("text keys only");
        if let Err(e) = write::to_target(Path::new(&path), (text + "\n").as_bytes()) {
            let message = unwritable(&path, &e);
            match &result {
                Ok(_) => return Err(Failure::failed(message).hint("check --report")),
                Err(first) if first.message == message => (),
                Err(_) => tracing::error!("{message}"),
            }
        }
    }
    result
}

fn unwritable(report: &str, e: &std::io::Error) -> String {
    format!("cannot write the report {report}: {e}")
}

/// All that can be known before the model is loaded: what would be replaced, memory, folders.
fn get_ready(prepared: &Prepared) -> Result<(), Failure> {
    check_replaced(prepared)?;
    if !prepared.todo().is_empty() {
        prepared.check_memory()?;
    }
    prepare::make_folder(&prepared.folder)?;
    let text = |key: Key| prepared.settings.text(key);
    if let Some(report) = text(Key::Report).filter(|path| text(Key::Trace) == Some(path))
        && !Path::new(report).starts_with("/dev")
    {
        let message = format!("--report and --trace both name {report}");
        return Err(Failure::config(message).hint("name two files"));
    }
    let probe = |key: Key, cannot: fn(&str, &std::io::Error) -> String| match prepared.settings.text(key) {
        Some(path) => write::probe_target(Path::new(path))
            .map_err(|e| Failure::config(cannot(path, &e)).hint(format!("check --{}", key.setting().name))),
        None => Ok(()),
    };
    probe(Key::Report, unwritable)?;
    probe(Key::Trace, trace::unwritable)
}

/// Warns about pictures of other requests that will be replaced, and refuses to replace those that
/// this program did not make, as far as this run can tell.
fn check_replaced(prepared: &Prepared) -> Result<(), Failure> {
    let settings = &prepared.settings;
    if settings.switch(Key::NoResume) || !prepared.folder.is_dir() {
        return Ok(());
    }
    let todo = prepared.todo();
    let paths: Vec<PathBuf> = todo.iter().map(|i| prepared.path(*i)).collect();
    let found = resume::in_the_way(&paths, machine::physical_cores().get());
    // a record too long for the format is not missed
    let format = Format::named(settings.text(Key::OutputFormat));
    let recorded = |i: usize| {
        let recipe = prepared.recipe(&prepared.plan.pictures[i].request, true);
        encode::holds(format, &Record::new(recipe))
    };
    let (mut other, mut foreign) = (Vec::new(), Vec::new());
    for ((i, path), found) in todo.into_iter().zip(&paths).zip(found) {
        match found {
            InTheWay::Foreign if settings.switch(Key::NoMetadata) => other.push(path),
            InTheWay::Foreign if recorded(i) => foreign.push(path),
            InTheWay::Other => other.push(path),
            InTheWay::Foreign | InTheWay::Nothing => (),
        }
    }
    if let Some(first) = foreign.first() {
        let more = match foreign.len() {
            1 => String::new(),
            n => format!(", nor are {} more", n - 1),
        };
        let message = format!(
            "{} is there and is not known to be a picture of this program{more}: it does not record how it was made",
            first.display()
        );
        if !settings.switch(Key::Force) {
            return Err(Failure::config(message)
                .hint("choose another --output_dir, or replace it with --no_resume or --force"));
        }
        log::warn_once(format!("{message}; it will be replaced"));
    }
    if let Some(name) = other.first().and_then(|path| path.file_name()) {
        let pictures = if other.len() == 1 { "picture" } else { "pictures" };
        let name = name.to_string_lossy();
        log::warn_once(format!(
            "{} {pictures} of another request will be replaced, `{name}` for one",
            other.len()
        ));
    }
    Ok(())
}

async fn make(
    args: &T2iArgs,
    (prepared, model): (&Prepared, Model),
    mut stop: Stop,
    recorder: &mut Recorder,
) -> Result<ExitCode, Failure> {
    let todo = prepared.todo();
    recorder.begin(
        &prepared.model,
        prepared.options.dtype,
        prepared.plan.pictures.first().map(|p| &p.request),
    );
    if let Some(plan) = prepared.spread.shown() {
        recorder.layout(plan.layout.reported(plan.patches.runs().len() as u32, plan.warmup as u32));
    }
    get_ready(prepared)?;
    if prepared.settings.switch(Key::Debug) {
        dry_run::planned(prepared).iter().for_each(trace::tell_plan);
    }
    let random_used = todo.iter().any(|i| prepared.plan.pictures[*i].any_seed);
    if random_used && !prepared.settings.switch(Key::Quiet) {
        log::note(&format!("seed {} (drawn at random)", prepared.base.seed.0));
    }
    let pictures = prepared.plan.pictures.len();
    let mut runner = Runner::new(prepared, recorder);
    if todo.is_empty() {
        runner.print_skipped(pictures);
        return runner.finish().map(|()| ExitCode::Ok);
    }
    runner.loading();
    let loading = Instant::now();
    let cluster = tokio::select! {
        biased;
        signal = stop.wait() => return Err(stopped(signal, 0, pictures)),
        cluster = start(model, args, prepared.options.clone()) => cluster?,
    };
    let (cluster, private) = cluster;
    runner.loaded(loading.elapsed().as_secs_f64());
    let ending = runner.run(&cluster, &mut stop).await;
    runner.ranks(cluster.rank_reports());
    let written = write_trace(prepared, &cluster);
    if let (Err(failure), false) = (&written, matches!(ending, Ok(Ending::Done))) {
        tracing::error!("{}", failure.message);
    }
    if let Some(private) = private {
        private.shut_down().await;
    }
    match ending? {
        Ending::Stopped { signal, there } => {
            cluster.leave().await;
            Err(stopped(signal, there, pictures))
        }
        Ending::Failed { failures, only } => {
            cluster.shutdown().await;
            let summary = format!("{failures} of {pictures} pictures failed");
            Err(only
                .unwrap_or_else(|| Failure::failed(summary).hint("run the same command again to make them")))
        }
        Ending::Done => {
            cluster.shutdown().await;
            runner.finish()?;
            written.map(|()| ExitCode::Ok)
        }
    }
}

/// Ranks of this process, or those of a cluster.
async fn start(
    model: Model,
    args: &T2iArgs,
    options: EngineOptions,
) -> Result<(Cluster, Option<Private>), Failure> {
    match model {
        Model::There(remote) => {
            let options = EngineOptions { priority: args.cluster.priority, ..options };
            Ok((Cluster::connect(remote.head, remote.name, remote.card, options), None))
        }
        Model::Here(repo) if args.cluster.launch == Launch::Processes => {
            let card = ModelCard::of(&repo);
            let (private, head) = processes::start(repo.source(), &options).await?;
            Ok((Cluster::connect(head, None, card, options), Some(private)))
        }
        Model::Here(repo) => Ok((Cluster::start(*repo, options).await?, None)),
    }
}

/// Writes what every rank did when, if it is wanted.
fn write_trace(prepared: &Prepared, cluster: &Cluster) -> Result<(), Failure> {
    let Some(path) = prepared.settings.text(Key::Trace) else { return Ok(()) };
    let log = cluster.trace().unwrap_or_default();
    if log.is_cut {
        log::warn_once(format!(
            "the trace {path} ends early: it holds {} messages at most",
            dg_comm::recording::EVENTS_MAX
        ));
    }
    let text = trace::chrome(&log, &prepared.spread.ask.layout);
    write::to_target(Path::new(path), text.as_bytes())
        .map_err(|e| Failure::failed(trace::unwritable(path, &e)).hint("check --trace"))
}

fn stopped(signal: Signal, there: usize, pictures: usize) -> Failure {
    let message = format!("stopped by {signal}: {there} of {pictures} pictures are there");
    Failure { exit: signal.exit(), message, hint: Some("run the same command again to continue".into()) }
}

/// Threads of the asynchronous runtime; the computation has its own.
const WORKERS: usize = 2;
