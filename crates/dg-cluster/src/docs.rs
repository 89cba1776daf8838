//! Completions, the manual and `docs/cluster-cli.md`, all from the definitions behind `--help`.

use crate::args::{Cli, END};
use crate::failure::{Failure, print};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use dg_core::ExitCode;
use std::fmt::Write as _;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Prints the manual: all commands on one page.
pub(crate) fn man(is_markdown: bool) -> Result<(), Failure> {
    if is_markdown {
        return print(markdown().trim_end());
    }
    let mut page = Vec::new();
    let fail =
        |e: std::io::Error| Failure::new(ExitCode::Failed, e.to_string(), "this is a mistake of the program");
    for command in commands() {
        clap_mangen::Man::new(command).manual(NAME).render(&mut page).map_err(fail)?;
    }
    print(String::from_utf8_lossy(&page).trim_end())
}

/// The program and its commands, those of commands too, each called by its whole name.
fn commands() -> Vec<Command> {
    let mut root = Cli::command().term_width(WIDTH);
    root.build();
    let mut all = Vec::new();
    walk(&root, &mut all);
    all
}

fn walk(command: &Command, all: &mut Vec<Command>) {
    // a page stands alone: `dg-cluster-plan`, not `plan`
    let name = command.get_bin_name().unwrap_or(NAME).replace(' ', "-");
    all.push(command.clone().name(Box::leak(name.into_boxed_str()) as &'static str).term_width(WIDTH));
    command
        .get_subcommands()
        .filter(|c| c.get_name() != "help" && !c.is_hide_set())
        .for_each(|c| walk(c, all));
}

/// The whole of `docs/cluster-cli.md`.
fn markdown() -> String {
    let mut out = String::from(
        "# The command line of dg-cluster\n\n\
         Generated from the program's own definitions by `dg-cluster man --markdown`; a test compares the two. \
         [cluster.md](cluster.md) describes the file.\n\n\
         Standard output has what was asked for, standard error everything else. `plan` also reads `DG_XDIT_*` and \
         `DG_T2I_*`: flags win over them, and they win over the file. `validate` looks at the file alone. `DG_LOG` sets \
         what head, agents and ranks log (`warn`, `info`, `debug`).\n",
    );
    for mut command in commands().into_iter().skip(1) {
        let name = command.get_bin_name().unwrap_or(NAME).to_string();
        let help = command.render_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = write!(out, "\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    }
    let _ = write!(out, "\n## Examples and exit codes\n\n```text\n{END}\n```\n");
    out
}

const NAME: &str = "dg-cluster";
const WIDTH: usize = 110;

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::fields::{CLUSTER_SECTIONS, FIELDS};
    use std::path::Path;

    fn committed(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
        std::fs::read_to_string(&path).unwrap_or_default()
    }

    #[test]
    fn the_committed_command_line_is_current() {
        assert!(
            committed("cluster-cli.md") == markdown(),
            "docs/cluster-cli.md is not current: run `dg-cluster man --markdown > docs/cluster-cli.md`"
        );
    }

    #[test]
    fn the_committed_tables_of_keys_are_current() {
        let page = committed("cluster.md");
        let mut missing = String::new();
        for section in CLUSTER_SECTIONS {
            let mut table = String::from("| key | accepts | default | meaning |\n|---|---|---|---|\n");
            for f in FIELDS.iter().filter(|f| f.section == section) {
                let default =
                    if f.default.is_empty() { f.otherwise.into() } else { format!("`{}`", f.default) };
                let _ = writeln!(table, "| `{}` | {} | {default} | {} |", f.name, f.accepts(), f.help);
            }
            if !page.contains(&table) {
                let _ = writeln!(missing, "[{section}]\n{table}");
            }
        }
        assert!(missing.is_empty(), "docs/cluster.md should have these tables:\n{missing}");
    }
}
