//! Runs a batch on threads, each with the blocks, branch and tokens of its role, from encoded prompts to latents.

use crate::model::{random, shape, weights};
use crate::ranks::{PATIENCE, alone};
use dg_comm::{Communicator, Delayed, Event, InProcess, Recording, Trace};
use dg_core::report::Sent;
use dg_core::{DType, GenerateRequest, ImageSize, Seed, SequenceLength, Steps, TimeDtype};
use dg_flux::parallel::{Denoiser, Encoded, RankJob, on_rank};
use dg_flux::schedule::Schedule;
use dg_flux::text::Embedding;
use dg_flux::watch::Unwatched;
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelSource, PassError, ScheduleConfig, cpu};
use dg_kernels::{Precision, from_vec, to_vec};
use dg_plan::{Ask, Layout, Plan, Work, known};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Case {
    pub(crate) size: (u32, u32),
    pub(crate) text: u32,
    pub(crate) images: usize,
    pub(crate) steps: u32,
    pub(crate) true_cfg: bool,
}

impl Case {
    pub(crate) fn batch(&self) -> Vec<GenerateRequest> {
        let (size, _) = ImageSize::fit(self.size.0, self.size.1).expect("a size");
        let one = |i: usize| {
            let mut r = GenerateRequest::new("x", size, Seed(i as u64));
            r.num_inference_steps = Steps::try_from(self.steps).expect("steps");
            r.max_sequence_length = SequenceLength::try_from(self.text).expect("tokens");
            if self.true_cfg {
                r.negative_prompt = Some("y".into());
                r.true_cfg_scale = dg_core::Scale::try_from(2.5 + i as f64).expect("a scale");
            }
            r
        };
        (0..self.images).map(one).collect()
    }

    /// As if encoded.
    pub(crate) fn encoded(&self) -> Encoded {
        let (s, b, t) = (shape(), self.images, self.text as usize);
        let of = |seed: u64| Embedding {
            text: from_vec(random(seed, b * t * s.text_width), [b, t, s.text_width], &cpu()),
            pooled: from_vec(random(seed + 1, b * s.pooled_width), [b, s.pooled_width], &cpu()),
        };
        Encoded { positive: of(200), negative: self.true_cfg.then(|| of(300)) }
    }

    pub(crate) fn work(&self) -> Work {
        let mut model = known::flux_dev();
        model.transformer = shape();
        let batch = self.batch();
        Work {
            text_tokens: self.text as usize,
            steps: self.steps as usize,
            images: self.images,
            request_images: self.images,
            batch: self.images,
            true_cfg: self.true_cfg,
            dtype: DType::Float32,
            ..Work::one(model, batch[0].size)
        }
    }

    pub(crate) fn serial(&self) -> Vec<f32> {
        run(self, &Plan::new(&self.work(), &Ask::layout(Layout::SERIAL)).expect("one rank"), None).latents
    }
}

/// Schedules do not matter here, but shift with the number of tokens as FLUX's does.
pub(crate) fn schedule(case: &Case) -> Schedule {
    let config = ScheduleConfig { use_dynamic_shifting: true, ..ScheduleConfig::default() };
    let r = &case.batch()[0];
    Schedule::new(&config, r.steps(), None, r.size.image_tokens())
}

/// What a run left behind.
pub(crate) struct Ran {
    pub(crate) latents: Vec<f32>,
    /// By rank, as the communicator counted.
    pub(crate) counted: Vec<BTreeMap<String, Sent>>,
    pub(crate) events: Vec<Event>,
}

fn files() -> &'static WeightFiles {
    static FILES: OnceLock<WeightFiles> = OnceLock::new();
    FILES.get_or_init(|| {
        let bytes: &'static [u8] = Vec::leak(weights());
        let source = ModelSource::Embedded(vec![("transformer/model.safetensors", bytes)]);
        WeightFiles::open(&source, "transformer", "model").expect("a file in memory")
    })
}

/// The denoiser of a rank of `plan`.
pub(crate) fn denoiser(plan: &Plan, rank: u32) -> Denoiser {
    let blocks = plan.stages.ranges()[plan.layout.coords(rank).pp as usize].clone();
    let loader = files().loader(&cpu(), Precision::F32);
    Denoiser::load(&loader, &shape(), blocks, TimeDtype::Model).expect("all weights")
}

/// One rank's work.
pub(crate) fn work(
    case: &Case,
    plan: &Arc<Plan>,
    comm: &Arc<dyn Communicator>,
) -> Result<Option<Vec<f32>>, PassError> {
    let rank = u32::try_from(comm.rank()).expect("few ranks");
    let encoded = (plan.encoder_rank(rank) == rank).then(|| case.encoded());
    let job = RankJob { plan: plan.clone(), comm: comm.clone(), request: 7, patience: PATIENCE };
    let d = denoiser(plan, rank);
    let latents = d.run(&case.batch(), &schedule(case), encoded.as_ref(), &job, &mut Unwatched)?;
    Ok(latents.map(to_vec))
}

/// Runs `case` as `plan` says, with late messages if `late` says so, each rank in a pool of its own.
pub(crate) fn run(case: &Case, plan: &Plan, late: Option<(u64, Duration)>) -> Ran {
    let (trace, plan) = (Trace::new(), Arc::new(plan.clone()));
    let (mut latents, mut counted) = (None, Vec::new());
    std::thread::scope(|scope| {
        let spawn = |inner: InProcess| {
            let (trace, plan) = (trace.clone(), &plan);
            scope.spawn(move || {
                let (seed, delay_max) = late.unwrap_or_default();
                let comm = Recording::new(Delayed::new(inner, seed, delay_max), trace);
                let comm: Arc<dyn Communicator> = Arc::new(comm);
                let result = alone(|| on_rank(comm.as_ref(), || work(case, plan, &comm)));
                let result = result.unwrap_or_else(|e| panic!("{} {case:?}: {e}", plan.layout));
                (result, comm.counters().sent())
            })
        };
        let ranks = InProcess::group(plan.ranks() as usize);
        let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
        for thread in threads {
            let (all, sent) = thread.join().expect("no rank panics");
            latents = latents.take().or(all);
            counted.push(sent);
        }
    });
    Ran { latents: latents.expect("the rank that decodes has them"), counted, events: trace.events() }
}

impl Ran {
    /// Fails unless every rank sent what `plan` predicts: bytes, messages and peers of every class.
    pub(crate) fn check_bytes(&self, plan: &Plan, images: usize) {
        for rank in 0..plan.ranks() {
            let predicted: BTreeMap<_, _> = plan
                .sent(rank, images)
                .0
                .into_iter()
                .map(|(class, sent)| (class.name().to_string(), sent))
                .collect();
            assert_eq!(self.counted[rank as usize], predicted, "rank {rank} of {}", plan.layout);
        }
    }
}

mod first {
    use super::*;
    use crate::ranks::distance;
    use dg_plan::Pipeline;

    #[test]
    fn layouts_give_the_serial_latents() {
        for true_cfg in [false, true] {
            let case = Case { size: (80, 48), text: 7, images: 3, steps: 3, true_cfg };
            let serial = case.serial();
            let l = |cfg, pp, ring, ulysses| Layout { cfg, pp, ring, ulysses, ..Layout::SERIAL };
            for layout in [
                l(1, 1, 1, 4),
                l(1, 2, 1, 1),
                l(1, 3, 1, 1),
                l(1, 2, 1, 2),
                l(1, 2, 2, 1),
                l(1, 2, 2, 2),
                l(2, 1, 1, 1),
                l(2, 2, 1, 1),
                l(2, 1, 2, 2),
                l(2, 2, 2, 1),
            ] {
                if layout.cfg == 2 && !true_cfg {
                    continue;
                }
                let ask = Ask { pipeline: Pipeline::Auto, ..Ask::layout(layout) };
                let plan = Plan::new(&case.work(), &ask).expect("legal");
                let ran = run(&case, &plan, None);
                ran.check_bytes(&plan, case.images);
                println!("{layout} {:?} {}", plan.passes, distance(&serial, &ran.latents));
                assert!(distance(&serial, &ran.latents) <= if layout.ring > 1 { 1e-5 } else { 0.0 });
                for warmup in [0, 1, 3] {
                    let ask = Ask { pipeline: Pipeline::Stale, warmup, patches: Some(4), ..ask.clone() };
                    let plan = Plan::new(&case.work(), &ask).expect("legal");
                    let one = Ask { layout: Layout::SERIAL, ..ask };
                    let one = Plan::new(&case.work(), &one).expect("legal");
                    let (emulated, ran) = (run(&case, &one, None), run(&case, &plan, None));
                    ran.check_bytes(&plan, case.images);
                    println!(
                        "  stale warmup {warmup} {:?}: {} drift {}",
                        plan.passes,
                        distance(&emulated.latents, &ran.latents),
                        distance(&serial, &ran.latents)
                    );
                }
            }
        }
    }
}
