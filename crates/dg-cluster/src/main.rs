//! `dg-cluster`: files that describe a cluster of nodes, checked and planned, its certificates, and the cluster
//! itself: its head, its agents and ranks, and what is asked of them.
//!
//! # Layout
//! - `args`, `usage`: the command line
//! - `load`, `model`: files and names → typed values
//! - `validate`, `plan`, `certs`, `token`, `doctor`: the commands
//! - `live`: commands of a cluster that is up
//! - `place`: which state folder a command is about
//! - `table`, `date`: columns and dates for reading
//! - `docs`: man pages, completions and `docs/cluster-cli.md` from the same definitions as `--help`
//! - `failure`: errors as the user sees them, and standard output
#![forbid(unsafe_code)]

mod args;
mod certs;
mod date;
mod docs;
mod doctor;
mod failure;
mod live;
mod load;
mod model;
mod place;
mod plan;
mod table;
mod token;
mod usage;
mod validate;

use args::Command;
use dg_core::ExitCode;
use failure::Failure;

fn main() -> std::process::ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::Ok.into(),
        Err(failure) => {
            failure.print();
            failure.exit.into()
        }
    }
}

fn dispatch() -> Result<(), Failure> {
    match usage::parse(std::env::args_os())?.command {
        Command::Validate { file } => validate::validate(&file),
        Command::Plan(args) => plan::plan(&args),
        Command::Certs { action } => certs::run(&action),
        Command::Token { action } => token::run(&action),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Up(args) => live::up(&args),
        Command::Down { which } => live::down(&which),
        Command::Status(args) => live::status(&args),
        Command::Jobs { which, events, output } => live::jobs(&which, events, output),
        Command::Logs(args) => live::logs(&args),
        Command::Drain { which, node, undo } => live::drain(&which, &node, undo),
        Command::Cancel { which, job } => live::cancel(&which, &job),
        Command::Join(args) => live::join(&args),
        Command::Agent(args) => live::agent(&args),
        Command::Rank => live::rank(),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { markdown } => docs::man(markdown),
    }
}
