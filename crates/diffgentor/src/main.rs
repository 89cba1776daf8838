//! `diffgentor`: FLUX text-to-image on the command line.
//!
//! # Layout
//! - `args`, `normalise`, `original`, `usage`: the command line
//! - `setup`, `config_show`: settings and where they come from
//! - `models`, `hub`, `known`: names of models → opened models
//! - `prompts`, `recorded`, `names`, `plan`: prompts → requests, file names and batches; no IO but reading
//! - `layout`: requests → how they are spread over ranks
//! - `engine`: the one door to the runtime
//! - `prepare`, `run`, `batches`, `flight`, `output`, `progress`, `report`, `signals`: doing it
//! - `trace`: what every rank did when, for `--trace` and `DG_DEBUG`
//! - `ranks`: `diffgentor plan`, what many ranks would do
//! - `machine`, `doctor`: what this machine has
//! - `docs`: man pages, completions and `docs/cli.md` from the same definitions as `--help`
#![forbid(unsafe_code)]

mod args;
mod batches;
mod config_show;
mod docs;
mod doctor;
mod dry_run;
mod engine;
mod failure;
mod flight;
mod hub;
mod known;
mod layout;
mod log;
mod models;
mod names;
mod normalise;
mod original;
mod output;
mod plan;
mod prepare;
mod processes;
mod progress;
mod prompts;
mod ranks;
mod recorded;
mod remote;
mod report;
mod run;
mod setup;
mod signals;
mod trace;
mod usage;

use args::Command;
use dg_core::ExitCode;
use dg_runtime::machine;
use failure::Failure;

fn main() -> std::process::ExitCode {
    dg_map::keep_large_blocks();
    quiet_compute_threads();
    match dispatch() {
        Ok(code) => code.into(),
        Err(failure) => {
            log::print_failure(&failure);
            failure.exit.into()
        }
    }
}

fn dispatch() -> Result<ExitCode, Failure> {
    let argv = normalise::flags(std::env::args_os());
    log::choose_form(&argv, std::env::var("DG_T2I_LOG_FORMAT").ok().as_deref());
    original::refuse(&argv)?;
    match usage::parse(argv)?.command {
        Command::T2i(args) => run::t2i(&args),
        Command::Config(args) => config_show::show(&args),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { dir, format } => docs::man(dir.as_deref(), format),
        Command::Agent(flags) => processes::agent(&flags),
        Command::Rank => processes::rank(),
        Command::Plan(args) => ranks::plan(&args),
        Command::Models { action, json } => models::command(&action.unwrap_or_default(), json),
    }
}

/// The runtime turns a panic of a compute thread into that job's error, which is printed once: the
/// panic itself is told with `-v` only.
fn quiet_compute_threads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let here = std::thread::current();
        if here.name().is_some_and(|name| name.starts_with("dg-rank")) {
            tracing::info!("{panic}");
        } else {
            usual(panic);
        }
    }));
}
