//! Runs a batch on threads, each with the blocks, branch and tokens of its role, from encoded prompts to latents.

use crate::model::{random, shape, weights};
use crate::ranks::{PATIENCE, alone, traced};
use burn::tensor::Tensor;
use dg_comm::{Communicator, Delayed, Event, InProcess, Recording, Trace};
use dg_core::report::Sent;
use dg_core::{DType, GenerateRequest, ImageSize, Seed, SequenceLength, Steps, TimeDtype};
use dg_flux::parallel::{Denoiser, Encoded, RankJob, Resume, on_rank};
use dg_flux::schedule::Schedule;
use dg_flux::text::Embedding;
use dg_flux::watch::{Unwatched, Watch};
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelSource, PassError, ScheduleConfig, cpu};
use dg_kernels::{Precision, from_vec, to_vec};
use dg_plan::{Ask, Layout, Plan, Work, known};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Case {
    pub(crate) size: (u32, u32),
    pub(crate) text: u32,
    /// Number of the first picture in its request.
    pub(crate) first: usize,
    pub(crate) images: usize,
    /// Pictures of the request, of which these are some.
    pub(crate) request_images: usize,
    pub(crate) steps: u32,
    pub(crate) true_cfg: bool,
}

impl Case {
    /// Two steps without true CFG.
    pub(crate) fn new(size: (u32, u32), text: u32, images: usize) -> Self {
        Self { size, text, first: 0, images, request_images: images, steps: 2, true_cfg: false }
    }

    /// Some of the pictures.
    pub(crate) fn part(&self, images: Range<usize>) -> Self {
        Self { first: self.first + images.start, images: images.len(), ..*self }
    }

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
        (self.first..self.first + self.images).map(one).collect()
    }

    /// As if encoded; every picture has a prompt of its own.
    pub(crate) fn encoded(&self) -> Encoded {
        let (s, b, t) = (shape(), self.images, self.text as usize);
        let rows = |seed: usize, n: usize| -> Vec<f32> {
            let numbers = self.first..self.first + b;
            numbers.flat_map(|i| random((seed + i) as u64, n)).collect()
        };
        let of = |seed: usize| Embedding {
            text: from_vec(rows(seed, t * s.text_width), [b, t, s.text_width], &cpu()),
            pooled: from_vec(rows(seed + 50, s.pooled_width), [b, s.pooled_width], &cpu()),
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
            request_images: self.request_images,
            batch: self.images,
            true_cfg: self.true_cfg,
            dtype: DType::Float32,
            ..Work::one(model, batch[0].size)
        }
    }

    /// A plan for these pictures.
    pub(crate) fn plan(&self, ask: &Ask) -> Plan {
        Plan::new(&self.work(), ask).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    /// The latents of a rank that is alone, computed once.
    pub(crate) fn serial(&self) -> Arc<Vec<f32>> {
        static KNOWN: OnceLock<Mutex<HashMap<Case, Arc<Vec<f32>>>>> = OnceLock::new();
        let known = || KNOWN.get_or_init(Mutex::default).lock().expect("nobody panics with it");
        if let Some(latents) = known().get(self) {
            return latents.clone();
        }
        let (batch, encoded) = (self.batch(), self.encoded());
        let job = RankJob::alone(&self.work().shape, &batch, DType::Float32);
        let d = denoiser(&self.plan(&Ask::layout(Layout::SERIAL)), 0);
        let latents = alone(|| d.run(&batch, &schedule(self), Some(&encoded), &job, &mut Unwatched));
        let latents = to_vec(latents.expect("nobody stops it").expect("the only rank decodes"));
        known().entry(*self).or_insert_with(|| Arc::new(latents)).clone()
    }
}

/// Schedules do not matter here, but shift with the number of tokens as FLUX's does.
pub(crate) fn schedule(case: &Case) -> Schedule {
    let config = ScheduleConfig { use_dynamic_shifting: true, ..ScheduleConfig::default() };
    let r = &case.batch()[0];
    Schedule::new(&config, r.steps(), None, r.size.image_tokens())
}

fn files() -> &'static WeightFiles {
    static FILES: OnceLock<WeightFiles> = OnceLock::new();
    FILES.get_or_init(|| {
        let bytes: &'static [u8] = Vec::leak(weights(&shape()));
        let source = ModelSource::Embedded(vec![("transformer/model.safetensors", bytes)]);
        WeightFiles::open(&source, "transformer", "model").expect("a file in memory")
    })
}

/// The blocks of a rank's stage.
pub(crate) fn blocks(plan: &Plan, rank: u32) -> Range<usize> {
    plan.stages.ranges()[plan.layout.coords(rank).pp as usize].clone()
}

/// Denoisers by blocks.
type Known = HashMap<Range<usize>, Arc<Denoiser>>;

/// The denoiser of a rank of `plan`. Those of one stage are one.
pub(crate) fn denoiser(plan: &Plan, rank: u32) -> Arc<Denoiser> {
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    let blocks = blocks(plan, rank);
    let mut known = KNOWN.get_or_init(Mutex::default).lock().expect("nobody panics with it");
    let load = || {
        let loader = files().loader(&cpu(), Precision::F32);
        let denoiser = Denoiser::load(&loader, &shape(), blocks.clone(), TimeDtype::Model);
        Arc::new(denoiser.expect("all weights of a stage"))
    };
    known.entry(blocks.clone()).or_insert_with(load).clone()
}

/// Rests after every block, as if it were slow.
pub(crate) struct Resting(pub(crate) Duration);

impl Watch for Resting {
    fn see(&mut self, name: &str, _: &Tensor<3>) {
        if name.starts_with("single_") || name.ends_with(".image") {
            std::thread::sleep(self.0);
        }
    }
}

/// Gives the denoiser of a rank.
pub(crate) type Load<'a> = dyn Fn(&Plan, u32) -> Arc<Denoiser> + Sync + 'a;

/// Gives what looks in on a rank.
pub(crate) type Look<'a> = dyn Fn(u32) -> Box<dyn Watch + Send + 'a> + Sync + 'a;

/// How a run differs from a plain one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup<'a> {
    /// Seed of late messages, and how late they are at most.
    pub(crate) late: (u64, Duration),
    /// Rest after each block.
    pub(crate) rest: Duration,
    /// Where ranks have their weights from.
    pub(crate) weights: Option<&'a Load<'a>>,
    /// What looks in on ranks, in place of the rest.
    pub(crate) look: Option<&'a Look<'a>>,
    /// Where the jobs go on from.
    pub(crate) resume: Option<&'a Arc<Resume>>,
}

/// One rank's work in job number `request`.
pub(crate) fn work(
    case: &Case,
    plan: &Arc<Plan>,
    (denoiser, request, resume): (&Denoiser, u64, Option<&Arc<Resume>>),
    comm: &Arc<dyn Communicator>,
    watch: &mut dyn Watch,
) -> Result<Option<Vec<f32>>, PassError> {
    let rank = u32::try_from(comm.rank()).expect("few ranks");
    let encoded = (plan.encoder_rank(rank) == rank).then(|| case.encoded());
    let (plan, comm, resume) = (plan.clone(), comm.clone(), resume.cloned());
    let job = RankJob { plan, comm, request, patience: PATIENCE, resume };
    Ok(denoiser.run(&case.batch(), &schedule(case), encoded.as_ref(), &job, watch)?.map(to_vec))
}

/// What a run left behind.
pub(crate) struct Ran {
    /// Of all pictures of all jobs, one after the other.
    pub(crate) latents: Vec<f32>,
    /// By rank, as the communicator counted.
    pub(crate) counted: Vec<BTreeMap<String, Sent>>,
    pub(crate) events: Vec<Event>,
}

/// Runs `case` as `plan` says.
pub(crate) fn run(case: &Case, plan: &Plan) -> Ran {
    run_jobs(&[(*case, plan.clone())], Setup::default())
}

/// Runs jobs one after the other on the same ranks, each rank in a pool of its own.
pub(crate) fn run_jobs(jobs: &[(Case, Plan)], setup: Setup<'_>) -> Ran {
    let trace = Trace::new();
    let jobs: Vec<_> = jobs.iter().map(|(case, plan)| (*case, Arc::new(plan.clone()))).collect();
    let load = setup.weights.unwrap_or(&denoiser);
    let (mut latents, mut counted) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let spawn = |inner: InProcess| {
            let (trace, jobs) = (trace.clone(), &jobs);
            scope.spawn(move || {
                let (rank, (seed, delay_max)) = (inner.rank() as u32, setup.late);
                let comm = Recording::new(Delayed::new(inner, seed, delay_max), trace);
                let comm: Arc<dyn Communicator> = Arc::new(comm);
                let mut watch =
                    setup.look.map_or_else(|| Box::new(Resting(setup.rest)) as _, |look| look(rank));
                let all = || {
                    let one = |(request, (case, plan)): (usize, &(Case, Arc<Plan>))| {
                        let with = (&*load(plan, rank), request as u64, setup.resume);
                        work(case, plan, with, &comm, &mut *watch)
                    };
                    jobs.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
                };
                let result = alone(|| on_rank(comm.as_ref(), all));
                let result = result.unwrap_or_else(|e| panic!("{} {:?}: {e}", jobs[0].1.layout, jobs[0].0));
                (result, comm.counters().sent())
            })
        };
        let ranks = InProcess::group(jobs[0].1.ranks() as usize);
        let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
        for thread in threads {
            let (all, sent) = thread.join().expect("no rank panics");
            latents.extend(all.into_iter().flatten().flatten());
            counted.push(sent);
        }
    });
    Ran { latents, counted, events: trace.events() }
}

impl Ran {
    /// Fails unless every rank sent what `plan` predicts for `images` pictures, and nothing else: bytes, messages and
    /// peers of every class, as the communicator counts them and as the trace of single messages has them.
    pub(crate) fn check_bytes(&self, plan: &Plan, images: usize) {
        self.check_bytes_from(plan, images, 0);
    }

    /// The same of a run that goes on after `step` steps.
    pub(crate) fn check_bytes_from(&self, plan: &Plan, images: usize, step: usize) {
        let traced = traced(&self.events, self.counted.len());
        for rank in 0..plan.ranks() {
            let predicted = by_name(plan.sent_from(rank, images, step));
            assert_eq!(self.counted[rank as usize], predicted, "rank {rank} of {}", plan.layout);
            assert_eq!(traced[rank as usize], predicted, "rank {rank} of {}", plan.layout);
        }
    }
}

/// Traffic as counters have it.
pub(crate) fn by_name(traffic: dg_plan::Traffic) -> BTreeMap<String, Sent> {
    traffic.0.into_iter().map(|(class, sent)| (class.name().to_string(), sent)).collect()
}

/// All layouts of `ranks` ranks: every product of five degrees, with one or two branches.
pub(crate) fn layouts(ranks: u32) -> Vec<Layout> {
    let divisors = |n: u32| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut all = Vec::new();
    for dp in divisors(ranks) {
        for cfg in divisors(ranks / dp).filter(|cfg| *cfg <= 2) {
            for pp in divisors(ranks / dp / cfg) {
                let rest = ranks / dp / cfg / pp;
                all.extend(divisors(rest).map(|ring| Layout { dp, cfg, pp, ring, ulysses: rest / ring }));
            }
        }
    }
    all
}
