//! `dg-cluster`: files that describe a cluster of nodes, checked and planned, and its certificates. Starting one is not
//! there yet.
//!
//! # Layout
//! - `args`, `usage`: the command line
//! - `load`, `model`: files and names → typed values
//! - `placed`: which rank is on which node, and how they are joined; pure
//! - `validate`, `plan`, `certs`, `token`, `doctor`: the commands
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
mod load;
mod model;
mod place;
mod placed;
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
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { markdown } => docs::man(markdown),
    }
}
