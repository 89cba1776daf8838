//! The denoising loop as one rank runs it. The serial run is that of one rank.

use super::checkpoint::{LatentsPart, Rows};
use super::edges::Edges;
use super::embeds::{self, Encoded, Sizes};
use super::share::{Share, gather};
use super::units::{Credit, Unit, rows_of_patches, units};
use super::{Job, RankJob, Sequence};
use crate::attend::{Attend, Pass, Serial};
use crate::conditioning::Moment;
use crate::latents;
use crate::modulation::{AHEAD_BYTES_MAX, Ahead, Modulations, Modulator};
use crate::rope::Rope;
use crate::schedule::Schedule;
use crate::text::Embedding;
use crate::transformer::Transformer;
use crate::watch::Watch;
use crate::weights::Loader;
use crate::{ModelError, PassError};
use burn::tensor::{Device, Tensor};
use dg_comm::{Call, Class, CommError, Communicator, Tag};
use dg_core::shape::TransformerShape;
use dg_core::{GenerateRequest, StepEvent, TimeDtype};
use dg_kernels::{self as k, Precision};
use dg_plan::Passes;
use std::ops::Range;
use std::time::Instant;

/// The part of a transformer that one rank has: the blocks of its stage and what steers them.
pub struct Denoiser {
    shape: TransformerShape,
    modulator: Modulator,
    transformer: Transformer,
    precision: Precision,
    time_dtype: TimeDtype,
    device: Device,
}

impl Denoiser {
    /// Takes the weights of the blocks `blocks`, double blocks numbered first, with the embedders before the first
    /// and the end after the last of all.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn load(
        w: &Loader<'_>,
        shape: &TransformerShape,
        blocks: Range<usize>,
        time_dtype: TimeDtype,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            transformer: Transformer::load_stage(w, shape, blocks.clone())?,
            modulator: Modulator::load_stage(w, shape, blocks)?,
            precision: w.precision(),
            device: w.device().clone(),
            shape: shape.clone(),
            time_dtype,
        })
    }

    /// Says how many bytes of weights may stay in memory during the next batches, see
    /// [`Turns::keep`](crate::turns::Turns::keep). Modulations are computed once, so theirs are the first to leave.
    pub(crate) fn keep(&self, bytes: Option<u64>) {
        let (blocks, modulation) = (self.transformer.turns(), self.modulator.turns());
        let all = self.bytes();
        modulation.keep(bytes.map(|bytes| if all <= bytes { bytes } else { 0 }));
        blocks.keep(bytes);
    }

    /// Bytes of the mapped weights of the blocks and of their modulation.
    pub(crate) fn bytes(&self) -> u64 {
        self.transformer.turns().bytes().saturating_add(self.modulator.turns().bytes())
    }

    /// This rank's part in all steps of a batch: the final packed latents `[images, tokens, in_channels]` on the rank
    /// that decodes, nothing on the others. The rank that encodes brings the prompts, unless no step is left.
    ///
    /// # Errors
    /// If `watch` stops the run, another rank cannot be reached, or the job cannot go on from where it is told to.
    ///
    /// # Panics
    /// If the plan is not one of this model, or the rank that encodes brings nothing.
    pub fn run(
        &self,
        batch: &[GenerateRequest],
        schedule: &Schedule,
        encoded: Option<&Encoded>,
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Tensor<3>>, PassError> {
        let sizes = Sizes {
            images: batch.len(),
            shape: &self.shape,
            precision: self.precision,
            device: &self.device,
        };
        if let Some(resume) = &job.resume {
            resume.check(&job.plan, self.dims(batch))?;
        }
        let branches = if job.is_denoised() { Vec::new() } else { embeds::share(encoded, job, &sizes)? };
        let owner = job.coords().sequence(&job.plan.layout);
        let share = Share::new(&job.plan.segments, owner);
        let run = Run {
            denoiser: self,
            batch,
            schedule,
            job,
            edges: Edges { job, at: job.coords(), precision: self.precision, device: &self.device },
            rope: share.rope(&self.rope(batch, job)),
            patches: rows_of_patches(&job.plan.segments, owner),
            image: job.plan.segments.image_of(owner),
            text: job.plan.segments.text_of(owner),
            branches,
            share,
        };
        let mut x = run.beginning();
        if !job.is_denoised() {
            x = run.all_steps(x, &mut *self.attend(job)?, watch)?;
        }
        run.gather(x).map_err(Into::into)
    }

    /// Sizes of the packed latents of all tokens.
    fn dims(&self, batch: &[GenerateRequest]) -> [usize; 3] {
        [batch.len(), batch[0].size.image_tokens(), self.shape.in_channels]
    }

    /// Positions of all tokens.
    fn rope(&self, batch: &[GenerateRequest], job: &RankJob) -> Rope {
        let mut ids = vec![[0.0; 3]; job.plan.segments.text_tokens()];
        ids.extend(latents::image_ids(batch[0].size, self.precision));
        Rope::new(&ids, &self.shape.axes_dims_rope, &self.device)
    }

    fn attend(&self, job: &RankJob) -> Result<Box<dyn Attend>, CommError> {
        let (plan, keeps) = (&job.plan, job.plan.passes == Passes::Patches);
        if plan.layout.sequence_ranks() == 1 && !keeps {
            return Ok(Box::new(Serial));
        }
        let group = std::sync::Arc::new(job.sequence_group("sequence")?);
        let about = Job { request: job.request, patience: job.patience };
        let sequence = Sequence::new(group, &plan.segments, &plan.heads, about)?;
        Ok(Box::new(if keeps { sequence.keeping(&plan.segments, &plan.heads) } else { sequence }))
    }
}

/// One rank's part in one batch.
struct Run<'a> {
    denoiser: &'a Denoiser,
    batch: &'a [GenerateRequest],
    schedule: &'a Schedule,
    job: &'a RankJob,
    edges: Edges<'a>,
    /// The own tokens.
    share: Share,
    /// Of the own tokens, text first.
    rope: Rope,
    /// Own image rows of each patch.
    patches: Vec<Range<usize>>,
    /// Own image tokens.
    image: usize,
    /// Own text tokens.
    text: usize,
    /// What the own branches of true CFG read, in the order of computing.
    branches: Vec<Embedding>,
}

impl Run<'_> {
    /// The latents of the own tokens that the job begins with, noise or those of a checkpoint; the first stage
    /// computes with them, the last one steps them.
    fn beginning(&self) -> Tensor<3> {
        let Denoiser { shape, device, precision, .. } = self.denoiser;
        if !self.job.is_first_stage() && !self.job.is_last_stage() {
            return nothing([self.batch.len(), shape.in_channels], device);
        }
        let all = match &self.job.resume {
            // rounded already if they are of such a run
            Some(resume) => {
                let dims = self.denoiser.dims(self.batch);
                k::round(k::from_vec(resume.latents.clone(), dims, device), *precision)
            }
            None => latents::noise(self.batch, shape.in_channels / 4, device, *precision),
        };
        self.share.image(&all)
    }

    fn all_steps(
        &self,
        mut x: Tensor<3>,
        attend: &mut dyn Attend,
        watch: &mut dyn Watch,
    ) -> Result<Tensor<3>, PassError> {
        let (plan, steps, images) = (&self.job.plan, self.schedule.steps(), self.batch.len());
        let done = self.job.steps_done();
        let (is_decoder, is_piped) =
            (plan.decoder_rank(self.job.rank()) == self.job.rank(), plan.layout.pp > 1);
        let mut ahead = self.ahead();
        let mut credit = Credit::new(plan.layout.pp as usize);
        watch.see(&format!("latents_{done}"), &x);
        for step in done..steps {
            let start = Instant::now();
            let modulations = ahead.step(step, watch)?;
            for unit in units(plan, images, step) {
                self.take_latents(&mut x, &mut credit, &unit)?;
                let v = self.velocity(step, &unit, &x, &modulations, attend, watch)?;
                if let Some(v) = v {
                    watch.see(&format!("noise_pred_{step}"), &v);
                    let stepped = self.step(step, self.part(&x, &unit), v);
                    if is_piped && step + 1 < steps {
                        self.edges.send_latents(step, &unit, stepped.clone())?;
                    }
                    x = self.with_part(x, &unit, stepped);
                } else if self.job.is_first_stage() && step + 1 < steps {
                    credit.sent(step, unit);
                }
            }
            watch.see(&format!("latents_{}", step + 1), &x);
            crate::settle(&self.denoiser.device);
            if is_decoder {
                let seconds = start.elapsed().as_secs_f64();
                let images = (0..images).collect();
                watch.event(StepEvent::Step { images, step: step + 1, steps, seconds });
            }
            self.hand_out(step + 1, &x, watch);
        }
        Ok(x)
    }

    /// Hands out the own latents after `step` steps, if they are wanted.
    fn hand_out(&self, step: usize, x: &Tensor<3>, watch: &mut dyn Watch) {
        if !watch.wants_latents(step) {
            return;
        }
        let mut part = LatentsPart { step, ..LatentsPart::default() };
        if self.has_latents() && self.image > 0 {
            let own = self.share.image_tokens();
            let of_image = |image| own.iter().map(move |tokens| Rows { image, tokens: tokens.clone() });
            part.rows = (0..self.batch.len()).flat_map(of_image).collect();
            part.values = k::to_vec(x.clone());
        }
        watch.latents(part);
    }

    /// Whether the new latents of the own tokens are taken from this rank: the other stages do not have them, and the
    /// second branch has the same.
    fn has_latents(&self) -> bool {
        self.job.is_last_stage() && self.job.coords().cfg == 0
    }

    /// On the first stage of several: takes the latents that must be there before `unit` goes off.
    fn take_latents(&self, x: &mut Tensor<3>, credit: &mut Credit, unit: &Unit) -> Result<(), CommError> {
        while let Some((step, back)) = credit.due(unit) {
            let dims = [back.images.len(), self.rows(&back).len(), self.denoiser.shape.in_channels];
            let new = self.edges.recv_latents(step, &back, dims)?;
            *x = self.with_part(x.clone(), &back, new);
        }
        Ok(())
    }

    /// The modulations of all steps: in each step one row per image for the first branch, then for the second.
    fn ahead(&self) -> Ahead<'_> {
        let Denoiser { modulator, precision, time_dtype, .. } = self.denoiser;
        let pooled = Tensor::cat(self.branches.iter().map(|e| e.pooled.clone()).collect(), 0);
        let step = |i: usize| {
            let t = self.schedule.timestep(i);
            let moment =
                |r: &GenerateRequest| Moment::new(t, r.guidance_scale.value(), *precision, *time_dtype);
            let branch: Vec<Moment> = self.batch.iter().map(moment).collect();
            branch.repeat(self.branches.len())
        };
        let moments = (0..self.schedule.steps()).flat_map(step).collect();
        Ahead::new(modulator, moments, pooled, AHEAD_BYTES_MAX)
    }

    /// The model's prediction for `unit` on the last stage; the others hand their results on.
    fn velocity(
        &self,
        step: usize,
        unit: &Unit,
        x: &Tensor<3>,
        modulations: &Modulations,
        attend: &mut dyn Attend,
        watch: &mut dyn Watch,
    ) -> Result<Option<Tensor<3>>, PassError> {
        let transformer = &self.denoiser.transformer;
        let mut predicted = Vec::new();
        for branch in 0..self.branches.len() {
            let row = branch * self.batch.len() + unit.images.start;
            let modulations = &modulations.rows(row, unit.images.len());
            let hidden = if self.job.is_first_stage() {
                watch.see("temb", &modulations.conditioning.clone().unsqueeze_dim(0));
                let text = self.text_part(&self.branches[branch].text, unit);
                transformer.enter(self.part(x, unit), text, watch)
            } else {
                let (text, image) = (self.text_rows(unit), self.rows(unit).len());
                self.edges.recv_hidden(step, unit, branch, [text, image, self.denoiser.shape.width()])?
            };
            attend.begin(Pass { step, branch, image: unit.images.start, patch: unit.patch });
            let hidden = transformer.through(hidden, modulations, &self.rope_of(unit), attend, watch)?;
            if self.job.is_last_stage() {
                predicted.push(transformer.leave(hidden.image, modulations, watch));
            } else {
                self.edges.send_hidden(step, unit, branch, hidden)?;
            }
        }
        self.combined(step, unit, predicted).map_err(Into::into)
    }

    /// Of the predictions of the own branches that of the model; under true CFG negative + scale · (positive −
    /// negative), with the other branch from another rank if it has one of its own.
    fn combined(
        &self,
        step: usize,
        unit: &Unit,
        predicted: Vec<Tensor<3>>,
    ) -> Result<Option<Tensor<3>>, CommError> {
        let mut predicted = predicted.into_iter();
        let (Some(first), second) = (predicted.next(), predicted.next()) else { return Ok(None) };
        let (positive, negative) = match (second, self.job.plan.layout.cfg) {
            (Some(second), _) => (first, second),
            (None, 2) => {
                let other = self.edges.exchange_noise(step, unit, &first)?;
                if self.job.coords().cfg == 0 { (other, first) } else { (first, other) }
            }
            _ => return Ok(Some(first)),
        };
        if positive.dims()[1] == 0 {
            return Ok(Some(positive));
        }
        let (p, batch) = (self.denoiser.precision, &self.batch[unit.images.clone()]);
        let scales: Vec<f32> = batch.iter().map(|r| r.true_cfg_scale.value() as f32).collect();
        let scales = k::from_vec(scales, [batch.len(), 1, 1], &positive.device());
        let difference = k::round(positive - negative.clone(), p);
        Ok(Some(k::round(negative + k::round(difference * scales, p), p)))
    }

    /// Euler: x + (σᵢ₊₁ − σᵢ)·v.
    fn step(&self, i: usize, x: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        if x.dims()[1] == 0 {
            return x;
        }
        let p = self.denoiser.precision;
        let delta = match p {
            Precision::F32 => self.schedule.delta(i),
            Precision::Bf16 => burn::tensor::bf16::from_f32(self.schedule.delta(i)).to_f32(),
        };
        k::round(x + k::round(v.mul_scalar(delta), p), p)
    }

    /// The final latents of all ranks, on the one that decodes.
    fn gather(&self, x: Tensor<3>) -> Result<Option<Tensor<3>>, CommError> {
        let (plan, p) = (&self.job.plan, self.denoiser.precision);
        if !self.has_latents() {
            return Ok(None);
        }
        if plan.layout.sequence_ranks() == 1 {
            return Ok(Some(x));
        }
        let group = self.job.sequence_group("gather")?;
        let mut all = Vec::new();
        let last = self.schedule.steps().saturating_sub(1);
        let parts = match plan.passes {
            Passes::Streams => units(plan, self.batch.len(), last),
            _ => vec![Unit { patch: None, images: 0..self.batch.len() }],
        };
        for unit in parts {
            let kind = u32::try_from(unit.images.start).unwrap_or(u32::MAX);
            let tag = Tag::new(self.job.request).kind(kind);
            let call = Call::within(self.job.patience, Class::Gather, tag);
            all.extend(gather(&group, &plan.segments, self.part(&x, &unit), &call, p)?);
        }
        Ok((group.rank() == 0).then(|| Tensor::cat(all, 0)))
    }

    /// Own image rows of a unit.
    fn rows(&self, unit: &Unit) -> Range<usize> {
        unit.patch.map_or(0..self.image, |patch| self.patches[patch].clone())
    }

    /// Own text rows of a unit.
    fn text_rows(&self, unit: &Unit) -> usize {
        if unit.has_text() { self.text } else { 0 }
    }

    /// A unit's pictures and rows of the own latents.
    fn part(&self, x: &Tensor<3>, unit: &Unit) -> Tensor<3> {
        let rows = self.rows(unit);
        match rows.len() {
            0 => nothing([unit.images.len(), x.dims()[2]], &x.device()),
            n => x.clone().narrow(0, unit.images.start, unit.images.len()).narrow(1, rows.start, n),
        }
    }

    /// `x` with that part replaced.
    fn with_part(&self, x: Tensor<3>, unit: &Unit, new: Tensor<3>) -> Tensor<3> {
        let (dims, rows) = (x.dims(), self.rows(unit));
        match new.dims() {
            [_, 0, _] => x,
            all if all == dims => new,
            _ => x.slice_assign([unit.images.clone(), rows, 0..dims[2]], new),
        }
    }

    fn text_part(&self, text: &Tensor<3>, unit: &Unit) -> Tensor<3> {
        match self.text_rows(unit) {
            0 => nothing([unit.images.len(), text.dims()[2]], &text.device()),
            _ => text.clone().narrow(0, unit.images.start, unit.images.len()),
        }
    }

    /// Positions of the tokens of a unit, text first.
    fn rope_of(&self, unit: &Unit) -> Rope {
        let (rows, text) = (self.rows(unit), self.text_rows(unit));
        match (text, rows.len()) {
            (0, 0) => self.rope.clone(),
            (0, image) => self.rope.slice(self.text + rows.start, image),
            // patch 0 and the whole sequence begin with the first image row
            (_, image) => self.rope.slice(0, text + image),
        }
    }
}

/// No tokens of some images: `[b, 0, c]`.
fn nothing([images, channels]: [usize; 2], device: &Device) -> Tensor<3> {
    k::from_vec(Vec::new(), [images, 0, channels], device)
}
