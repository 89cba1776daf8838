//! How a run is spread over ranks: settings and requests → one layout, and a plan for every kind of batch. Pure.

use crate::engine::{self, EngineOptions, MemoryNeed};
use crate::failure::Failure;
use crate::hub::HubAsk;
use crate::models;
use dg_config::{Key, Settings};
use dg_core::{DType, GenerateRequest, ImageSize, ModelShape, PipeFusion};
use dg_flux::ModelRepo;
use dg_plan::{
    Ask, Bounds, Candidate, Cause, Layout, Links, Machine, Passes, Pipeline, Plan, RankMemory, Refusal,
    Search, WeightBytes, Work, known, machine,
};
use dg_runtime::asked;

/// How a run is spread.
pub(crate) struct Spread {
    /// The layout that was asked for or found, and what bounds it.
    pub(crate) ask: Ask,
    /// A plan for every kind of batch, in the order of the pictures.
    pub(crate) plans: Vec<Plan>,
    /// How the layout was found, if only a number of ranks was given.
    pub(crate) search: Option<Search>,
}

/// The number of ranks for which a layout is to be found: more than one, and no degree was given.
pub(crate) fn ranks_to_fill(settings: &Settings) -> Option<u64> {
    asked::ranks_to_fill(settings)
}

/// Ranks of the run.
pub(crate) fn ranks(settings: &Settings) -> u64 {
    settings.integer_if_any(Key::NumGpus).unwrap_or_else(|| asked::degrees(settings).ranks())
}

/// Refuses degrees whose product is not the number of ranks. The model need not be there: it serves only to offer
/// layouts, and FLUX.1-dev stands in for one that cannot be read.
pub(crate) fn check_product(settings: &Settings) -> Result<(), Failure> {
    let ask = asked::ask(settings)?;
    let is_filled = ask.num_gpus.is_none_or(|n| n == ask.layout.ranks());
    if is_filled || ranks_to_fill(settings).is_some() {
        return Ok(());
    }
    let local = HubAsk { local_files_only: true, silent: true, revision: settings.text(Key::Revision) };
    let name = settings.text(Key::ModelName).unwrap_or(models::DEMO);
    let shape = models::shape(name, &local).map_or_else(|_| known::flux_dev(), |(shape, _)| shape);
    let (width, height) = (settings.integer(Key::Width) as u32, settings.integer(Key::Height) as u32);
    let (size, _) = ImageSize::fit(width, height).map_err(|e| Failure::config(e.to_string()))?;
    let images = settings.integer(Key::NumImagesPerPrompt) as usize;
    let is_file = settings.text(Key::PromptsFile).is_some();
    let work = Work {
        images: if is_file { images.max(ROWS_SUPPOSED) } else { images },
        request_images: images,
        true_cfg: settings.number(Key::TrueCfgScale) > 1.0 && settings.text(Key::NegativePrompt).is_some(),
        ..Work::one(shape, size)
    };
    Ok(Plan::new(&work, &ask).map(drop)?)
}

/// Threads of this process's CPU as ranks, and memory between them.
pub(crate) fn this_machine() -> Machine {
    let cpu = machine::device("cpu").expect("it is in the table of devices");
    Machine::new(cpu, Links::parse("memory").expect("it is in the table of links"))
}

/// Plans every kind of batch, for a format of the arithmetic and the way that weights are held. The first that cannot
/// run is the error.
pub(crate) fn spread<'a>(
    settings: &Settings,
    machine: &Machine,
    shape: &ModelShape,
    formats: (DType, Option<WeightBytes>),
    requests: impl Iterator<Item = &'a GenerateRequest>,
) -> Result<Spread, Failure> {
    let works = works(settings, shape, formats, requests);
    let mut ask = asked::ask(settings)?;
    let mut search = None;
    if let Some(ranks) = ranks_to_fill(settings) {
        let (layout, found) = find(&works, &ask, ranks, machine)?;
        ask.layout = layout;
        search = Some(found);
    }
    let plan = |work: &Work| {
        Plan::new(work, &ask).map_err(|refusal| {
            let Work { size, steps, .. } = work;
            let failure = Failure::from(refusal);
            match works.len() {
                1 => failure,
                _ => Failure {
                    message: format!("pictures of {size} in {steps} steps: {}", failure.message),
                    ..failure
                },
            }
        })
    };
    let plans = works.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    Ok(Spread { ask, plans, search })
}

/// The distinct kinds of work of a run.
fn works<'a>(
    settings: &Settings,
    shape: &ModelShape,
    (dtype, weights): (DType, Option<WeightBytes>),
    requests: impl Iterator<Item = &'a GenerateRequest>,
) -> Vec<Work> {
    let mut works: Vec<Work> = Vec::new();
    let mut images = 0;
    for r in requests {
        images += 1;
        if works.iter().any(|work| is_kind(work, r)) {
            continue;
        }
        works.push(Work {
            text_tokens: r.max_sequence_length.tokens(),
            steps: r.steps(),
            request_images: settings.integer(Key::NumImagesPerPrompt) as usize,
            batch: settings.integer(Key::BatchSize) as usize,
            true_cfg: r.active_negative().is_some(),
            dtype,
            weights,
            ..Work::one(shape.clone(), r.size)
        });
    }
    works.iter_mut().for_each(|work| work.images = images);
    works
}

/// Whether `r` is work of this kind.
fn is_kind(work: &Work, r: &GenerateRequest) -> bool {
    work.size == r.size
        && work.steps == r.steps()
        && work.text_tokens == r.max_sequence_length.tokens()
        && work.true_cfg == r.active_negative().is_some()
}

/// The fastest layout that every kind of work can use, exact unless a stale pipeline was asked for.
fn find(works: &[Work], ask: &Ask, ranks: u64, machine: &Machine) -> Result<(Layout, Search), Failure> {
    let Some(first) = works.first() else {
        return Err(Failure::usage("no picture is asked for"));
    };
    let bounds = Bounds { pipeline: ask.pipeline, ..Bounds::default() };
    let mut found = dg_plan::search(first, ranks, machine, &bounds);
    let suits = |c: &Candidate| {
        let ask = Ask { layout: c.layout, ..ask.clone() };
        let allowed = |plan: Plan| plan.is_exact() || ask.pipeline == Pipeline::Stale;
        works.iter().all(|work| Plan::new(work, &ask).is_ok_and(allowed))
    };
    let Some(at) = found.candidates.iter().position(suits) else {
        return Err(Failure::infeasible(format!("num_gpus = {ranks}: {}", found.reason))
            .hint("use another number of ranks, or give degrees, --ulysses_degree for instance"));
    };
    if found.chosen != Some(at) {
        found.chosen = Some(at);
        found.reason = "the fastest that suits all kinds of pictures of this run".into();
    }
    Ok((found.candidates[at].layout, found))
}

impl Spread {
    /// Number of ranks.
    pub(crate) fn ranks(&self) -> usize {
        self.ask.layout.ranks() as usize
    }

    /// The plan that a report shows: the first of a stale pipeline, if there is one, because it says most.
    pub(crate) fn shown(&self) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.passes == Passes::Patches).or_else(|| self.plans.first())
    }

    fn plan_of(&self, request: &GenerateRequest) -> Option<&Plan> {
        self.plans.iter().find(|plan| is_kind(&plan.work, request))
    }

    /// What a picture records of the pipeline: nothing if it is the picture that one rank makes. One patch is the
    /// whole sequence, and never stale.
    pub(crate) fn pipefusion(&self, request: &GenerateRequest) -> Option<PipeFusion> {
        let plan = self.plan_of(request)?;
        let patches = plan.patches.runs().len();
        let is_stale = plan.passes == Passes::Patches && !plan.is_exact() && patches > 1;
        is_stale.then_some(PipeFusion { patches: patches as u32, warmup: plan.warmup as u32 })
    }

    /// What works but is probably not what is wanted.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let dp = self.ask.layout.dp as usize;
        let dry = |plan: &Plan| {
            let (streams, stages) = (plan.batch_images() * plan.branches(), plan.layout.pp as usize);
            let enough = stages.div_ceil(plan.branches()) * dp;
            (plan.passes == Passes::Streams && streams < stages).then(|| {
                format!(
                    "a batch has {streams} pictures and branches for {stages} pipeline stages: stages wait; use \
                     --batch_size {enough} or more"
                )
            })
        };
        let of =
            |plan: &Plan| plan.warnings.iter().map(ToString::to_string).chain(dry(plan)).collect::<Vec<_>>();
        self.plans.iter().flat_map(of).collect()
    }

    /// What all ranks together will hold. Weights are one map; what the format of the arithmetic makes anew, every
    /// rank has of its own part.
    pub(crate) fn need(
        &self,
        repo: &ModelRepo,
        options: &EngineOptions,
        requests: &[GenerateRequest],
        batch: usize,
    ) -> MemoryNeed {
        let mut need = engine::need(repo, options, requests, batch);
        if requests.is_empty() {
            return need;
        }
        let plans = self.plans.iter().filter(|plan| requests.iter().any(|r| is_kind(&plan.work, r)));
        let of_ranks: Vec<[u64; 2]> = plans
            .filter(|plan| plan.ranks() > 1 || plan.passes == Passes::Patches)
            .map(|plan| {
                let tiled = engine::tiles(repo.shape(), plan.work.size, options.vae_tiling);
                let converted = converted(plan, repo.converted_bytes(options.dtype));
                activations(plan, tiled).map(|bytes| bytes + converted)
            })
            .collect();
        let most = |i: usize, alone: u64| match of_ranks.iter().map(|bytes| bytes[i]).max() {
            Some(bytes) if self.ranks() > 1 => bytes,
            Some(bytes) => bytes.max(alone),
            None => alone,
        };
        // ranks that share tokens are at the same block
        let layout = self.ask.layout;
        let places = self.ranks() as u64 / u64::from(layout.ulysses.max(1)) / u64::from(layout.ring.max(1));
        need.window = need.window.saturating_mul(places.max(1));
        need.activations = most(0, need.activations);
        need.activations_least = most(1, need.activations_least);
        need
    }

    /// What would need less memory, each with its need per rank.
    pub(crate) fn remedies(&self) -> Option<String> {
        let hungriest = self.plans.iter().max_by_key(|plan| plan.largest_memory().1.least())?;
        let least = hungriest.largest_memory().1.least();
        let ask = Ask { memory_bytes: Some(least.saturating_sub(1)), ..self.ask.clone() };
        match Plan::new(&hungriest.work, &ask) {
            Err(Refusal { cause: Cause::Memory { remedies, .. }, .. }) if !remedies.is_empty() => {
                let lines: Vec<String> = remedies.iter().map(ToString::to_string).collect();
                Some(lines.join("; "))
            }
            _ => None,
        }
    }
}

/// Activations, K/V buffers and modulations of all ranks; and the same when pictures are decoded in bands.
fn activations(plan: &Plan, tiled: bool) -> [u64; 2] {
    let mut plan = plan.clone();
    let tile = plan.work.shape.vae.sample_size as u32;
    if let (true, Ok((size, _))) = (tiled, ImageSize::fit(tile, tile)) {
        // only the decoder looks at the size
        plan.work.size = size;
    }
    let layout = plan.layout;
    let ranks: Vec<RankMemory> = (0..layout.replica_ranks() as u32).map(|rank| plan.memory(rank)).collect();
    let replica = |activations: fn(&RankMemory) -> u64| -> u64 {
        ranks.iter().map(|memory| memory.kv_buffers + activations(memory).max(memory.encoding)).sum()
    };
    let images = plan.batch_images() * plan.branches();
    let ahead = engine::modulation_bytes(&plan.work.shape, images, plan.work.steps);
    // stages share the modulations, the others have all of them
    let holders = layout.replica_ranks() / u64::from(layout.pp);
    let all = |replica: u64| {
        u64::from(layout.dp).saturating_mul(replica.saturating_add(holders.saturating_mul(ahead)))
    };
    [all(replica(|memory| memory.activations)), all(replica(|memory| memory.activations_least))]
}

/// Bytes of weights that all ranks make anew, if one rank alone makes `whole`.
fn converted(plan: &Plan, whole: u64) -> u64 {
    let weights = |rank: u32| {
        let memory = plan.memory(rank);
        memory.transformer + memory.encoders + memory.decoder
    };
    let Ok(serial) = Plan::new(&plan.work, &Ask::layout(Layout::SERIAL)) else { return whole };
    let one = serial.memory(0);
    let one = (one.transformer + one.encoders + one.decoder).max(1);
    let replica: u64 = (0..plan.layout.replica_ranks() as u32).map(weights).sum();
    (whole as f64 * replica as f64 / one as f64) as u64 * u64::from(plan.layout.dp)
}

/// Rows of a prompts file before it is read: layouts with many replicas are offered too.
const ROWS_SUPPOSED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::Layers;
    use dg_core::{ExitCode, Scale, Seed, Steps};

    fn settings(flags: &[(Key, &str)]) -> Settings {
        let mut layers = Layers::default();
        layers.add_flags(flags.iter().map(|(key, text)| (*key, key.setting().parse(text).unwrap())));
        layers.resolve()
    }

    fn request(width: u32) -> GenerateRequest {
        let (size, _) = ImageSize::fit(width, 64).unwrap();
        let steps = Steps::try_from(4).unwrap();
        GenerateRequest { num_inference_steps: steps, ..GenerateRequest::new("x", size, Seed(0)) }
    }

    fn plan(flags: &[(Key, &str)], requests: &[GenerateRequest]) -> Result<Spread, Failure> {
        spread(&settings(flags), &this_machine(), &known::flux_dev(), (DType::Float32, None), requests.iter())
    }

    #[test]
    fn a_layout_is_looked_for_only_if_nothing_but_ranks_is_given() {
        assert_eq!(ranks_to_fill(&settings(&[])), None);
        assert_eq!(ranks_to_fill(&settings(&[(Key::NumGpus, "1")])), None);
        assert_eq!(ranks_to_fill(&settings(&[(Key::NumGpus, "4")])), Some(4));
        assert_eq!(ranks_to_fill(&settings(&[(Key::NumGpus, "4"), (Key::RingDegree, "1")])), None);
        assert_eq!(ranks(&settings(&[(Key::UlyssesDegree, "2"), (Key::UseCfgParallel, "on")])), 4);
    }

    #[test]
    fn every_kind_of_batch_is_planned_once() {
        let mut negative = request(64);
        negative.negative_prompt = Some("n".into());
        negative.true_cfg_scale = Scale::try_from(2.0).unwrap();
        let all = [request(64), request(96), request(64), negative];
        let spread = plan(&[(Key::UlyssesDegree, "2")], &all).unwrap();
        assert_eq!(spread.plans.iter().map(|p| p.work.true_cfg).collect::<Vec<_>>(), [false, false, true]);
        assert!(spread.plans.iter().all(|p| p.work.images == 4));
        let e = plan(&[(Key::UseCfgParallel, "on")], &all).err().unwrap();
        assert!(e.exit == ExitCode::Infeasible && e.message.starts_with("pictures of 64x64 in 4 steps: "));
    }

    #[test]
    fn what_is_found_suits_all_kinds_and_keeps_the_picture() {
        let mut negative = request(64);
        negative.negative_prompt = Some("n".into());
        negative.true_cfg_scale = Scale::try_from(2.0).unwrap();
        for all in [[request(64), negative.clone()], [negative, request(64)]] {
            let spread = plan(&[(Key::NumGpus, "4")], &all).unwrap();
            assert!(spread.ask.layout.cfg == 1 && spread.plans.iter().all(Plan::is_exact));
            assert!(spread.ranks() == 4 && spread.search.is_some());
        }
    }

    #[test]
    fn only_what_changes_the_picture_is_recorded() {
        let recorded = |flags: &[(Key, &str)]| plan(flags, &[request(64)]).unwrap().pipefusion(&request(64));
        let stages = (Key::PipefusionDegree, "2");
        assert_eq!(recorded(&[stages]), Some(PipeFusion { patches: 2, warmup: 1 }));
        let one_rank = [(Key::Pipeline, "stale"), (Key::NumPipelinePatch, "2")];
        assert_eq!(recorded(&one_rank), Some(PipeFusion { patches: 2, warmup: 1 }));
        assert_eq!(recorded(&[stages, (Key::WarmupSteps, "4")]), None, "all steps are synchronous");
        assert_eq!(recorded(&[stages, (Key::NumPipelinePatch, "1")]), None, "one patch is the whole");
        assert_eq!(recorded(&[stages, (Key::NumImagesPerPrompt, "2")]), None, "exact: two pictures");
        assert_eq!(recorded(&[(Key::UlyssesDegree, "4")]), None);
    }

    #[test]
    fn a_wrong_product_is_refused_without_a_model() {
        let wrong = [(Key::UlyssesDegree, "3"), (Key::NumGpus, "4"), (Key::ModelName, "./none")];
        let e = check_product(&settings(&wrong)).unwrap_err();
        assert!(e.exit == ExitCode::Infeasible && e.hint.is_some_and(|h| h.contains("`ulysses 4`")));
        assert_eq!(check_product(&settings(&[(Key::NumGpus, "4")])), Ok(()));
    }

    #[test]
    fn many_ranks_that_wait_are_warned_of() {
        let starved = [(Key::PipefusionDegree, "2"), (Key::NumImagesPerPrompt, "2")];
        let said = plan(&starved, &[request(64), request(64)]).unwrap().warnings();
        assert!(said.iter().any(|w| w.contains("use --batch_size 2 or more")), "{said:?}");
        let idle = plan(&[(Key::DataParallelDegree, "2")], &[request(64)]).unwrap().warnings();
        assert!(idle[0].contains("1 replicas stay idle"), "{idle:?}");
    }
}
