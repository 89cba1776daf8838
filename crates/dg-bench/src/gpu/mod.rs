//! The parts of `tests/gpu/run.sh`: what a machine with GPUs is tried with. Each is a process of its own, so that one that
//! fails, or takes its GPU along, does not hide the next.
//!
//! # Layout
//! - [`part`]: what a part has found, for programs and for people
//! - [`doctor`]: devices and libraries
//! - [`kernels`]: every operation against its twin on the CPU
//! - [`golden`]: pictures of the tiny models against those of diffusers
//! - [`conformance`]: `dg-comm`'s suite over NCCL, with as many GPUs as there are
//! - [`denoise`]: FLUX.1-dev's own shape with random weights made on the device
//! - [`ranks`]: two and four ranks that share a device, over the host's plane
//! - [`summary`]: the results of all parts in one

mod conformance;
mod denoise;
mod doctor;
mod golden;
mod kernels;
mod part;
mod ranks;
mod summary;

use crate::Failure;
use burn::tensor::Device;
use clap::{Args, Subcommand, ValueEnum};
use dg_flux::DeviceKind;
use part::Part;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args, Clone)]
pub(crate) struct Gpu {
    #[command(subcommand)]
    what: What,
    /// Where it is tried
    #[arg(long, value_enum, default_value_t = Kind::Cuda, global = true)]
    device: Kind,
    /// A file that has all rows so far, for when the part is cut off
    #[arg(long, global = true)]
    rows: Option<PathBuf>,
}

/// What is computed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An NVIDIA GPU
    Cuda,
    /// The CPU: a dry run of everything, with small shapes
    Cpu,
}

#[derive(Clone, Subcommand)]
enum What {
    /// Devices and libraries
    Doctor,
    /// Every operation against its twin on the CPU
    Kernels,
    /// Pictures of the tiny models against those of diffusers
    Golden {
        /// Folder with `tiny-dev` and `golden`, as in tests/data
        #[arg(long)]
        data: PathBuf,
    },
    /// The conformance suite of communicators, with as many GPUs as there are
    Conformance {
        /// Random programs
        #[arg(long, default_value_t = 50)]
        schedules: u64,
    },
    /// Denoising at FLUX.1-dev's shape (small on a CPU), random weights
    Denoise {
        #[command(flatten)]
        shape: denoise::Asked,
    },
    /// Two and four ranks that share the device
    Ranks {
        #[command(flatten)]
        shape: denoise::Asked,
    },
    /// The results `*.json` of a folder as one object, and in words
    Summary {
        /// The folder
        folder: PathBuf,
    },
}

impl Kind {
    /// The device, or what is missing.
    fn open(self) -> Result<Device, Failure> {
        let kind = match self {
            Self::Cuda => DeviceKind::Cuda,
            Self::Cpu => DeviceKind::Cpu,
        };
        dg_flux::device(kind).map_err(Into::into)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }
}

impl What {
    fn name(&self) -> &'static str {
        match self {
            Self::Doctor => "doctor",
            Self::Kernels => "kernels",
            Self::Golden { .. } => "golden",
            Self::Conformance { .. } => "conformance",
            Self::Denoise { .. } => "denoise",
            Self::Ranks { .. } => "ranks",
            Self::Summary { .. } => "summary",
        }
    }
}

/// Runs a part and prints what it has found; fails if something was not as it should be.
pub(crate) fn run(gpu: Gpu, json: bool) -> ExitCode {
    let device = gpu.device;
    let mut part = Part::new(gpu.what.name(), device, gpu.rows);
    let ended: Result<(), Failure> = match gpu.what {
        What::Doctor => {
            doctor::look(device, &mut part);
            Ok(())
        }
        What::Kernels => kernels::run(device, &mut part),
        What::Golden { data } => golden::run(device, &data, &mut part),
        What::Conformance { schedules } => conformance::run(device, schedules, &mut part),
        What::Denoise { shape } => denoise::run(device, &shape, &mut part),
        What::Ranks { shape } => ranks::run(device, &shape, &mut part),
        What::Summary { folder } => return summary::run(&folder, json),
    };
    if let Err(error) = ended {
        part.stop(&error.to_string());
    }
    println!("{}", if json { part.json().to_string() } else { part.text() });
    if part.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
