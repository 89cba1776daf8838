//! A job as it travels: what is wanted, what a rank did, the pictures.

use crate::{DeviceKind, EngineOptions, JobError, Parallel};
use bytes::Bytes;
use dg_core::report::RankReport;
use dg_core::{DType, GenerateRequest, GenerationDefaults, ImageSize, ModelId, ModelShape, Seed, TimeDtype};
use dg_flux::parallel::{LatentsPart, Rows};
use dg_flux::{ModelRepo, Picture};
use dg_plan::{Ask, Layout, Plan, Refusal, Work};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// What a client wants: one batch, and how it is to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobBody {
    /// Pictures.
    pub batch: Vec<GenerateRequest>,
    /// The model by its name; absent, that of the cluster's file.
    pub model: Option<String>,
    /// The model must have this hash.
    pub model_hash: Option<String>,
    /// Degrees of one replica, patches, warm-up, pipeline.
    pub ask: Ask,
    /// Pictures of one request.
    pub request_images: usize,
    /// Format of the arithmetic.
    pub dtype: DType,
    /// Format of time and guidance in a bfloat16 run.
    pub time_dtype: TimeDtype,
    /// Multiply float32 matrices as TF32 on GPUs.
    #[serde(default)]
    pub tf32: bool,
    /// Decode in tiles.
    pub vae_tiling: Option<bool>,
    /// Which ranks make it; absent, those on GPUs if there are any.
    #[serde(default)]
    pub ranks_on: Option<DeviceKind>,
    /// Larger is sooner; what is above [`PRIORITY_MAX`](crate::PRIORITY_MAX) counts as that.
    pub priority: u8,
}

/// What is known of a model without its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Name and hash.
    pub id: ModelId,
    /// Sizes.
    pub shape: ModelShape,
    /// Its own defaults.
    pub defaults: GenerationDefaults,
}

impl ModelCard {
    /// Of an opened model.
    pub fn of(repo: &ModelRepo) -> Self {
        Self { id: repo.id().clone(), shape: repo.shape().clone(), defaults: repo.defaults().clone() }
    }
}

/// What a rank did for a job, and the pictures if it is the one that decodes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RankDone {
    /// What it held, did and sent.
    pub report: RankReport,
    /// Pictures, without their pixels.
    pub pictures: Vec<PictureCard>,
}

/// A picture without its pixels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PictureCard {
    size: ImageSize,
    seed: Seed,
    vae_tiling: bool,
    pixels_blake3: String,
    latents_blake3: String,
    bytes: usize,
}

/// A part of the latents, without its values.
#[derive(Serialize, Deserialize)]
struct PartCard {
    step: usize,
    rows: Vec<(usize, usize, usize)>,
}

impl JobBody {
    /// How a rank computes it with so many threads.
    pub fn engine(&self, threads: NonZeroUsize) -> EngineOptions {
        EngineOptions {
            dtype: self.dtype,
            time_dtype: self.time_dtype,
            tf32: self.tf32,
            threads,
            vae_tiling: self.vae_tiling,
            release_encoders: false,
            parallel: Parallel {
                ask: self.ask.clone(),
                request_images: self.request_images,
                ..Parallel::default()
            },
            priority: self.priority,
            ranks_on: self.ranks_on,
            device: DeviceKind::Cpu,
        }
    }

    /// The work of it.
    pub fn work(&self, shape: &ModelShape) -> Option<Work> {
        let first = self.batch.first()?;
        Some(Work {
            shape: shape.clone(),
            size: first.size,
            text_tokens: first.max_sequence_length.tokens(),
            steps: first.steps(),
            images: self.batch.len(),
            request_images: self.request_images,
            batch: self.batch.len(),
            true_cfg: first.active_negative().is_some(),
            dtype: self.dtype,
            weights: None,
        })
    }

    /// The plan of it in another layout than it asks for.
    ///
    /// # Errors
    /// If it cannot be made in this layout.
    pub fn plan(&self, shape: &ModelShape, layout: Layout) -> Result<Plan, Refusal> {
        let mut options = self.engine(NonZeroUsize::MIN);
        options.parallel.ask.layout = layout;
        crate::plan::job_plan(shape, &options, &self.batch)
    }

    /// Why it cannot run, if so.
    pub fn fault(&self) -> Option<JobError> {
        crate::job::fault(&self.batch)
    }
}

impl RankDone {
    /// As a body, with the pixels of `pictures`.
    pub fn pack(report: RankReport, pictures: &[Picture]) -> Bytes {
        let card = |p: &Picture| PictureCard {
            size: p.size,
            seed: p.seed,
            vae_tiling: p.vae_tiling,
            pixels_blake3: p.pixels_blake3.clone(),
            latents_blake3: p.latents_blake3.clone(),
            bytes: p.rgb.len(),
        };
        let done = Self { report, pictures: pictures.iter().map(card).collect() };
        let pixels: Vec<&[u8]> = pictures.iter().map(|p| p.rgb.as_slice()).collect();
        pack(&done, &pixels)
    }

    /// Out of a body that may come from anywhere.
    pub fn unpack(body: &Bytes) -> Option<(Self, Vec<Picture>)> {
        let (done, mut rest): (Self, Bytes) = unpack(body)?;
        let mut pictures = Vec::new();
        for card in &done.pictures {
            let pixels = card.size.width() as usize * card.size.height() as usize * 3;
            if card.bytes != pixels || rest.len() < card.bytes {
                return None;
            }
            let rgb = rest.split_to(card.bytes).to_vec();
            let PictureCard { size, seed, vae_tiling, pixels_blake3, latents_blake3, .. } = card.clone();
            pictures.push(Picture { size, rgb, seed, vae_tiling, pixels_blake3, latents_blake3 });
        }
        rest.is_empty().then_some((done, pictures))
    }
}

/// A part of the latents as a body.
pub(super) fn pack_part(part: &LatentsPart) -> Bytes {
    let rows = part.rows.iter().map(|rows| (rows.image, rows.tokens.start, rows.tokens.end)).collect();
    pack(&PartCard { step: part.step, rows }, &[&floats_to_bytes(&part.values)])
}

/// A part of the latents out of a body that may come from anywhere.
pub fn unpack_part(body: &Bytes) -> Option<LatentsPart> {
    let (card, rest): (PartCard, Bytes) = unpack(body)?;
    let rows = card.rows.iter().map(|(image, start, end)| Rows { image: *image, tokens: *start..*end });
    Some(LatentsPart { step: card.step, rows: rows.collect(), values: bytes_to_floats(&rest)? })
}

pub(super) fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(super) fn bytes_to_floats(bytes: &[u8]) -> Option<Vec<f32>> {
    let (values, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// A value as JSON behind its length, then bytes.
pub(super) fn pack(value: &impl Serialize, bytes: &[&[u8]]) -> Bytes {
    let json = serde_json::to_vec(value).unwrap_or_default();
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    let mut packed = Vec::with_capacity(4 + json.len() + bytes.iter().map(|b| b.len()).sum::<usize>());
    packed.extend_from_slice(&length.to_le_bytes());
    packed.extend_from_slice(&json);
    bytes.iter().for_each(|bytes| packed.extend_from_slice(bytes));
    packed.into()
}

pub(super) fn unpack<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Option<(T, Bytes)> {
    let length = u32::from_le_bytes(body.get(..4)?.try_into().ok()?) as usize;
    let json = body.get(4..)?.get(..length)?;
    Some((serde_json::from_slice(json).ok()?, body.slice(4 + length..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_latents_survive_the_way_and_lies_do_not() {
        let (size, _) = ImageSize::fit(16, 16).unwrap();
        let picture = |seed: u64| Picture {
            size,
            rgb: vec![seed as u8; 16 * 16 * 3],
            seed: Seed(seed),
            vae_tiling: false,
            pixels_blake3: "p".into(),
            latents_blake3: "l".into(),
        };
        let body = RankDone::pack(RankReport::default(), &[picture(1), picture(2)]);
        let (_, pictures) = RankDone::unpack(&body).unwrap();
        assert_eq!(pictures, [picture(1), picture(2)]);
        let part = LatentsPart {
            step: 3,
            rows: vec![Rows { image: 1, tokens: 2..4 }],
            values: vec![0.1, f32::MIN_POSITIVE, -0.0, 7.0],
        };
        assert_eq!(unpack_part(&pack_part(&part)), Some(part));
        for cut in 0..body.len().min(700) {
            assert!(RankDone::unpack(&body.slice(..cut)).is_none(), "cut at {cut}");
        }
        assert!(unpack_part(&Bytes::from_static(&[255; 40])).is_none());
    }
}
