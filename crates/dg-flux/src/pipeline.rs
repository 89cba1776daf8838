//! One batch, from prompts to pictures: encode, denoise, decode.

use crate::attend::{Attend, Pass, Serial};
use crate::conditioning::Moment;
use crate::latents;
use crate::modulation::{AHEAD_BYTES_MAX, Ahead, Modulations, Modulator};
use crate::parallel::RankJob;
use crate::picture::{self, Picture};
use crate::rope::Rope;
use crate::schedule::Schedule;
use crate::text::{Embedding, Prompt, TextEncoder};
use crate::tiling::Tiling;
use crate::transformer::{Inputs, Transformer};
use crate::vae::Decoder;
use crate::watch::{Cancelled, Watch};
use crate::{ModelConfig, ModelError, ModelRepo, PassError, RunError};
use burn::tensor::{Device, Tensor};
use dg_core::{DType, GenerateRequest, StepEvent, TimeDtype};
use dg_kernels::{self as k, Precision};
use dg_plan::Plan;
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
}

/// A loaded model on one rank.
pub struct Pipeline {
    config: ModelConfig,
    options: PipelineOptions,
    precision: Precision,
    text: TextEncoder,
    modulator: Modulator,
    transformer: Transformer,
    decoder: Decoder,
}

impl Pipeline {
    /// Takes the weights of all components out of the mapped files.
    pub fn load(repo: &ModelRepo, options: PipelineOptions) -> Result<Self, ModelError> {
        let precision = precision(options.dtype);
        let (shape, device) = (repo.shape(), &options.device);
        let transformer = || -> Result<_, ModelError> {
            let weights = repo.transformer.loader(device, precision);
            let transformer = Transformer::load(&weights, &shape.transformer)?;
            let modulator = Modulator::load(&weights, &shape.transformer)?;
            Ok((transformer, modulator, weights.unused(&[])))
        };
        let decoder = || -> Result<_, ModelError> {
            let weights = repo.vae.loader(device, precision);
            Ok((Decoder::load(&weights, &shape.vae)?, weights.unused(&["encoder."])))
        };
        let (text, (transformer, decoder)) =
            rayon::join(|| TextEncoder::load(repo, device, precision), || rayon::join(transformer, decoder));
        let (text, mut unused) = text?;
        let (transformer, modulator, more) = transformer?;
        unused.extend(more);
        let (decoder, more) = decoder?;
        unused.extend(more);
        if let Some(first) = unused.first() {
            tracing::warn!("{} tensors of the model are not used, `{first}` for one", unused.len());
        }
        let config = repo.config().clone();
        Ok(Self { config, precision, text, modulator, transformer, decoder, options })
    }

    /// Takes only the weights that `rank` of `plan` needs, see [`Plan::role`].
    pub fn load_rank(
        repo: &ModelRepo,
        options: PipelineOptions,
        plan: &Plan,
        rank: u32,
    ) -> Result<Self, ModelError> {
        let _ = (plan, rank);
        Self::load(repo, options)
    }

    /// One rank's part in the pictures of one batch; the pictures, in order, on the rank that decodes. All requests
    /// must batch with the first one, and `job.plan` must be made for as many.
    pub fn generate_on(
        &mut self,
        batch: &[GenerateRequest],
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<Picture>>, RunError> {
        let _ = job;
        self.generate(batch, watch).map(Some)
    }

    /// Makes the pictures of one batch, in order. All requests must batch with the first one
    /// ([`GenerateRequest::batches_with`]); panics otherwise, and for an empty batch.
    pub fn generate(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Picture>, RunError> {
        let latents = self.latents(batch, watch)?;
        let decoded = |(i, request): (usize, &GenerateRequest)| {
            let start = Instant::now();
            let one = latents.clone().narrow(0, i, 1);
            let picture = self.picture(one, request, watch)?;
            watch.event(StepEvent::Decoded { image: i, seconds: start.elapsed().as_secs_f64() });
            Ok(picture)
        };
        batch.iter().enumerate().map(decoded).collect()
    }

    /// The final packed latents of one batch, `[images, tokens, in_channels]`.
    pub fn latents(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<Tensor<3>, RunError> {
        let first = &batch[0];
        assert!(batch.iter().all(|r| r.batches_with(first)), "a batch of unlike requests");
        let (text, negative) = self.encode(batch, watch)?;
        let channels = self.config.shape.transformer.in_channels / 4;
        let noise = latents::noise(batch, channels, &self.options.device, self.precision);
        let tokens = first.size.image_tokens();
        let schedule = Schedule::new(&self.config.schedule, first.steps(), first.sigmas.as_deref(), tokens);
        let mut ids = vec![[0.0; 3]; text.text.dims()[1]];
        ids.extend(latents::image_ids(first.size, self.precision));
        let rope = Rope::new(&ids, &self.config.shape.transformer.axes_dims_rope, &self.options.device);
        let run = Denoise { pipeline: self, batch, text, negative, schedule, rope };
        let latents = run.all_steps(noise, &mut Serial, watch)?;
        match (0..batch.len()).find(|i| !finite(latents.clone().narrow(0, *i, 1))) {
            Some(image) => Err(RunError::NotFinite { image, steps: first.steps() }),
            None => Ok(latents),
        }
    }

    /// Encodes the prompts, and the negative prompts if true CFG is on; equal ones once.
    fn encode(
        &mut self,
        batch: &[GenerateRequest],
        watch: &mut dyn Watch,
    ) -> Result<(Embedding, Option<Embedding>), RunError> {
        let start = Instant::now();
        let (mut positive, mut negative) = (Vec::new(), Vec::new());
        for r in batch {
            let tokens = r.max_sequence_length.tokens();
            let prompt = Prompt { clip: r.prompt.clone(), t5: r.t5_prompt().into(), tokens };
            positive.push(self.text.encode(&prompt, watch)?);
            if let Some(text) = r.active_negative() {
                let prompt = Prompt { clip: text.into(), t5: text.into(), tokens };
                negative.push(self.text.encode(&prompt, watch)?);
            }
        }
        let (images, seconds) = ((0..batch.len()).collect(), start.elapsed().as_secs_f64());
        watch.event(StepEvent::TextEncoded { images, seconds });
        let negative = (!negative.is_empty()).then(|| Embedding::stack(negative));
        Ok((Embedding::stack(positive), negative))
    }

    /// Decodes the packed latents `[1, tokens, in_channels]` of one picture.
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
        let whole = |z: Tensor<4>| self.decoder.forward(z, &mut |_, _| watch.check());
        let decoded = if vae_tiling { Tiling::new(vae).decode(z, p, whole) } else { whole(z) }?;
        let rgb = picture::to_rgb(decoded, p);
        let pixels_blake3 = blake3::hash(&rgb).to_hex().to_string();
        let (size, seed) = (request.size, request.seed);
        Ok(Picture { size, rgb, seed, vae_tiling, pixels_blake3, latents_blake3 })
    }

    /// From the transformer's scale of latents to the VAE's.
    fn vae_input(&self, z: Tensor<4>) -> Tensor<4> {
        let vae = &self.config.shape.vae;
        let z = k::round(z.div_scalar(vae.scaling_factor), self.precision);
        k::round(z.add_scalar(vae.shift_factor), self.precision)
    }
}

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

/// The denoising loop of one batch.
struct Denoise<'a> {
    pipeline: &'a Pipeline,
    batch: &'a [GenerateRequest],
    text: Embedding,
    negative: Option<Embedding>,
    schedule: Schedule,
    rope: Rope,
}

impl Denoise<'_> {
    fn all_steps(
        &self,
        mut x: Tensor<3>,
        attend: &mut dyn Attend,
        watch: &mut dyn Watch,
    ) -> Result<Tensor<3>, PassError> {
        let steps = self.schedule.steps();
        let mut ahead = self.ahead();
        watch.see("latents_0", &x);
        for i in 0..steps {
            let start = Instant::now();
            let modulations = ahead.step(i, watch)?;
            let v = self.velocity(i, &x, &modulations, attend, watch)?;
            watch.see(&format!("noise_pred_{i}"), &v);
            x = self.step(i, x, v);
            watch.see(&format!("latents_{}", i + 1), &x);
            watch.event(StepEvent::Step {
                images: (0..self.batch.len()).collect(),
                step: i + 1,
                steps,
                seconds: start.elapsed().as_secs_f64(),
            });
        }
        Ok(x)
    }

    /// The modulations of all steps: in each step one row per image, and under true CFG one more
    /// for its negative branch after those.
    fn ahead(&self) -> Ahead<'_> {
        let Pipeline { modulator, config, options, precision, .. } = self.pipeline;
        let embeddings = || [Some(&self.text), self.negative.as_ref()].into_iter().flatten();
        let pooled = Tensor::cat(embeddings().map(|e| e.pooled.clone()).collect(), 0);
        let step = |i: usize| {
            let t = self.schedule.timestep(i);
            let moment = |r: &GenerateRequest| {
                Moment::new(t, r.guidance_scale.value(), *precision, options.time_dtype)
            };
            let branch: Vec<Moment> = self.batch.iter().map(moment).collect();
            branch.repeat(embeddings().count())
        };
        let moments = (0..self.schedule.steps()).flat_map(step).collect();
        Ahead::new(modulator, &config.shape.transformer, moments, pooled, AHEAD_BYTES_MAX)
    }

    /// The model's prediction in step `step`; under true CFG negative + scale · (positive − negative).
    fn velocity(
        &self,
        step: usize,
        x: &Tensor<3>,
        modulations: &Modulations,
        attend: &mut dyn Attend,
        watch: &mut dyn Watch,
    ) -> Result<Tensor<3>, PassError> {
        let (p, images) = (self.pipeline.precision, self.batch.len());
        let mut predict = |e: &Embedding, branch: usize| {
            attend.begin(Pass { step, branch });
            let modulations = &modulations.rows(branch * images, images);
            let inputs = Inputs { x: x.clone(), text: e.text.clone(), modulations, rope: &self.rope };
            self.pipeline.transformer.forward(inputs, attend, watch)
        };
        let positive = predict(&self.text, 0)?;
        let Some(negative) = &self.negative else { return Ok(positive) };
        let negative = predict(negative, 1)?;
        let scales: Vec<f32> = self.batch.iter().map(|r| r.true_cfg_scale.value() as f32).collect();
        let scales = k::from_vec(scales, [images, 1, 1], &x.device());
        let difference = k::round(positive - negative.clone(), p);
        Ok(k::round(negative + k::round(difference * scales, p), p))
    }

    /// Euler: x + (σᵢ₊₁ − σᵢ)·v.
    fn step(&self, i: usize, x: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let p = self.pipeline.precision;
        let delta = match p {
            Precision::F32 => self.schedule.delta(i),
            Precision::Bf16 => burn::tensor::bf16::from_f32(self.schedule.delta(i)).to_f32(),
        };
        k::round(x + k::round(v.mul_scalar(delta), p), p)
    }
}
