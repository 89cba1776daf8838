//! Layouts of several ranks against one rank with as many threads.

use crate::measure::{cpu_name, median, timed};
use crate::{Failure, Run};
use dg_comm::{Communicator, InProcess};
use dg_core::shape::TransformerShape;
use dg_core::{DType, GenerateRequest, ImageSize, ModelShape, Scale, Seed, SequenceLength, Steps, TimeDtype};
use dg_flux::parallel::{Denoiser, Encoded, RankJob, on_rank};
use dg_flux::rng::Generator;
use dg_flux::schedule::Schedule;
use dg_flux::text::Embedding;
use dg_flux::watch::Unwatched;
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelConfig, ModelSource, ScheduleConfig};
use dg_kernels::{Precision, from_vec};
use dg_plan::{Ask, Layout, Pipeline, Plan, Work};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What is compared with one rank.
struct Contest {
    name: &'static str,
    layout: Layout,
    pipeline: Pipeline,
    images: usize,
    steps: u32,
    true_cfg: bool,
    /// Threads of the one rank.
    threads: usize,
}

/// Long enough that filling and emptying a pipeline is a twentieth of the time.
fn contests() -> [Contest; 5] {
    let one = Contest {
        name: "ulysses 2",
        layout: Layout { ulysses: 2, ..Layout::SERIAL },
        pipeline: Pipeline::Auto,
        images: 1,
        steps: 4,
        true_cfg: false,
        threads: 2,
    };
    let piped = Layout { pp: 2, ..Layout::SERIAL };
    [
        Contest { name: "ring 2", layout: Layout { ring: 2, ..Layout::SERIAL }, ..one },
        Contest {
            name: "cfg 2",
            layout: Layout { cfg: 2, ..Layout::SERIAL },
            true_cfg: true,
            steps: 2,
            ..one
        },
        Contest { name: "exact pipeline 2", layout: piped, images: 4, steps: 5, ..one },
        Contest {
            name: "pipefusion 4",
            layout: Layout { pp: 4, ..Layout::SERIAL },
            pipeline: Pipeline::Stale,
            steps: 8,
            threads: 1,
            ..one
        },
        one,
    ]
}

/// A model and a picture.
struct Bench {
    shape: ModelShape,
    schedule: ScheduleConfig,
    files: WeightFiles,
    size: ImageSize,
    text_tokens: u32,
}

/// Times every contest.
pub(crate) fn layouts(run: &Run, side: u32, text_tokens: u32) -> Result<Value, Failure> {
    let source = ModelSource::Folder(run.folder()?);
    let config = ModelConfig::read(&source)?;
    let files = WeightFiles::open(&source, "transformer", "diffusion_pytorch_model")?;
    let (size, _) = ImageSize::fit(side, side)?;
    let bench = Bench { shape: config.shape, schedule: config.schedule, files, size, text_tokens };
    let rows = contests().iter().map(|c| bench.contest(c, run)).collect::<Result<Vec<_>, _>>()?;
    Ok(
        json!({ "bench": "parallel", "cpu": cpu_name(), "threads": 2, "kernels": dg_kernels::path(), "rows": rows }),
    )
}

impl Bench {
    fn contest(&self, c: &Contest, run: &Run) -> Result<Value, Failure> {
        let batch = self.batch(c)?;
        let serial = self.team(c, Layout::SERIAL, Pipeline::Auto)?;
        let ranks = self.team(c, c.layout, c.pipeline)?;
        let (mut one, mut many) = (Vec::new(), Vec::new());
        for i in 0..run.warm_up + run.repeats {
            let both = [
                timed(&mut || self.denoise(&batch, &serial, c.threads)),
                timed(&mut || self.denoise(&batch, &ranks, 1)),
            ];
            if i >= run.warm_up {
                one.push(both[0]);
                many.push(both[1]);
            }
        }
        let of = |times: &[[f64; 2]], i: usize| median(times.iter().map(|t| t[i]).collect());
        let ratio = |i: usize| median(one.iter().zip(&many).map(|(a, b)| a[i] / b[i]).collect());
        eprintln!(
            "{}: {:.3} s against {:.3} s on one rank of {} threads: {:.3} of its speed; CPU {:.3} of its",
            c.name,
            of(&many, 0),
            of(&one, 0),
            c.threads,
            ratio(0),
            1.0 / ratio(1)
        );
        Ok(json!({
            "layout": c.name, "images": c.images, "steps": c.steps, "serial_threads": c.threads,
            "serial_wall_s": of(&one, 0), "wall_s": of(&many, 0), "speed_against_serial": ratio(0),
            "serial_cpu_s": of(&one, 1), "cpu_s": of(&many, 1), "cpu_against_serial": 1.0 / ratio(1),
        }))
    }

    fn batch(&self, c: &Contest) -> Result<Vec<GenerateRequest>, Failure> {
        let one = |i: usize| -> Result<GenerateRequest, Failure> {
            let mut r = GenerateRequest::new("x", self.size, Seed(i as u64));
            r.num_inference_steps = Steps::try_from(c.steps)?;
            r.max_sequence_length = SequenceLength::try_from(self.text_tokens)?;
            if c.true_cfg {
                r.negative_prompt = Some(String::new());
                r.true_cfg_scale = Scale::try_from(3.0)?;
            }
            Ok(r)
        };
        (0..c.images).map(one).collect()
    }

    /// The plan and each rank's weights.
    fn team(&self, c: &Contest, layout: Layout, pipeline: Pipeline) -> Result<Team, Failure> {
        let work = Work {
            text_tokens: self.text_tokens as usize,
            steps: c.steps as usize,
            images: c.images,
            request_images: c.images,
            batch: c.images,
            true_cfg: c.true_cfg,
            dtype: DType::Float32,
            ..Work::one(self.shape.clone(), self.size)
        };
        let plan = Plan::new(&work, &Ask { pipeline, ..Ask::layout(layout) })?;
        let stage = |rank: u32| plan.stages.ranges()[plan.layout.coords(rank).pp as usize].clone();
        let loader = self.files.loader(&dg_flux::cpu(), Precision::F32);
        let load =
            |rank: u32| Denoiser::load(&loader, &self.shape.transformer, stage(rank), TimeDtype::Model);
        let denoisers = (0..plan.ranks()).map(load).collect::<Result<_, _>>()?;
        Ok(Team {
            plan: Arc::new(plan),
            denoisers,
            encoded: encoded(&self.shape.transformer, c, self.text_tokens),
        })
    }

    /// All steps, from encoded prompts to latents, each rank in a pool of its own.
    fn denoise(&self, batch: &[GenerateRequest], team: &Team, threads: usize) {
        let tokens = batch[0].size.image_tokens();
        let schedule = &Schedule::new(&self.schedule, batch[0].steps(), None, tokens);
        std::thread::scope(|scope| {
            for (comm, denoiser) in InProcess::group(team.denoisers.len()).into_iter().zip(&team.denoisers) {
                scope.spawn(move || {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                    let comm: Arc<dyn Communicator> = Arc::new(comm);
                    let is_first = comm.rank() == 0;
                    let plan = team.plan.clone();
                    let job =
                        RankJob { plan, comm: comm.clone(), request: 0, patience: PATIENCE, resume: None };
                    let encoded = is_first.then_some(&team.encoded);
                    let work = || denoiser.run(batch, schedule, encoded, &job, &mut Unwatched);
                    pool.install(|| on_rank(comm.as_ref(), work)).expect("all ranks go through");
                });
            }
        });
    }
}

struct Team {
    plan: Arc<Plan>,
    denoisers: Vec<Denoiser>,
    encoded: Encoded,
}

/// Random values in place of encoded prompts.
fn encoded(s: &TransformerShape, c: &Contest, tokens: u32) -> Encoded {
    let (b, t) = (c.images, tokens as usize);
    let normal = |seed, n| Generator::new(seed).randn(n);
    let of = |seed| Embedding {
        text: from_vec(normal(seed, b * t * s.text_width), [b, t, s.text_width], &dg_flux::cpu()),
        pooled: from_vec(normal(seed + 1, b * s.pooled_width), [b, s.pooled_width], &dg_flux::cpu()),
    };
    Encoded { positive: of(1), negative: c.true_cfg.then(|| of(3)) }
}

const PATIENCE: Duration = Duration::from_secs(600);
