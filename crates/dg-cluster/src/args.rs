//! The command line. Flags that are settings come from the table in `dg-config`.

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use dg_config::table::RANKS;
use dg_config::{Key, Kind, SETTINGS, Setting, Value};
use dg_plan::Device;
use std::path::PathBuf;

/// Run clusters of nodes for FLUX text-to-image.
#[derive(Debug, Parser)]
#[command(name = "dg-cluster", version, about, long_about = None)]
#[command(after_help = END, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a file, and show the nodes, ranks and time limits that it describes.
    Validate {
        /// The file; docs/cluster.md describes it.
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Show which ranks are on which node and what they would send one another; nothing is started.
    #[command(max_term_width = 100, args_override_self = true)]
    Plan(Box<PlanArgs>),
    /// Start a cluster: its head, and the agents of nodes that it launches itself.
    Up(crate::live::UpArgs),
    /// End a cluster: its head, agents and ranks.
    Down {
        /// Which cluster.
        #[command(flatten)]
        which: crate::live::Which,
    },
    /// Show the nodes and ranks of a cluster.
    Status(crate::live::StatusArgs),
    /// Show the jobs of a cluster, and what happened to them.
    Jobs {
        /// Which cluster.
        #[command(flatten)]
        which: crate::live::Which,
        /// Tell of nodes and ranks too.
        #[arg(long)]
        events: bool,
        /// Form of the list.
        #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
        output: Form,
    },
    /// Show what ranks wrote.
    Logs(crate::live::LogArgs),
    /// Give a node no new work.
    Drain {
        /// Which cluster.
        #[command(flatten)]
        which: crate::live::Which,
        /// The node.
        #[arg(value_name = "NODE")]
        node: String,
        /// Give it work again.
        #[arg(long)]
        undo: bool,
    },
    /// Cancel a job.
    Cancel {
        /// Which cluster.
        #[command(flatten)]
        which: crate::live::Which,
        /// As `dg-cluster jobs` shows it.
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Get the certificate of this node by a token.
    Join(crate::live::JoinArgs),
    /// Run the agent of a node.
    Agent(crate::live::AgentArgs),
    /// A rank, as agents start it.
    #[command(hide = true)]
    Rank,
    /// Make, show, renew and check the certificates of a cluster.
    Certs {
        /// What to do.
        #[command(subcommand)]
        action: crate::certs::Action,
    },
    /// Make and list the tokens by which nodes of other hosts join.
    Token {
        /// What to do.
        #[command(subcommand)]
        action: crate::token::Action,
    },
    /// Check what this machine has, and what a cluster needs of it.
    Doctor(crate::doctor::Arguments),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man {
        /// Print it as markdown; docs/cluster-cli.md is this.
        #[arg(long)]
        markdown: bool,
    },
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The file; docs/cluster.md describes it.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Flags that are settings.
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// Pictures of the run. Default: num_images_per_prompt.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "The picture")]
    pub(crate) images: Option<u32>,
    /// What every rank computes on, whatever the file says.
    #[arg(long = "rank_device", value_name = "NAME", value_parser = rank_device(), help_heading = RANKS)]
    pub(crate) rank_device: Option<Device>,
    /// Form of the plan.
    #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = Form::Text, help_heading = "Output")]
    pub(crate) output: Form,
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For reading.
    Text,
    /// One JSON object.
    Json,
}

fn rank_device() -> impl TypedValueParser<Value = Device> {
    let words = PossibleValuesParser::new(dg_plan::machine::DEVICES.map(|device| device.name));
    words.map(|name| dg_plan::machine::device(&name).expect("the words are their names"))
}

/// The settings that were given as flags: the model, the size of the work, and the degrees.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(pub(crate) Vec<(Key, Value)>);

impl Flags {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().filter(|s| s.heading == RANKS || WORK.contains(&s.key))
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |s: &&Setting| matches.value_source(s.name) == Some(ValueSource::CommandLine);
        let value = |s: &Setting| Some((s.key, matches.get_one::<Value>(s.name)?.clone()));
        Ok(Self(Self::settings().filter(given).filter_map(value).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        Self::settings().fold(command, |command, s| command.arg(flag(s)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn flag(s: &'static Setting) -> Arg {
    let arg = Arg::new(s.name).long(s.name).help(s.help).help_heading(s.heading).value_name(s.unit);
    // `name` is what TOML calls the model, not a flag
    let arg = arg.aliases(s.aliases.iter().copied().filter(|_| s.heading == RANKS));
    let arg = match s.kind {
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Text(_) => arg.allow_hyphen_values(s.key == Key::NegativePrompt),
        _ => arg.allow_negative_numbers(true),
    };
    arg.value_parser(ValueParser::new(move |text: &str| s.parse(text).map_err(|e| e.expected)))
}

/// What tells how much there is to compute.
const WORK: [Key; 10] = [
    Key::NegativePrompt,
    Key::Height,
    Key::Width,
    Key::NumInferenceSteps,
    Key::TrueCfgScale,
    Key::MaxSequenceLength,
    Key::NumImagesPerPrompt,
    Key::BatchSize,
    Key::ModelName,
    Key::Dtype,
];

/// Examples and exit codes, for `--help` and the manual.
pub(crate) const END: &str = "\
Examples:
  dg-cluster validate configs/laptop-two-nodes.toml
  dg-cluster up configs/laptop-two-nodes.toml -d --wait
  dg-cluster status
  dg-cluster jobs --events
  dg-cluster logs left -f
  dg-cluster down
  dg-cluster plan configs/two-hosts.toml --model_name FLUX.1-schnell -o json
  dg-cluster doctor --cluster configs/two-hosts.toml
  dg-cluster certs init --cluster configs/two-hosts.toml
  dg-cluster token create --cluster configs/two-hosts.toml --node gpu-2

Flags may be written with hyphens too (--batch-size).

Exit codes:
  0  the file is right, the plan can run, it is done
  1  standard output cannot be written
  2  wrong command line
  3  configuration, certificate or model is missing or broken
  4  cannot run as planned: degrees, device, memory, what doctor found; up already
  5  no cluster is up, or its head, an agent or a rank does not answer in time";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
        fn walk(command: &clap::Command) {
            for arg in command.get_arguments() {
                assert!(!arg.get_long().unwrap_or("").contains('-'), "{:?}", arg.get_long());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn the_file_and_the_planner_know_the_same_devices_and_links() {
        let links: Vec<&str> = dg_plan::links::KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(links, dg_config::fields::LINKS);
        let gpus = dg_plan::machine::DEVICES.iter().map(|device| device.name).filter(|name| *name != "cpu");
        assert_eq!(gpus.collect::<Vec<_>>(), dg_config::fields::GPU_MODELS);
    }
}
