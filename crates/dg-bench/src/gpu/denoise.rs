//! Denoising at FLUX.1-dev's own shape, with random weights made on the device.

use super::Kind;
use super::part::{Part, Row};
use crate::Failure;
use crate::measure::median;
use burn::tensor::{Device, Tensor};
use clap::{Args, ValueEnum};
use dg_comm::{Communicator, InProcess};
use dg_core::shape::TransformerShape;
use dg_core::{DType, GenerateRequest, ImageSize, Seed, SequenceLength, Steps, TimeDtype};
use dg_flux::ScheduleConfig;
use dg_flux::parallel::{Denoiser, Encoded, RankJob, on_rank};
use dg_flux::rng::Generator;
use dg_flux::schedule::Schedule;
use dg_flux::text::Embedding;
use dg_flux::watch::Unwatched;
use dg_flux::weights::Loader;
use dg_kernels::{Precision, from_vec, to_vec};
use dg_plan::{Ask, Layout, Plan, Work, known};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is denoised.
#[derive(Args, Clone)]
pub(super) struct Asked {
    /// Size of the transformer; by default that of FLUX.1-dev on a GPU, and a small one on a CPU
    #[arg(long, value_enum)]
    size: Option<Size>,
    /// Width and height in pixels [default: 1024, small: 128]
    #[arg(long)]
    side: Option<u32>,
    /// Steps of a run
    #[arg(long, default_value_t = 4)]
    steps: u32,
    /// Runs that are timed
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Format of the arithmetic
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    format: Format,
}

/// A transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Size {
    /// FLUX.1-dev: 12 billion parameters, 24 GB in bfloat16
    Full,
    /// FLUX.1's width, one block of each kind
    Block,
    /// 4 heads, one double block and two single ones
    Small,
}

/// A format of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    F32,
    Bf16,
}

impl Asked {
    fn size(&self, kind: Kind) -> Size {
        self.size.unwrap_or(if kind == Kind::Cuda { Size::Full } else { Size::Small })
    }

    /// Shapes, precision and request.
    pub(super) fn bench(&self, kind: Kind) -> Result<Bench, Failure> {
        let dev = known::flux_dev();
        let t = dev.transformer.clone();
        let transformer = match self.size(kind) {
            Size::Full => t,
            Size::Block => TransformerShape { double_blocks: 1, single_blocks: 1, ..t },
            Size::Small => {
                TransformerShape { heads: 4, double_blocks: 1, single_blocks: 2, text_width: 256, ..t }
            }
        };
        let is_small = self.size(kind) == Size::Small;
        let side = self.side.unwrap_or(if is_small { 128 } else { 1024 });
        let (size, _) = ImageSize::fit(side, side)?;
        let text_tokens: u32 = if is_small { 64 } else { 512 };
        let mut request = GenerateRequest::new("x", size, Seed(1));
        request.num_inference_steps = Steps::try_from(self.steps)?;
        request.max_sequence_length = SequenceLength::try_from(text_tokens)?;
        let (precision, dtype) = match self.format {
            Format::F32 => (Precision::F32, DType::Float32),
            Format::Bf16 => (Precision::Bf16, DType::Bfloat16),
        };
        let shape = dg_core::ModelShape { transformer, ..dev };
        let work = Work {
            text_tokens: text_tokens as usize,
            steps: self.steps as usize,
            dtype,
            ..Work::one(shape, size)
        };
        Ok(Bench { work, request, precision, device: kind.open()? })
    }
}

/// A model's shape and a picture.
pub(super) struct Bench {
    pub(super) work: Work,
    request: GenerateRequest,
    precision: Precision,
    pub(super) device: Device,
}

impl Bench {
    /// All weights, made on the device.
    pub(super) fn denoiser(&self) -> Result<Denoiser, Failure> {
        let shape = &self.work.shape.transformer;
        self.device.seed(1);
        let loader = Loader::random(&self.device, self.precision);
        let blocks = 0..shape.double_blocks + shape.single_blocks;
        Ok(Denoiser::load(&loader, shape, blocks, TimeDtype::Model)?)
    }

    /// Operations of a step: see `dg_plan::time`.
    fn flop(&self) -> f64 {
        let t = &self.work.shape.transformer;
        let tokens = (self.work.size.image_tokens() + self.work.text_tokens) as f64;
        let (width, blocks) = (t.width() as f64, (t.double_blocks + t.single_blocks) as f64);
        blocks * (24.0 * width * width * tokens + 4.0 * tokens * tokens * width)
    }

    fn encoded(&self) -> Encoded {
        let (t, s) = (self.work.text_tokens, &self.work.shape.transformer);
        let normal = |seed, n| Generator::new(seed).randn(n);
        let round = |x: Vec<f32>, shape: [usize; 3]| {
            let x = from_vec::<3>(x, shape, &dg_flux::cpu());
            from_vec(to_vec(dg_kernels::round(x, self.precision)), shape, &self.device)
        };
        let text = round(normal(1, t * s.text_width), [1, t, s.text_width]);
        let pooled: Tensor<3> = round(normal(2, s.pooled_width), [1, 1, s.pooled_width]);
        let positive = Embedding { text, pooled: pooled.reshape([1, s.pooled_width]) };
        Encoded { positive, negative: None }
    }

    /// All steps on these ranks, threads that share the denoiser: the latents, and when each step of the first was done.
    pub(super) fn run(
        &self,
        denoiser: &Denoiser,
        layout: Layout,
        ranks: Vec<Arc<dyn Communicator>>,
    ) -> Result<(Vec<f32>, f64), Failure> {
        let plan = Arc::new(Plan::new(&self.work, &Ask::layout(layout))?);
        let schedule =
            Schedule::new(&schedule(), self.request.steps(), None, self.request.size.image_tokens());
        let (batch, encoded) = ([self.request.clone()], self.encoded());
        let begin = Instant::now();
        let latents = std::thread::scope(|scope| {
            let threads = ranks.into_iter().map(|comm| {
                let job = RankJob { plan: plan.clone(), comm, request: 0, patience: PATIENCE, resume: None };
                let (batch, encoded, schedule) = (&batch, &encoded, &schedule);
                scope.spawn(move || {
                    let comm = job.comm.clone();
                    let prompts = (comm.rank() == 0).then_some(encoded);
                    let work = || denoiser.run(batch, schedule, prompts, &job, &mut Unwatched);
                    let latents = on_rank(comm.as_ref(), work).map_err(|e| e.to_string())?;
                    // Reading them waits for the device.
                    Ok::<_, String>(latents.map(to_vec))
                })
            });
            let threads: Vec<_> = threads.collect();
            let ended =
                threads.into_iter().map(|t| t.join().map_err(|_| "a rank panicked".to_owned()).flatten());
            ended.collect::<Result<Vec<_>, String>>()
        })?;
        let latents = latents.into_iter().flatten().next().ok_or("no rank has the latents")?;
        Ok((latents, begin.elapsed().as_secs_f64()))
    }
}

/// One rank that is alone.
pub(super) fn alone() -> Vec<Arc<dyn Communicator>> {
    InProcess::group(1).into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>).collect()
}

/// Times all steps.
pub(super) fn run(kind: Kind, asked: &Asked, part: &mut Part) -> Result<(), Failure> {
    let bench = asked.bench(kind)?;
    part.put(shape(&bench, asked, kind));
    let begin = Instant::now();
    let denoiser = bench.denoiser()?;
    let (latents, first) = bench.run(&denoiser, Layout::SERIAL, alone())?;
    let start = begin.elapsed().as_secs_f64();
    let is_finite = latents.iter().all(|x| x.is_finite());
    part.put(Row::new("latents", is_finite, "are finite numbers", json!({ "count": latents.len() })));
    let detail = format!("{start:.1} s with weights and first run ({first:.1} s)");
    part.put(Row::told("start", detail, Value::Null));
    let mut times = Vec::new();
    for _ in 0..asked.repeats.max(1) {
        times.push(bench.run(&denoiser, Layout::SERIAL, alone())?.1);
        let step = median(times.clone()) / f64::from(asked.steps);
        let (rate, memory) = (bench.flop() / step * 1e-12, memory_bytes(kind));
        let numbers = json!({
            "ms_per_step": step * 1e3, "tflop_per_s": rate, "flop": bench.flop(), "run_s": times, "steps": asked.steps,
            "first_run_s": first, "start_s": start, "memory_bytes": memory,
        });
        part.put(Row::told("step", format!("{:.1} ms, {rate:.2} TFLOP/s", step * 1e3), numbers));
        let detail = format!("{:.2} GiB in use", memory as f64 / f64::from(1 << 30));
        part.put(Row::told("memory", detail, Value::Null));
    }
    Ok(())
}

fn shape(bench: &Bench, asked: &Asked, kind: Kind) -> Row {
    let (size, pixels, tokens) = (asked.size(kind), bench.work.size, bench.work.text_tokens);
    let (width, height) = (pixels.width(), pixels.height());
    let detail = format!("{size:?}, {width} × {height} pixels, {tokens} text tokens, {:?}", asked.format);
    let numbers = json!({
        "size": format!("{size:?}"), "width": width, "height": height, "text_tokens": tokens,
        "format": format!("{:?}", asked.format),
    });
    Row::told("shape", detail, numbers)
}

/// Bytes of the first device that are in use, or of this process.
fn memory_bytes(kind: Kind) -> u64 {
    match kind {
        Kind::Cuda => {
            let usage = dg_nccl::usage::Meter::open().and_then(|meter| meter.read());
            usage.ok().and_then(|gpus| gpus.first().map(|gpu| gpu.used_bytes)).unwrap_or(0)
        }
        Kind::Cpu => crate::measure::peak_rss(),
    }
}

/// That of FLUX.1-dev.
fn schedule() -> ScheduleConfig {
    ScheduleConfig { shift: 3.0, use_dynamic_shifting: true, ..ScheduleConfig::default() }
}

const PATIENCE: Duration = Duration::from_secs(600);
