//! Benchmarks of the parts of a picture. Prints a line, or with `--json` an object; `peers/diffusers_bench.py` runs
//! diffusers on the same weights and shapes, interleaved, and prints the ratios.
//!
//! # Layout
//! - [`gpu`]: what `tests/gpu/run.sh` tries a machine with GPUs with
//! - [`make`]: a model folder of a given size with random weights
//! - [`measure`]: wall and CPU seconds of repeated runs
//! - [`parallel`]: layouts of several ranks against one rank
//! - [`parts`]: transformer, VAE, text encoders, attention
//! - [`whole`]: the program, from exec to the picture
#![forbid(unsafe_code)]

mod gpu;
mod make;
mod measure;
mod parallel;
mod parts;
mod whole;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dg_kernels::Precision;
use make::{Preset, Shape};
use std::path::PathBuf;
use std::process::ExitCode;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Times the parts of a FLUX picture on this machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print a JSON object instead of a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Timed(Timed),
    /// Tries a machine with NVIDIA GPUs; `tests/gpu/run.sh` runs all parts
    Gpu(gpu::Gpu),
}

/// What is timed.
#[derive(Subcommand)]
enum Timed {
    /// Write a folder with random f32 weights: a transformer of the preset's size, FLUX's own VAE, encoders of
    /// 12 (CLIP) and 24 (T5, d = 512) layers, and the demo model's tokenizers
    Make {
        /// Where to
        folder: PathBuf,
        #[arg(long, value_enum, default_value_t = Preset::Medium)]
        preset: Preset,
    },
    /// Write a folder with random bf16 weights of the published sizes, sharded as published: 34 GB
    MakeModel {
        #[arg(long, value_enum)]
        shape: Shape,
        /// Where to
        #[arg(long)]
        out: PathBuf,
    },
    /// The most that the multiply-adds of products can do
    Peak {
        #[command(flatten)]
        run: Run,
    },
    /// One forward pass of the transformer
    Dit {
        #[command(flatten)]
        run: Run,
        #[arg(long, default_value_t = 1024)]
        image_tokens: usize,
        #[arg(long, default_value_t = 512)]
        text_tokens: usize,
    },
    /// Decoding one picture
    Vae {
        #[command(flatten)]
        run: Run,
        /// Width and height in pixels
        #[arg(long, default_value_t = 512)]
        side: u32,
        /// In bands of rows, as where memory is short
        #[arg(long)]
        bands: bool,
    },
    /// Encoding one prompt by CLIP and T5
    Text {
        #[command(flatten)]
        run: Run,
        #[arg(long, default_value_t = 512)]
        tokens: usize,
    },
    /// Attention alone
    Attention {
        #[command(flatten)]
        run: Run,
        #[arg(long, default_value_t = 24)]
        heads: usize,
        #[arg(long, default_value_t = 128)]
        head_dim: usize,
        #[arg(long, default_value_t = 4608)]
        tokens: usize,
    },
    /// All steps of denoising on two ranks (four for PipeFusion) of one thread each, against one rank of two threads:
    /// interleaved, the same work
    Parallel {
        #[command(flatten)]
        run: Run,
        /// Width and height in pixels
        #[arg(long, default_value_t = 512)]
        side: u32,
        #[arg(long, default_value_t = 512)]
        text_tokens: u32,
    },
    /// The whole program, cold: `diffgentor t2i` with the arguments after `--`
    E2e {
        /// The `diffgentor` program
        #[arg(long)]
        program: PathBuf,
        #[command(flatten)]
        run: Run,
        /// Arguments of `t2i`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args, Clone)]
struct Run {
    /// Size of the random model; made below `target` on first use
    #[arg(long, value_enum, default_value_t = Preset::Medium)]
    preset: Preset,
    /// Any model folder, in place of a preset
    #[arg(long)]
    model: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Rounding, as the program's `--dtype`
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// Runs that are timed
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Runs before those
    #[arg(long, default_value_t = 1)]
    warm_up: usize,
}

/// What weights and activations are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    Bfloat16,
    Float32,
}

impl Dtype {
    /// As the program calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        }
    }
}

impl Run {
    fn precision(&self) -> Precision {
        match self.dtype {
            Dtype::Bfloat16 => Precision::Bf16,
            Dtype::Float32 => Precision::F32,
        }
    }

    fn folder(&self) -> Result<PathBuf, Failure> {
        self.model.clone().map_or_else(|| make::folder(self.preset), Ok)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // as the program does
    dg_map::keep_large_blocks();
    let timed = match cli.command {
        Command::Gpu(gpu) => return gpu::run(gpu, cli.json),
        Command::Timed(timed) => timed,
    };
    match run(timed) {
        Ok(report) => {
            println!("{}", if cli.json { report.to_string() } else { measure::line(&report) });
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(timed: Timed) -> Result<serde_json::Value, Failure> {
    match timed {
        Timed::Make { folder, preset } => make::preset(&folder, preset),
        Timed::MakeModel { shape, out } => make::full(&out, shape),
        Timed::Peak { run } => measure::peak_alone(&run),
        Timed::Dit { run, image_tokens, text_tokens } => parts::dit(&run, image_tokens, text_tokens),
        Timed::Vae { run, side, bands } => parts::vae(&run, side, bands),
        Timed::Text { run, tokens } => parts::text(&run, tokens),
        Timed::Attention { run, heads, head_dim, tokens } => parts::attention(&run, heads, head_dim, tokens),
        Timed::Parallel { run, side, text_tokens } => parallel::layouts(&run, side, text_tokens),
        Timed::E2e { program, run, arguments } => whole::e2e(&program, &run, &arguments),
    }
}
