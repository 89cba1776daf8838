//! The command line. Flags that are settings come from the table in `dg-config`.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use dg_config::table::RANKS;
use dg_config::{Key, Kind, SETTINGS, Setting, Value};
use dg_plan::Device;
use dg_runtime::PRIORITY_MAX;
use dg_runtime::fleet::client::CLIENT;
use std::path::PathBuf;
use std::sync::LazyLock;

/// FLUX text-to-image.
#[derive(Debug, Parser)]
#[command(name = "diffgentor", version, long_version = BUILD_FACTS.as_str(), about, long_about = None)]
#[command(after_help = EXIT_CODES, max_term_width = 100, propagate_version = false)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make pictures from text.
    #[command(name = "t2i", after_help = T2I_END, max_term_width = 100, args_override_self = true)]
    T2i(Box<T2iArgs>),
    /// Show what many ranks would own, send and need; nothing is run, and no weights are read.
    #[command(after_help = PLAN_END, max_term_width = 100, args_override_self = true)]
    Plan(Box<PlanArgs>),
    /// Show settings and where they come from.
    Config(ConfigArgs),
    /// Check this machine.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man {
        /// Write one page per command into this folder.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Form of the page.
        #[arg(long, value_enum, default_value_t = ManFormat::Roff)]
        format: ManFormat,
    },
    /// The agent of ranks that are processes; started by `t2i`.
    #[command(hide = true)]
    Agent(crate::processes::AgentFlags),
    /// A rank that is a process; started by its agent.
    #[command(hide = true)]
    Rank,
    /// List the models on this machine, or check one.
    Models {
        /// What to do.
        #[command(subcommand)]
        action: Option<ModelsAction>,
        /// Print JSON.
        #[arg(long, global = true)]
        json: bool,
    },
}

/// Form of the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ManFormat {
    /// For man(1).
    Roff,
    /// For reading on the web; docs/cli.md is this.
    Markdown,
}

/// What to do with models.
#[derive(Clone, Debug, Default, Subcommand)]
pub(crate) enum ModelsAction {
    /// List the built-in model, the hub's cache and the folders used before.
    #[default]
    List,
    /// Read every byte of a model and print its checksum.
    Verify {
        /// As for `t2i --model_name`.
        #[arg(default_value = "demo")]
        model: String,
    },
}

/// Arguments of `t2i`.
#[derive(Debug, Args)]
pub(crate) struct T2iArgs {
    /// Flags that are settings.
    #[command(flatten)]
    pub(crate) flags: SettingFlags,
    /// The cluster that makes the pictures.
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// What the settings are read from, and how much is told.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Which cluster makes the pictures.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Have the pictures made by a cluster that is up: its file, whose settings are used, or the address of its head.
    #[arg(long, value_name = "FILE|HOST:PORT", env = "DG_T2I_CLUSTER", hide_env = true, help_heading = CLUSTER)]
    pub(crate) cluster: Option<String>,
    /// Folder with the certificate to ask the cluster with. Default: the state folder of its file.
    #[arg(long = "state_dir", value_name = "DIR", value_hint = ValueHint::DirPath, requires = "cluster", help_heading = CLUSTER)]
    pub(crate) state_dir: Option<PathBuf>,
    /// What ranks are.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Launch::Threads, conflicts_with = "cluster", help_heading = CLUSTER)]
    pub(crate) launch: Launch,
    /// Name of that certificate.
    #[arg(long, value_name = "NAME", default_value = CLIENT, requires = "cluster", help_heading = CLUSTER)]
    pub(crate) client: String,
    /// Jobs with a higher priority begin before those that wait with a lower one, from 0 to 9.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=i64::from(PRIORITY_MAX)), env = "DG_T2I_PRIORITY", hide_env = true, requires = "cluster", help_heading = CLUSTER)]
    pub(crate) priority: u8,
}

/// What the ranks of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Launch {
    /// Threads of this process.
    Threads,
    /// Processes: one that dies is started again, and the pictures go on.
    Processes,
}

const CLUSTER: &str = "A cluster";

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Flags that are settings.
    #[command(flatten)]
    pub(crate) flags: PlanFlags,
    /// Pictures of the run. Default: num_images_per_prompt.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = PICTURE)]
    pub(crate) images: Option<u32>,
    /// How ranks are connected, from the inside out: KIND:COUNT,KIND:COUNT. The kinds are in docs/parallel.md.
    /// Default: what usually goes with the device.
    #[arg(long, value_name = "LINKS", help_heading = RANKS)]
    pub(crate) links: Option<String>,
    /// What each rank computes on.
    #[arg(long = "rank_device", value_name = "NAME", value_parser = rank_device(), default_value = "h100", help_heading = RANKS)]
    pub(crate) rank_device: Device,
    /// GiB that a rank may use. Default: the memory of the device.
    #[arg(long = "rank_memory", value_name = "GIB", value_parser = gib, help_heading = RANKS)]
    pub(crate) rank_memory: Option<u64>,
    /// Form of the plan.
    #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = PlanForm::Text, help_heading = "Output")]
    pub(crate) output: PlanForm,
    /// What the settings are read from, and how much is told.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Form of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanForm {
    /// For reading.
    Text,
    /// One JSON object.
    Json,
}

const PICTURE: &str = "The picture";

fn rank_device() -> impl TypedValueParser<Value = Device> {
    let words = PossibleValuesParser::new(dg_plan::machine::DEVICES.map(|device| device.name));
    words.map(|name| dg_plan::machine::device(&name).expect("the words are their names"))
}

fn gib(text: &str) -> Result<u64, String> {
    let gib: Option<f64> = text.parse().ok().filter(|gib| (0.001..=1e6).contains(gib));
    gib.map(|gib| (gib * f64::from(1u32 << 30)) as u64)
        .ok_or_else(|| "expected GiB from 0.001 to 1000000".into())
}

/// The flags of `plan` that were given: settings that tell the work and the degrees.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlanFlags(pub(crate) Vec<(Key, Value)>);

impl PlanFlags {
    /// The settings that `plan` has flags for.
    pub(crate) fn settings() -> impl Iterator<Item = &'static Setting> {
        let degree = |s: &&Setting| s.heading == RANKS;
        let work = |s: &&Setting| {
            matches!(s.section, "generate" | "model") && !NOT_PLANNED.contains(&s.key) || s.key == Key::Quiet
        };
        SETTINGS.iter().filter(move |s| degree(s) || work(s))
    }
}

/// What neither changes who owns what nor how long it takes.
const NOT_PLANNED: [Key; 5] =
    [Key::GuidanceScale, Key::Seed, Key::TimeDtype, Key::EnableVaeTiling, Key::EnableVaeSlicing];

impl FromArgMatches for PlanFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(Self::settings().filter_map(|s| given(matches, s)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for PlanFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        Self::settings().fold(command, |command, s| command.arg(flag(s)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn given(matches: &ArgMatches, s: &Setting) -> Option<(Key, Value)> {
    let from_user = matches.value_source(s.name) == Some(ValueSource::CommandLine);
    let value = matches.get_one::<Value>(s.name).filter(|_| from_user)?;
    Some((s.key, value.clone()))
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print every setting with its value and its origin; takes the flags of `t2i`.
    #[command(args_override_self = true)]
    Show(Box<T2iArgs>),
}

/// Arguments that are no settings.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Settings from a TOML file; also DG_CONFIG.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "The machine")]
    pub(crate) config: Option<PathBuf>,
    /// Tell more; twice for even more.
    #[arg(short = 'v', long, action = ArgAction::Count, help_heading = "Output", conflicts_with = "quiet")]
    pub(crate) verbose: u8,
}

/// The flags that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct SettingFlags(pub(crate) Vec<(Key, Value)>);

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(SETTINGS.iter().filter(|s| s.flag).filter_map(|s| given(matches, s)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        SETTINGS.iter().filter(|s| s.flag).fold(command, |command, s| command.arg(flag(s)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn flag(s: &'static Setting) -> Arg {
    let help = match s.default {
        "" | "false" => s.help.to_string(),
        default => format!("{} [default: {default}]", s.help),
    };
    let arg = Arg::new(s.name).long(s.name).help(help).help_heading(s.heading).value_name(s.unit);
    let arg = match s.unit {
        "FILE" => arg.value_hint(ValueHint::FilePath),
        "DIR" => arg.value_hint(ValueHint::DirPath),
        _ => arg,
    };
    let arg = if s.key == Key::Prompt { arg.short('p') } else { arg };
    // `name` is what TOML calls the model, not a flag
    let aliases = s.aliases.iter().copied().filter(|_| s.heading == RANKS);
    let arg = arg.aliases(aliases);
    match s.kind {
        // `--no_resume` or `--no_resume=false`, so that a flag can also undo TOML and environment
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Integer(..) | Kind::Number(..) => arg.allow_negative_numbers(true),
        Kind::Choice(_) => arg.ignore_case(true),
        // a prompt may begin with a hyphen
        Kind::Text(_) => arg.allow_hyphen_values(is_prompt(s)),
    }
    .value_parser(parser(s))
}

fn is_prompt(s: &Setting) -> bool {
    matches!(s.key, Key::Prompt | Key::NegativePrompt)
}

fn parser(s: &'static Setting) -> ValueParser {
    let parse = move |text: &str| s.parse(text).map_err(|e| e.expected);
    match s.kind {
        Kind::Choice(words) => {
            let word = |w: &'static [&'static str]| PossibleValue::new(w[0]).aliases(w[1..].iter().copied());
            PossibleValuesParser::new(words.iter().map(|w| word(w))).try_map(move |text| parse(&text)).into()
        }
        _ => ValueParser::new(parse),
    }
}

/// Whether a token is one of the flags of `t2i` rather than a text that begins with a hyphen.
pub(crate) fn is_flag(token: &str) -> bool {
    let name = token.strip_prefix("--").and_then(|t| t.split('=').next()).unwrap_or("").replace('-', "_");
    SETTINGS.iter().any(|s| s.flag && (s.name == name || s.aliases.contains(&name.as_str())))
}

/// What `--version` says below the version.
static BUILD_FACTS: LazyLock<String> = LazyLock::new(|| {
    let features = [("demo", cfg!(feature = "demo")), ("hub", cfg!(feature = "hub"))];
    let features: Vec<&str> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    format!(
        "{}\ntarget: {}-{}\nfeatures: {}\ncpu kernels: {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        if features.is_empty() { "none".into() } else { features.join(" ") },
        crate::engine::kernels(),
    )
});

/// The exit codes as a literal, so that constants can be put together from it.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0    everything that was asked for is done
  1    some prompts failed, the disk is full, or the job failed
  2    wrong command line
  3    configuration, prompts file or model is missing or broken
  4    cannot run as planned: degrees, device, memory
  5    the model hub cannot be reached
  130  stopped by SIGINT
  143  stopped by SIGTERM"
    };
}

/// Exit codes, for `--help` and the manual.
pub(crate) const EXIT_CODES: &str = exit_codes!();

/// Examples and exit codes below the flags of `t2i`.
const T2I_END: &str = concat!(
    "\
Examples:
  diffgentor t2i --prompt \"red apple\"
  diffgentor t2i --model_name FLUX.1-schnell --prompt \"a lighthouse at dawn\" --seed 7
  diffgentor t2i --prompts_file prompts.jsonl --batch_size 4 --output_dir out --json
  diffgentor t2i --from_image out/000000.png --output_dir again
  diffgentor t2i --ulysses_degree 4 --prompt \"red apple\"
  diffgentor t2i --num_gpus 4 --prompts_file configs/large_prompts.jsonl --batch_size 4

Flags may be written with hyphens too (--batch-size). Every flag has an environment variable,
DG_T2I_BATCH_SIZE for --batch_size (degrees: DG_XDIT_ULYSSES_DEGREE and so on), and most have a TOML
key; flags win, then the environment, then --config, then the model's own defaults.
`diffgentor config show` shows who won.

",
    exit_codes!()
);

/// Examples and exit codes below the flags of `plan`.
const PLAN_END: &str = concat!(
    "\
Examples:
  diffgentor plan --model_name FLUX.1-dev --num_gpus 16 --links nvlink:8,eth100:2
  diffgentor plan --model_name FLUX.1-dev --ulysses_degree 4 --pipefusion_degree 2 -o json
  diffgentor plan --model_name FLUX.1-schnell --num_gpus 4 --rank_device l20 --links pcie4

The shapes of FLUX.1-dev and FLUX.1-schnell are built in. Degrees also come from --config and from
DG_XDIT_*. `t2i --dry_run` shows the same for a run on this machine.

",
    exit_codes!()
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise;
    use clap::CommandFactory;

    fn parse(argv: &[&str]) -> Result<T2iArgs, clap::Error> {
        let argv = ["diffgentor", "t2i"].iter().chain(argv).map(Into::into);
        match Cli::try_parse_from(normalise::flags(argv))?.command {
            Command::T2i(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_accepted_in_both_spellings() {
        for s in SETTINGS.iter().filter(|s| s.flag) {
            let value = match s.kind {
                Kind::Switch => "true",
                _ if s.default.is_empty() => "7",
                _ => s.default,
            };
            for name in [s.name.to_string(), s.name.replace('_', "-")] {
                let args = parse(&[&format!("--{name}={value}")]).unwrap();
                assert_eq!(args.flags.0, [(s.key, s.parse(value).unwrap())], "{name}");
            }
        }
    }

    #[test]
    fn every_long_flag_of_every_command_has_underscores() {
        fn walk(command: &clap::Command) {
            for arg in command.get_arguments() {
                assert!(!arg.get_long().unwrap_or("").contains('-'), "{:?}", arg.get_long());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn switches_work_bare_and_with_a_value() {
        assert_eq!(parse(&["--no_resume"]).unwrap().flags.0, [(Key::NoResume, Value::Switch(true))]);
        assert_eq!(parse(&["--no-resume=off"]).unwrap().flags.0, [(Key::NoResume, Value::Switch(false))]);
    }

    #[test]
    fn a_prompt_may_begin_with_a_hyphen() {
        for text in ["-5 degrees", "--", "--no-smoking sign", "-v"] {
            let args = parse(&["--prompt", text]).unwrap();
            assert_eq!(args.flags.0, [(Key::Prompt, Value::Text(text.into()))]);
        }
        assert!(is_flag("--seed=5") && is_flag("--no-resume") && !is_flag("--no-smoking") && !is_flag("-5"));
    }

    #[test]
    fn the_last_of_equal_flags_counts() {
        let args = parse(&["--seed", "1", "--no_resume", "--seed=2", "--no_resume=false"]).unwrap();
        assert_eq!(args.flags.0, [(Key::Seed, Value::Integer(2)), (Key::NoResume, Value::Switch(false))]);
    }

    #[test]
    fn wrong_command_lines_end_with_2() {
        for argv in [
            &["--prompt", "x", "--width", "0"][..],
            &["--width", "8193"],
            &["--num_inference_steps", "0"],
            &["--guidance_scale", "NaN"],
            &["--guidance_scale", "-1"],
            &["--true_cfg_scale", "inf"],
            &["--max_sequence_length", "513"],
            &["--num_images_per_prompt", "0"],
            &["--batch_size", "65"],
            &["--threads", "0"],
            &["--seed", "-1"],
            &["--seed", "18446744073709551616"],
            &["--dtype", "float8"],
            &["-v", "--quiet"],
        ] {
            assert_eq!(parse(argv).unwrap_err().exit_code(), 2, "{argv:?}");
        }
        let e = parse(&["--heigth", "64"]).unwrap_err().to_string();
        assert!(e.contains("a similar argument exists: '--height'"), "{e}");
    }
}
