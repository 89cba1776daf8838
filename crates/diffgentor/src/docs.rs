//! Completions, manual pages and `docs/cli.md`, all from the definitions behind `--help`.

use crate::args::{Cli, EXIT_CODES, ManFormat};
use crate::failure::Failure;
use crate::original;
use crate::output::printer::print;
use crate::output::write;
use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::Shell;
use dg_config::table::SECTIONS;
use dg_config::{Key, SETTINGS, Setting};
use dg_core::ExitCode;
use std::fmt::Write as _;
use std::path::Path;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    print(String::from_utf8_lossy(&script).trim_end());
    Ok(ExitCode::Ok)
}

/// Prints the manual, or writes one page per command.
pub(crate) fn man(dir: Option<&Path>, format: ManFormat) -> Result<ExitCode, Failure> {
    let pages = match format {
        ManFormat::Roff => roff_pages()?,
        ManFormat::Markdown => vec![("cli.md".to_string(), markdown())],
    };
    let Some(dir) = dir else {
        print(pages[0].1.trim_end());
        return Ok(ExitCode::Ok);
    };
    for (name, text) in pages {
        let path = dir.join(name);
        std::fs::create_dir_all(dir).and_then(|()| write::atomically(&path, text.as_bytes())).map_err(
            |e| Failure::failed(format!("cannot write {}: {e}", path.display())).hint("check --dir"),
        )?;
        print(&path.display().to_string());
    }
    Ok(ExitCode::Ok)
}

/// The page of the program, then one for every command.
fn roff_pages() -> Result<Vec<(String, String)>, Failure> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    collect_pages(&root, &mut pages).map_err(|e| Failure::failed(e.to_string()))?;
    Ok(pages)
}

fn collect_pages(command: &Command, pages: &mut Vec<(String, String)>) -> std::io::Result<()> {
    // a page stands alone: `diffgentor-t2i`, not `t2i`
    let name = command.get_bin_name().unwrap_or(NAME).replace(' ', "-");
    let renamed = command.clone().name(Box::leak(name.clone().into_boxed_str()) as &'static str);
    let mut text = Vec::new();
    clap_mangen::Man::new(renamed).manual("diffgentor").render(&mut text)?;
    pages.push((format!("{name}.1"), String::from_utf8_lossy(&text).into_owned()));
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        collect_pages(sub, pages)?;
    }
    Ok(())
}

/// The whole of `docs/cli.md`.
pub(crate) fn markdown() -> String {
    let mut root = Cli::command();
    root.build();
    let mut out = format!(
        "# The command line\n\n\
         Generated from the program's own definitions by `diffgentor man --format markdown`; a test \
         compares the two.\n\n\
         Flags are written with underscores; hyphens are accepted too (`--batch-size`). Standard output \
         has data only: paths, or JSON lines with `--json`. Everything else goes to standard error.\n\n\
         {}\n",
        code(EXIT_CODES)
    );
    for command in root.get_subcommands().filter(|c| c.get_name() != "help") {
        section(command, &mut out);
    }
    out += &settings();
    out += MACHINE_READABLE;
    out += &others();
    out
}

fn section(command: &Command, out: &mut String) {
    let name = command.get_bin_name().unwrap_or(NAME);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, "\n## `{name}`\n\n{about}.\n");
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(|a| a.get_id() != "help" && !a.is_hide_set()).collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for heading in arguments.iter().map(|a| a.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        let _ = heading.map(|h| write!(out, "\n**{h}**\n"));
        out.push('\n');
        for arg in arguments.iter().filter(|a| a.get_help_heading() == heading) {
            let _ = writeln!(out, "- `{}`: {}", usage(arg), help(arg));
        }
    }
    if name.ends_with("t2i") || name.ends_with("plan") {
        let end = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = end.split("\n\n").next().unwrap_or("").trim_start_matches("Examples:\n");
        let _ = write!(out, "\n{}\n", code(examples));
    }
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        if sub.get_name() == "show" {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = write!(out, "\n`{name} show`: {about}.\n");
        } else {
            section(sub, out);
        }
    }
}

fn usage(arg: &Arg) -> String {
    let value = arg.get_value_names().and_then(|v| v.first()).map(ToString::to_string);
    let value = value.unwrap_or_else(|| arg.get_id().to_string().to_uppercase());
    let flag = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => return if arg.is_required_set() { value } else { format!("[{value}]") },
    };
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::Count => flag,
        _ if arg.is_require_equals_set() => format!("{flag}[={value}]"),
        _ => format!("{flag} {value}"),
    }
}

fn help(arg: &Arg) -> String {
    // clap drops the full stop of a doc comment
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if !text.ends_with(['.', ']']) {
        text.push('.');
    }
    let takes_words = !matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::Count);
    let words: Vec<String> =
        arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
    if takes_words && !words.is_empty() {
        let _ = write!(text, " One of {}.", words.join(", "));
    }
    text.replace('<', "&lt;")
}

fn settings() -> String {
    let mut out = String::from(
        "\n## Settings\n\nStrongest first: flags, the picture of `--from_image`, environment, the TOML file of \
         `--config` or `DG_CONFIG`, the model's `generation_config.json`, built in. `diffgentor config show` \
         prints every value with its origin. A bad value ends the program with 3 and names the file and line, or \
         the variable. Switches are true/1/yes/on or false/0/no/off.\n\n\
         In TOML, `[model] name` is the same as `model_name`, and `[model] path` is a folder relative to the \
         file. `[cluster]`, `[[node]]`, `[failure]` and `[security]` (docs/cluster.md) are checked, and have no effect here. `DG_LOG` (or `RUST_LOG`) filters messages: a level, or `target=level,…`, on top of warnings; `-v` and \
         `--quiet` win over both, and `RUST_LOG` without a target silences no warning of this program. \
         `NO_COLOR` is respected. `DG_KERNELS` (`portable`, `avx2`, `avx512`, `avx512bf16`) holds the CPU kernels to \
         a path; by default the fastest one of the machine is taken.\n\n\
         An unknown `DG_T2I_*` variable is a warning. An unknown `DG_XDIT_*` variable that asks for something is \
         an error, because the run would not be laid out as asked.\n",
    );
    for section in SECTIONS.into_iter().chain([""]) {
        let title =
            if section.is_empty() { "Flags and environment only".into() } else { format!("`[{section}]`") };
        let _ =
            write!(out, "\n### {title}\n\n| key | environment | accepts | default |\n|---|---|---|---|\n");
        for s in SETTINGS.iter().filter(|s| s.section == section) {
            out += &row(s);
        }
    }
    out
}

fn row(s: &Setting) -> String {
    let default = match (s.key, s.default) {
        (Key::Threads, _) => "physical cores / ranks".into(),
        (Key::NumGpus, _) => "product of the degrees".into(),
        (Key::NumPipelinePatch, _) => "number of stages".into(),
        (_, "") => String::new(),
        (_, default) => format!("`{default}`"),
    };
    let others = s.aliases.iter().chain([&s.name]).filter(|n| **n != s.toml_name());
    let names: Vec<String> = [s.toml_name()].iter().chain(others).map(|n| format!("`{n}`")).collect();
    format!("| {} | `{}` | {} | {default} |\n", names.join(", "), s.env[0], s.accepts())
}

fn others() -> String {
    let mut out = String::from(
        "\n## Pictures that are there already\n\n\
         A run skips a file that is a valid picture whose recorded request equals the one asked for; without \
         `--seed`, any seed will do. With `--no_metadata` nothing is recorded and the right size is enough. A \
         file appears under its name only when it is complete. `--from_image` looks for the recorded model by \
         name, and by hash among the folders that were used before; those are remembered in \
         `$XDG_CACHE_HOME/diffgentor/models` (`~/.cache`).\n\n\
         ## Flags of the original that mean nothing here\n\nThey end the program with 2 and these words:\n\n",
    );
    for (flag, instead) in original::FLAGS {
        let _ = writeln!(out, "- `--{flag}`: {instead}");
    }
    out
}

fn code(text: &str) -> String {
    format!("```text\n{}\n```", text.trim_end())
}

const NAME: &str = "diffgentor";
/// What `--json` and `--report` write.
const MACHINE_READABLE: &str = include_str!("machine_readable.md");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let current = markdown();
        assert!(
            committed == current,
            "docs/cli.md is not current: run `cargo run -p diffgentor -- man --format markdown --dir docs`"
        );
    }

    #[test]
    fn every_field_of_the_report_is_described() {
        use dg_core::report::{ImageReport, Layout, RankReport, Seconds, Sent};
        let image = ImageReport {
            path: String::new(),
            seed: 0,
            pixels_blake3: String::new(),
            latents_blake3: String::new(),
        };
        let objects = [
            serde_json::to_value(Layout::SERIAL),
            serde_json::to_value(Seconds::default()),
            serde_json::to_value(RankReport::default()),
            serde_json::to_value(Sent::default()),
            serde_json::to_value(image),
        ];
        for object in objects {
            for (field, _) in object.unwrap().as_object().unwrap() {
                assert!(MACHINE_READABLE.contains(&format!("`{field}`")), "{field}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page_and_every_flag_is_on_it() {
        let pages = roff_pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in
            ["diffgentor.1", "diffgentor-t2i.1", "diffgentor-config-show.1", "diffgentor-models-verify.1"]
        {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        let markdown = markdown();
        for s in SETTINGS.iter().filter(|s| s.flag) {
            assert!(markdown.contains(&format!("--{}", s.name)), "{}", s.name);
        }
    }
}
