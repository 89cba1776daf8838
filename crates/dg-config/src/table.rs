//! The table of all settings.

use crate::setting::{Kind, Setting};
use crate::suggest;
use Kind::{Choice, Integer, Number, Switch, Text};

/// Declares [`Key`] and [`SETTINGS`] together, so that neither can miss an entry.
macro_rules! settings {
    ($($key:ident: $section:literal $name:literal [$($alias:literal)*] [$($env:literal)*] $flag:literal
       $kind:expr, $default:literal, $unit:literal, $heading:ident, $help:literal;)*) => {
        /// Which setting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key {
            $(#[doc = $help] $key,)*
        }

        /// All settings, in the order of help and `config show`.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: Key::$key,
            section: $section,
            name: $name,
            aliases: &[$($alias),*],
            env: &[$($env),*],
            flag: $flag,
            kind: $kind,
            default: $default,
            unit: $unit,
            heading: $heading,
            help: $help,
        }),*];
    };
}

impl Key {
    /// The entry of the table.
    pub fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }

    /// The setting that a TOML section knows by this name.
    pub fn in_section(section: &str, name: &str) -> Option<Self> {
        let mut of_section = SETTINGS.iter().filter(|s| s.section == section);
        of_section.find(|s| s.name == name || s.aliases.contains(&name)).map(|s| s.key)
    }

    /// The setting that has this name or alias, in any section.
    pub fn named(name: &str) -> Option<Self> {
        SETTINGS.iter().find(|s| s.name == name || s.aliases.contains(&name)).map(|s| s.key)
    }
}

/// The sections of the TOML schema.
pub const SECTIONS: [&str; 4] = ["generate", "model", "parallel", "output"];

/// The key of a section that `name` is likely a misspelling of, aliases included.
pub(crate) fn similar(section: &str, name: &str) -> Option<&'static str> {
    let of_section = SETTINGS.iter().filter(|s| s.section == section);
    let names = of_section.flat_map(|s| [s.toml_name(), s.name].into_iter().chain(s.aliases.iter().copied()));
    let path = (section == "model").then_some("path");
    suggest::closest(name, names.chain(path))
}

/// The setting that the Python original, or diffusers, calls `name`.
pub fn original(name: &str) -> Option<Key> {
    ORIGINAL_NAMES.iter().find(|(other, _)| *other == name).map(|(_, key)| *key)
}

const ORIGINAL_NAMES: &[(&str, Key)] = &[
    ("steps", Key::NumInferenceSteps),
    ("num_steps", Key::NumInferenceSteps),
    ("guidance", Key::GuidanceScale),
    ("cfg_scale", Key::TrueCfgScale),
    ("num_images", Key::NumImagesPerPrompt),
    ("max_length", Key::MaxSequenceLength),
    ("model", Key::ModelName),
    ("model_path", Key::ModelName),
    ("torch_dtype", Key::Dtype),
    ("output_path", Key::OutputDir),
    ("output", Key::OutputDir),
    ("cfg_parallel", Key::UseCfgParallel),
    ("ulysses_parallel_degree", Key::UlyssesDegree),
    ("ring_parallel_degree", Key::RingDegree),
    ("dp_degree", Key::DataParallelDegree),
];

const PROMPT: &str = "What to draw";
const PICTURE: &str = "The picture";
const MODEL: &str = "The model";
const OUTPUT: &str = "Output";
const MACHINE: &str = "The machine";
/// Heading of the settings that say how a run is spread over ranks.
pub const RANKS: &str = "Ranks";

/// Longest prompt in characters.
pub const PROMPT_CHARS_MAX: usize = 32_000;
/// Longest path or name in characters.
pub const PATH_CHARS_MAX: usize = 4096;

const PATH: Kind = Text(PATH_CHARS_MAX);
const DEGREE: Kind = Integer(1, 65_536);

settings! {
    Prompt: "" "prompt" [] ["DG_T2I_PROMPT"] true
        Text(PROMPT_CHARS_MAX), "", "TEXT", PROMPT, "What to draw.";
    PromptsFile: "" "prompts_file" [] ["DG_T2I_PROMPTS_FILE"] true
        PATH, "", "FILE", PROMPT,
        "Prompts from a .txt (one per line), .json, .jsonl or .csv file, or `-` for standard input. Rows may set prompt, negative_prompt, height, width, seed, num_inference_steps, guidance_scale, true_cfg_scale and name.";
    FromImage: "" "from_image" [] ["DG_T2I_FROM_IMAGE"] true
        PATH, "", "FILE", PROMPT, "Make this picture again from the request recorded in it; flags given beside it change the request.";
    NegativePrompt: "generate" "negative_prompt" [] ["DG_T2I_NEGATIVE_PROMPT"] true
        Text(PROMPT_CHARS_MAX), "", "TEXT", PROMPT, "What to move away from. Counts only when true_cfg_scale is above 1; may be empty.";
    OutputNameColumn: "output" "output_name_column" [] ["DG_T2I_OUTPUT_NAME_COLUMN"] true
        Text(256), "name", "COLUMN", PROMPT, "Column of the prompts file that names the pictures.";

    Height: "generate" "height" [] ["DG_T2I_HEIGHT"] true
        Integer(16, 8192), "1024", "PIXELS", PICTURE, "Height; rounded down to a multiple of 16.";
    Width: "generate" "width" [] ["DG_T2I_WIDTH"] true
        Integer(16, 8192), "1024", "PIXELS", PICTURE, "Width; rounded down to a multiple of 16.";
    NumInferenceSteps: "generate" "num_inference_steps" [] ["DG_T2I_NUM_INFERENCE_STEPS"] true
        Integer(1, 1000), "28", "N", PICTURE, "Denoising steps. Models without guidance embedding (FLUX.1-schnell): 4.";
    GuidanceScale: "generate" "guidance_scale" [] ["DG_T2I_GUIDANCE_SCALE"] true
        Number(0.0, 100.0), "3.5", "X", PICTURE, "Distilled guidance, an input of models such as FLUX.1-dev.";
    TrueCfgScale: "generate" "true_cfg_scale" [] ["DG_T2I_TRUE_CFG_SCALE"] true
        Number(0.0, 100.0), "1", "X", PICTURE, "Classifier-free guidance: above 1, and with a negative prompt, every step takes a second pass.";
    MaxSequenceLength: "generate" "max_sequence_length" [] ["DG_T2I_MAX_SEQUENCE_LENGTH"] true
        Integer(1, 512), "512", "TOKENS", PICTURE, "Tokens of the prompt that T5 reads. Models without guidance embedding: 256.";
    NumImagesPerPrompt: "generate" "num_images_per_prompt" [] ["DG_T2I_NUM_IMAGES_PER_PROMPT"] true
        Integer(1, 10_000), "1", "N", PICTURE, "Pictures of every prompt, each with its own seed.";
    Seed: "generate" "seed" [] ["DG_T2I_SEED"] true
        Integer(0, u64::MAX), "", "N", PICTURE, "Seed of the first picture; picture i of the run gets seed + i. Drawn at random when absent.";
    BatchSize: "generate" "batch_size" [] ["DG_T2I_BATCH_SIZE"] true
        Integer(1, 64), "1", "N", PICTURE, "Pictures that are computed together. Changes the speed and the memory, not the pictures.";

    ModelName: "model" "model_name" ["name"] ["DG_T2I_MODEL_NAME"] true
        PATH, "demo", "MODEL", MODEL, "`demo` (built in), a folder in diffusers layout, a hub id such as black-forest-labs/FLUX.1-dev, or FLUX.1-dev or FLUX.1-schnell. A folder that exists wins over a hub id.";
    Revision: "model" "revision" [] ["DG_T2I_REVISION"] true
        Text(256), "", "REV", MODEL, "Branch, tag or commit of a model on the hub.";
    LocalFilesOnly: "model" "local_files_only" [] ["DG_T2I_LOCAL_FILES_ONLY"] true
        Switch, "false", "BOOL", MODEL, "Use files that are already on this machine; never ask the hub.";
    Dtype: "model" "dtype" [] ["DG_T2I_DTYPE"] true
        Choice(&[&["auto"], &["float32", "fp32", "f32"], &["bfloat16", "bf16"]]), "auto", "TYPE", MODEL,
        "Format of the arithmetic; sums are kept in float32 in either. auto: float32 on CPU, bfloat16 on CUDA.";
    TimeDtype: "model" "time_dtype" [] ["DG_T2I_TIME_DTYPE"] true
        Choice(&[&["model"], &["float32", "fp32", "f32"]]), "model", "TYPE", MODEL,
        "Format of time and guidance in a bfloat16 run. model: as diffusers has it. float32: nearer to the float32 picture.";
    EnableTf32: "model" "enable_tf32" [] ["DG_T2I_ENABLE_TF32"] true
        Switch, "false", "BOOL", MODEL, "With device cuda and dtype float32: multiply matrices as TF32 (19 bits), which is faster and changes the picture a little.";
    EnableVaeTiling: "model" "enable_vae_tiling" [] ["DG_T2I_ENABLE_VAE_TILING"] true
        Switch, "", "BOOL", MODEL, "Decode in blended tiles: less memory, a slightly different picture. Absent: only for very large pictures.";
    EnableVaeSlicing: "model" "enable_vae_slicing" [] ["DG_T2I_ENABLE_VAE_SLICING"] true
        Switch, "false", "BOOL", MODEL, "Decode the pictures of a batch one by one: less memory, the same pictures.";

    OutputDir: "output" "output_dir" [] ["DG_T2I_OUTPUT_DIR"] true
        PATH, "output", "DIR", OUTPUT, "Folder of the pictures; made if it is not there.";
    OutputFormat: "output" "output_format" [] ["DG_T2I_OUTPUT_FORMAT"] true
        Choice(&[&["png"], &["jpeg", "jpg"], &["webp"]]), "png", "FORMAT", OUTPUT, "png and webp are lossless.";
    NoMetadata: "output" "no_metadata" [] ["DG_T2I_NO_METADATA"] true
        Switch, "false", "BOOL", OUTPUT, "Do not record the request in the picture.";
    NoResume: "output" "no_resume" [] ["DG_T2I_NO_RESUME"] true
        Switch, "false", "BOOL", OUTPUT, "Make every picture again, also those that are finished, and replace files that are not this program's.";
    Report: "" "report" [] ["DG_T2I_REPORT"] true
        PATH, "", "FILE", OUTPUT, "Write a machine-readable report of the run to this file.";
    Trace: "" "trace" [] ["DG_T2I_TRACE"] true
        PATH, "", "FILE", OUTPUT, "Write what every rank did when (computing, sending, waiting) to this file, as JSON for chrome://tracing and Perfetto.";
    Json: "" "json" [] ["DG_T2I_JSON"] true
        Switch, "false", "BOOL", OUTPUT, "Print one JSON object per picture on standard output in place of its path.";
    Quiet: "" "quiet" [] ["DG_T2I_QUIET"] true
        Switch, "false", "BOOL", OUTPUT, "Only errors on standard error: no progress, no warnings.";
    LogFormat: "" "log_format" [] ["DG_T2I_LOG_FORMAT"] true
        Choice(&[&["text"], &["json"]]), "text", "FORMAT", OUTPUT, "Form of messages on standard error.";
    NoProgress: "" "no_progress" [] ["DG_NO_PROGRESS"] false
        Switch, "false", "BOOL", OUTPUT, "No progress bars and no progress lines.";
    Debug: "" "debug" [] ["DG_DEBUG"] false
        Switch, "false", "BOOL", OUTPUT, "Log at level debug: also who owns what, and what every rank did in every step.";

    Backend: "parallel" "backend" [] ["DG_T2I_BACKEND"] true
        Choice(&[&["auto"], &["xdit"], &["serial"]]), "auto", "NAME", MACHINE, "auto and xdit do what the degrees say; serial refuses more than one rank.";
    Device: "parallel" "device" [] ["DG_T2I_DEVICE"] true
        Choice(&[&["auto"], &["cpu"], &["cuda"]]), "auto", "NAME", MACHINE, "Where to compute. With --cluster: on which of its ranks; auto: on GPUs if it has any.";
    Threads: "parallel" "threads" [] ["DG_T2I_THREADS"] true
        Integer(1, 1024), "", "N", MACHINE, "Threads of each rank. Default: the physical cores that this process may use, shared out among the ranks.";
    DryRun: "" "dry_run" [] ["DG_T2I_DRY_RUN"] true
        Switch, "false", "BOOL", MACHINE, "Show what would be done, and do nothing.";
    Force: "" "force" [] ["DG_T2I_FORCE"] true
        Switch, "false", "BOOL", MACHINE, "Try even if the memory looks too small, or --from_image names another model; replace files that are not this program's.";

    NumGpus: "parallel" "num_gpus" [] ["DG_T2I_NUM_GPUS"] true
        DEGREE, "", "N", RANKS, "Ranks. With this alone, the fastest layout that keeps the picture is looked for; without it, as many as the degrees need.";
    UlyssesDegree: "parallel" "ulysses_degree" [] ["DG_XDIT_ULYSSES_DEGREE"] true
        DEGREE, "1", "N", RANKS, "Ranks among which attention heads are exchanged.";
    RingDegree: "parallel" "ring_degree" [] ["DG_XDIT_RING_DEGREE"] true
        DEGREE, "1", "N", RANKS, "Ranks around which keys and values travel.";
    PipefusionDegree: "parallel" "pipefusion_degree" ["pipefusion_parallel_degree"]
        ["DG_XDIT_PIPEFUSION_DEGREE" "DG_XDIT_PIPEFUSION_PARALLEL_DEGREE"] true
        DEGREE, "1", "N", RANKS, "Stages among which the blocks are split.";
    DataParallelDegree: "parallel" "data_parallel_degree" [] ["DG_XDIT_DATA_PARALLEL_DEGREE"] true
        DEGREE, "1", "N", RANKS, "Replicas that share the pictures of a run.";
    UseCfgParallel: "parallel" "use_cfg_parallel" [] ["DG_XDIT_USE_CFG_PARALLEL"] true
        Switch, "false", "BOOL", RANKS, "The two branches of true CFG on separate ranks.";
    NumPipelinePatch: "parallel" "num_pipeline_patch" [] ["DG_XDIT_NUM_PIPELINE_PATCH"] true
        DEGREE, "", "N", RANKS, "Patches that travel through the stages. Default: the stages.";
    WarmupSteps: "parallel" "warmup_steps" [] ["DG_XDIT_WARMUP_STEPS"] true
        Integer(0, 1000), "1", "N", RANKS, "Synchronous steps before the pipeline goes stale.";
    Pipeline: "parallel" "pipeline" [] ["DG_XDIT_PIPELINE"] true
        Choice(&[&["auto"], &["exact"], &["stale"]]), "auto", "MODE", RANKS, "How the stages are kept busy. exact: with pictures and CFG branches, the serial picture. stale: with patches of one picture against keys and values of the step before, which changes it a little. auto: exact if a prompt's pictures and branches fill the stages.";
    StageBalance: "parallel" "stage_balance" [] ["DG_XDIT_STAGE_BALANCE"] true
        Text(4096), "time", "WHAT", RANKS, "How blocks are shared out among stages. time: so that they take equal time. memory: so that the heaviest has as little as possible. A list such as 14,14,14,15: these numbers of blocks.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_consistent() {
        let mut names = BTreeSet::new();
        for (i, s) in SETTINGS.iter().enumerate() {
            assert_eq!(s.key as usize, i);
            assert!(s.section.is_empty() || SECTIONS.contains(&s.section), "{}", s.name);
            assert!(!s.env.is_empty() && !s.help.is_empty(), "{}", s.name);
            assert!(s.default.is_empty() || s.parse(s.default).is_ok(), "{} {}", s.name, s.default);
            for name in [s.name].iter().chain(s.aliases).chain(s.env) {
                assert!(names.insert(*name), "{name} twice");
            }
            if s.flag {
                // the names of the degrees are the original's
                let own = if s.heading == RANKS && s.key != Key::NumGpus { "XDIT" } else { "T2I" };
                assert_eq!(s.env[0], format!("DG_{own}_{}", s.name.to_uppercase()));
            }
        }
    }
}
