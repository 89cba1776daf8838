//! One batch, from prompts to pictures: encode, denoise, decode.

use crate::latents;
use crate::modulation::Ahead;
use crate::parallel::{Denoiser, Encoded, RankJob};
use crate::picture::{self, Picture};
use crate::schedule::Schedule;
use crate::text::{Embedding, Prompt, TextEncoder};
use crate::tiling::Tiling;
use crate::vae::Decoder;
use crate::watch::{Cancelled, Watch};
use crate::{ModelConfig, ModelError, ModelRepo, RunError};
use burn::tensor::{Device, Tensor};
use dg_core::shape::BAND_BYTES;
use dg_core::{DType, GenerateRequest, StepEvent, TimeDtype};
use dg_kernels::{self as k, Precision};
use dg_plan::Plan;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// How a model computes.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Where.
    pub device: Device,
    /// Format of the arithmetic.
    pub dtype: DType,
    /// Format of time and guidance in a bfloat16 run.
    pub time_dtype: TimeDtype,
    /// Decode in tiles: yes, no, or above [`crate::tiling::PIXELS_MAX`] pixels.
    pub vae_tiling: Option<bool>,
    /// Give back the memory of the text encoders once the prompts of a batch are encoded, to read them again for the
    /// next.
    pub release_encoders: bool,
    /// Asked before a picture is decoded; if little is free it is decoded in bands, to the same picture. Without it
    /// nothing is asked.
    pub free_memory: Option<FreeMemory>,
    /// Asked before each batch how much memory this rank may use. Weights in mapped files that do not fit are then read
    /// from the disk in each step, ahead of their use, and dropped behind it. Without it the system decides what stays,
    /// as it must where ranks share a process and its maps.
    pub weights_memory: Option<FreeMemory>,
}

/// Tells how many bytes are free where the tensors are, if that is known.
#[derive(Clone)]
pub struct FreeMemory(Arc<dyn Fn() -> Option<u64> + Send + Sync>);

impl FreeMemory {
    /// From a question that is asked on threads of the pool that computes.
    pub fn new(ask: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// What is free now.
    pub fn ask(&self) -> Option<u64> {
        (self.0)()
    }
}

impl fmt::Debug for FreeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FreeMemory")
    }
}

/// A loaded model on one rank: all of it, or what its role needs.
pub struct Pipeline {
    config: ModelConfig,
    options: PipelineOptions,
    precision: Precision,
    text: Option<TextEncoder>,
    denoiser: Denoiser,
    decoder: Option<Decoder>,
    mapped_bytes: u64,
}

/// What of a model a rank has.
struct Role {
    /// Blocks of the transformer, double blocks numbered first.
    blocks: Range<usize>,
    encodes: bool,
    decodes: bool,
}

impl Pipeline {
    /// Takes the weights of all components out of the mapped files.
    pub fn load(repo: &ModelRepo, options: PipelineOptions) -> Result<Self, ModelError> {
        let t = &repo.shape().transformer;
        let blocks = 0..t.double_blocks + t.single_blocks;
        let (pipeline, unused) =
            Self::load_role(repo, options, Role { blocks, encodes: true, decodes: true })?;
        if let Some(first) = unused.first() {
            tracing::warn!("{} tensors of the model are not used, `{first}` for one", unused.len());
        }
        Ok(pipeline)
    }

    /// Takes only the weights that `rank` of `plan` needs, see [`Plan::role`].
    pub fn load_rank(
        repo: &ModelRepo,
        options: PipelineOptions,
        plan: &Plan,
        rank: u32,
    ) -> Result<Self, ModelError> {
        if plan.ranks() == 1 {
            return Self::load(repo, options);
        }
        let role = Role {
            blocks: plan.stages.ranges()[plan.layout.coords(rank).pp as usize].clone(),
            encodes: plan.encoder_rank(rank) == rank,
            decodes: plan.decoder_rank(rank) == rank,
        };
        Self::load_role(repo, options, role).map(|(pipeline, _)| pipeline)
    }

    /// Also says which tensors of the components that it has are not used.
    fn load_role(
        repo: &ModelRepo,
        options: PipelineOptions,
        role: Role,
    ) -> Result<(Self, Vec<String>), ModelError> {
        let precision = precision(options.dtype);
        let (shape, device) = (repo.shape(), &options.device);
        let denoiser = || -> Result<_, ModelError> {
            let weights = repo.transformer.loader(device, precision);
            let denoiser = Denoiser::load(&weights, &shape.transformer, role.blocks, options.time_dtype)?;
            Ok((denoiser, weights.used_bytes(), weights.unused(&[])))
        };
        let decoder = || -> Result<_, ModelError> {
            let weights = repo.vae.loader(device, precision);
            Ok((Decoder::load(&weights, &shape.vae)?, weights.used_bytes(), weights.unused(&["encoder."])))
        };
        let text = || role.encodes.then(|| TextEncoder::load(repo, device, precision)).transpose();
        let decoder = || role.decodes.then(decoder).transpose();
        let (text, (denoiser, decoder)) = rayon::join(text, || rayon::join(denoiser, decoder));
        let (denoiser, mut mapped_bytes, mut unused) = denoiser?;
        let mut add = |(bytes, more): (u64, Vec<String>)| {
            mapped_bytes += bytes;
            unused.extend(more);
        };
        let text = text?.map(|(text, bytes, more)| {
            add((bytes, more));
            text
        });
        let decoder = decoder?.map(|(decoder, bytes, more)| {
            add((bytes, more));
            decoder
        });
        let config = repo.config().clone();
        Ok((Self { config, precision, text, denoiser, decoder, options, mapped_bytes }, unused))
    }

    /// Bytes of the weights that it took out of the files.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// One rank's part in the pictures of one batch; the pictures, in order, on the rank that decodes. All requests
    /// must batch with the first one, and `job.plan` must be made for as many; panics otherwise.
    ///
    /// Only the rank that encodes tells of prompts, and only the one that decodes of steps and pictures.
    pub fn generate_on(
        &mut self,
        batch: &[GenerateRequest],
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<Picture>>, RunError> {
        let Some(latents) = self.latents_on(batch, job, watch)? else { return Ok(None) };
        let decoded = |(i, request): (usize, &GenerateRequest)| {
            let start = Instant::now();
            let one = latents.clone().narrow(0, i, 1);
            let picture = self.picture(one, request, watch)?;
            watch.event(StepEvent::Decoded { image: i, seconds: start.elapsed().as_secs_f64() });
            Ok(picture)
        };
        batch.iter().enumerate().map(decoded).collect::<Result<_, RunError>>().map(Some)
    }

    /// Makes the pictures of one batch on one rank, in order. All requests must batch with the first one
    /// ([`GenerateRequest::batches_with`]); panics otherwise, for an empty batch, and if this is not the whole model.
    pub fn generate(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Picture>, RunError> {
        let pictures = self.generate_on(batch, &self.alone(batch), watch)?;
        Ok(pictures.expect("the only rank decodes"))
    }

    /// The final packed latents of one batch on one rank, `[images, tokens, in_channels]`.
    pub fn latents(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Tensor<3>, RunError> {
        let latents = self.latents_on(batch, &self.alone(batch), watch)?;
        Ok(latents.expect("the only rank decodes"))
    }

    /// The job of the only rank.
    fn alone(&self, batch: &[GenerateRequest]) -> RankJob {
        RankJob::alone(&self.config.shape, batch, self.options.dtype)
    }

    fn latents_on(
        &mut self,
        batch: &[GenerateRequest],
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Tensor<3>>, RunError> {
        let first = &batch[0];
        assert!(batch.iter().all(|r| r.batches_with(first)), "a batch of unlike requests");
        self.share_out_memory(batch, job);
        let encoded = if job.is_denoised() { None } else { self.encode(batch, watch)? };
        let tokens = first.size.image_tokens();
        let schedule = Schedule::new(&self.config.schedule, first.steps(), first.sigmas.as_deref(), tokens);
        let Some(latents) = self.denoiser.run(batch, &schedule, encoded.as_ref(), job, watch)? else {
            return Ok(None);
        };
        match (0..batch.len()).find(|i| !finite(latents.clone().narrow(0, *i, 1))) {
            Some(image) => Err(RunError::NotFinite { image, steps: first.steps() }),
            None => Ok(Some(latents)),
        }
    }

    /// Says which weights stay in memory during a batch.
    fn share_out_memory(&self, batch: &[GenerateRequest], job: &RankJob) {
        let free = self.options.weights_memory.as_ref().and_then(FreeMemory::ask);
        let transformer = &self.config.shape.transformer;
        let tokens = batch[0].size.image_tokens() + batch[0].max_sequence_length.tokens();
        let rows = batch.len() * (1 + usize::from(batch[0].active_negative().is_some()));
        let activations = transformer
            .activation_bytes(batch.len(), tokens)
            .saturating_add(Ahead::bytes(transformer, rows, batch[0].steps()))
            // counted in the format of the run, where the CPU has f32
            .saturating_add(job.plan.memory(job.rank()).kv_buffers.saturating_mul(2));
        let room = free.map(|free| (free - free / RESERVE).saturating_sub(activations));
        if let Some(encoder) = &self.text {
            let all = encoder.bytes().saturating_add(self.denoiser.bytes());
            // encoders that do not fit beside the rest leave as they are used
            encoder.keep(room.map(|room| if all <= room { room } else { 0 }));
        }
        self.denoiser.keep(room);
    }

    /// On the rank that has the encoders: encodes the prompts, and the negative prompts if true CFG is on.
    fn encode(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Option<Encoded>, RunError> {
        let Some(encoder) = &mut self.text else { return Ok(None) };
        let start = Instant::now();
        let (mut positive, mut negative) = (Vec::new(), Vec::new());
        for r in batch {
            let tokens = r.max_sequence_length.tokens();
            let prompt = Prompt { clip: r.prompt.clone(), t5: r.t5_prompt().into(), tokens };
            positive.push(encoder.encode(&prompt, watch)?);
            if let Some(text) = r.active_negative() {
                let prompt = Prompt { clip: text.into(), t5: text.into(), tokens };
                negative.push(encoder.encode(&prompt, watch)?);
            }
        }
        if self.options.release_encoders {
            encoder.release();
        }
        let (images, seconds) = ((0..batch.len()).collect(), start.elapsed().as_secs_f64());
        watch.event(StepEvent::TextEncoded { images, seconds });
        let negative = (!negative.is_empty()).then(|| Embedding::stack(negative));
        Ok(Some(Encoded { positive: Embedding::stack(positive), negative }))
    }

    /// Decodes the packed latents `[1, tokens, in_channels]` of one picture. Panics on a rank that does not decode.
    pub fn picture(
        &self,
        latents: Tensor<3>,
        request: &GenerateRequest,
        watch: &dyn Watch,
    ) -> Result<Picture, Cancelled> {
        let p = self.precision;
        let latents_blake3 = picture::hash_values(&k::to_vec(latents.clone()));
        let vae = &self.config.shape.vae;
        let vae_tiling = Tiling::applies(vae, request.size, self.options.vae_tiling);
        let z = self.vae_input(latents::unpack(latents, request.size));
        let decoder = self.decoder.as_ref().expect("a rank that decodes");
        let decode = |z: Tensor<4>| match self.is_short_for(&z) {
            true => decoder.forward_in_bands(z, BAND_BYTES, &mut || watch.check()),
            false => decoder.forward(z, &mut |_, _| watch.check()),
        };
        let decoded = if vae_tiling { Tiling::new(vae).decode(z, p, decode) } else { decode(z) }?;
        let rgb = picture::to_rgb(decoded, p);
        let pixels_blake3 = blake3::hash(&rgb).to_hex().to_string();
        let (size, seed) = (request.size, request.seed);
        Ok(Picture { size, rgb, seed, vae_tiling, pixels_blake3, latents_blake3 })
    }

    /// Whether less is free than decoding `z` at once takes, and a quarter more. Group norms are computed in f32, so
    /// that is what counts in a bfloat16 run, too.
    fn is_short_for(&self, z: &Tensor<4>) -> bool {
        let (vae, [images, _, h, w]) = (&self.config.shape.vae, z.dims());
        let need = vae.decode_bytes((images * h * w * vae.factor().pow(2)) as u64);
        let free = self.options.free_memory.as_ref().and_then(FreeMemory::ask);
        let is_short = free.is_some_and(|free| free < need.saturating_add(need / 4));
        if is_short {
            tracing::debug!(need, free, "little memory is free: the picture is decoded in bands");
        }
        is_short
    }

    /// From the transformer's scale of latents to the VAE's.
    fn vae_input(&self, z: Tensor<4>) -> Tensor<4> {
        let vae = &self.config.shape.vae;
        let z = k::round(z.div_scalar(vae.scaling_factor), self.precision);
        k::round(z.add_scalar(vae.shift_factor), self.precision)
    }
}

/// The part of free memory, as 1/n, that is left to the system and to what nobody counts.
const RESERVE: u64 = 16;

/// How the kernels round for a run in `dtype`.
pub(crate) fn precision(dtype: DType) -> Precision {
    match dtype {
        DType::Bfloat16 => Precision::Bf16,
        DType::Float32 => Precision::F32,
    }
}

fn finite(x: Tensor<3>) -> bool {
    k::to_vec(x).iter().all(|v| v.is_finite())
}
