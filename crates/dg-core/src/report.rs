//! The report of a run (`--report FILE`), schema 1. The same for threads, processes and GPUs.

use crate::{DType, GenerateRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`Report`]'s schema.
pub const SCHEMA: u32 = 1;

/// What a run did, where, how long it took and what it made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The first request of the run.
    pub request: Option<GenerateRequest>,
    /// The model.
    pub model: ModelFacts,
    /// How the run was spread over ranks.
    pub layout: Layout,
    /// Where the time went.
    pub seconds: Seconds,
    /// One entry per rank.
    pub ranks: Vec<RankReport>,
    /// One entry per picture.
    pub images: Vec<ImageReport>,
    /// Notable events: warnings, failures, cancellation.
    pub events: Vec<EventReport>,
}

/// The model of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Name as asked for.
    pub id: String,
    /// Model hash, see [`crate::ModelId`].
    pub hash: String,
    /// Format of the arithmetic.
    pub dtype: DType,
}

/// Parallel degrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Data parallel degree.
    pub dp: u32,
    /// CFG branches on separate ranks.
    pub cfg: u32,
    /// PipeFusion degree.
    pub pp: u32,
    /// Ring degree.
    pub ring: u32,
    /// Ulysses degree.
    pub ulysses: u32,
    /// Patches of the pipeline.
    pub patches: u32,
    /// Synchronous steps before the pipeline goes stale.
    pub warmup: u32,
}

impl Layout {
    /// One rank.
    pub const SERIAL: Self = Self { dp: 1, cfg: 1, pp: 1, ring: 1, ulysses: 1, patches: 1, warmup: 0 };
}

/// Wall-clock seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Opening and mapping the model.
    pub load: f64,
    /// Text encoding, summed over batches.
    pub text: f64,
    /// From the start of the process to the end of the first denoising step.
    pub first_step: Option<f64>,
    /// Every denoising step, in order.
    pub steps: Vec<f64>,
    /// VAE decoding, summed.
    pub decode: f64,
    /// From the start of the process to the report.
    pub total: f64,
}

/// What one rank held, did and sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// Rank, from 0.
    pub rank: u32,
    /// Coordinates `[dp, cfg, pp, ring, ulysses]`.
    pub coords: [u32; 5],
    /// Name of the node.
    pub node: String,
    /// Process id.
    pub pid: u32,
    /// Bytes of weight files that are mapped.
    pub mapped_bytes: u64,
    /// Peak anonymous memory of the process in bytes, where the system tells it.
    pub rss_anon: u64,
    /// Peak resident memory of mapped files in bytes, where the system tells it.
    pub rss_file: u64,
    /// Bytes that the process has had read from disks, where the system tells it; a rank of a cluster, for this job.
    pub read_bytes: u64,
    /// Peak resident memory of the process in bytes, mapped weights included, where the system tells it.
    pub peak_rss: u64,
    /// Seconds of computing.
    pub compute_s: f64,
    /// Seconds of waiting for other ranks.
    pub wait_s: f64,
    /// Bytes sent, by message class.
    pub sent: BTreeMap<String, Sent>,
    /// Bytes that the plan predicts, by message class.
    pub predicted: BTreeMap<String, u64>,
}

/// What was sent in one message class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// Payload bytes.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
    /// Payload bytes by receiving rank.
    pub to: BTreeMap<u32, u64>,
}

/// One picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageReport {
    /// Where it was written.
    pub path: String,
    /// Its seed.
    pub seed: u64,
    /// blake3 of the RGB bytes as they were drawn, before encoding; rows top-down.
    pub pixels_blake3: String,
    /// blake3 of the final packed latents as little-endian f32.
    pub latents_blake3: String,
}

/// Something worth knowing that happened during the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventReport {
    /// Seconds since the start of the process.
    pub t: f64,
    /// `warning`, `failed`, `skipped`, `cancelled`.
    pub kind: String,
    /// What happened.
    pub message: String,
}
