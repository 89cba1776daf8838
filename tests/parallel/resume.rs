//! A job goes on from the latents after a step as if nothing had happened, in the layout that it began in or in
//! another one: the same latents, the same messages, and none of the steps that are done.

use crate::engine::{Case, Setup, blocks, run_jobs, schedule};
use crate::model::{shape, weights};
use crate::ranks::{alone, bits, distance};
use dg_core::{DType, StepEvent, TimeDtype};
use dg_flux::parallel::{Denoiser, LatentsPart, RankJob, Resume, ResumeError};
use dg_flux::watch::{Unwatched, Watch};
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelSource, PassError, cpu};
use dg_kernels::Precision;
use dg_plan::{Ask, Layout, Passes, Pipeline, Plan, Work};
use std::sync::{Arc, Mutex};

/// What ranks were asked and what they handed out.
#[derive(Default)]
struct Seen {
    /// Rank and step.
    asked: Vec<(u32, usize)>,
    parts: Vec<(u32, LatentsPart)>,
    /// Steps that somebody told of.
    told: Vec<usize>,
}

/// Takes the latents that a job can go on from.
struct Taking<'a> {
    rank: u32,
    plan: &'a Plan,
    seen: &'a Mutex<Seen>,
}

impl Taking<'_> {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with it")
    }
}

impl Watch for Taking<'_> {
    fn wants_latents(&self, step: usize) -> bool {
        self.seen().asked.push((self.rank, step));
        self.plan.resumes_at(step)
    }

    fn latents(&mut self, part: LatentsPart) {
        self.seen().parts.push((self.rank, part));
    }

    fn event(&mut self, event: StepEvent) {
        if let StepEvent::Step { step, .. } = event {
            self.seen().told.push(step);
        }
    }
}

/// Latents at the end, and the checkpoints on the way.
struct Ran {
    latents: Vec<f32>,
    checkpoints: Vec<Arc<Resume>>,
}

/// Runs `case` from the start or from a checkpoint. Fails unless every rank does the steps that are left, hands out
/// what it has to, and sends what is predicted.
fn go(case: &Case, plan: &Plan, from: Option<&Arc<Resume>>, setup: Setup<'_>) -> Ran {
    let (seen, steps) = (Mutex::default(), case.steps as usize);
    let look = |rank| Box::new(Taking { rank, plan, seen: &seen }) as Box<dyn Watch + Send + '_>;
    let ran = run_jobs(&[(*case, plan.clone())], Setup { look: Some(&look), resume: from, ..setup });
    let Seen { asked, parts, told } = seen.into_inner().expect("nobody panics with it");
    let done = from.map_or(0, |from| from.step);
    let left: Vec<usize> = (done + 1..=steps).collect();
    for rank in 0..plan.ranks() {
        let of_rank: Vec<_> = asked.iter().filter(|(r, _)| *r == rank).map(|(_, step)| *step).collect();
        assert_eq!(of_rank, left, "steps of rank {rank}");
    }
    assert_eq!(told, left, "by the rank that decodes, and by no other");
    for (rank, part) in &parts {
        let (at, stages) = (plan.layout.coords(*rank), plan.layout.pp);
        let rows: usize = part.rows.iter().map(|rows| rows.tokens.len()).sum();
        let own = match (at.pp + 1 == stages, at.cfg) {
            (true, 0) => case.images * plan.segments.image_of(at.sequence(&plan.layout)),
            _ => 0,
        };
        assert_eq!((rows, part.values.len()), (own, own * shape().in_channels), "rank {rank}");
    }
    let wanted = left.into_iter().filter(|step| plan.resumes_at(*step));
    let checkpoint = |step| {
        let of_step = parts.iter().filter(|(_, part)| part.step == step);
        let parts: Vec<_> = of_step.map(|(_, part)| part.clone()).collect();
        assert_eq!(parts.len(), plan.ranks() as usize, "one of each rank");
        let dims = [case.images, plan.segments.image_tokens(), shape().in_channels];
        let resume = Resume::from_parts(&parts, dims).expect("every token once");
        assert_eq!(resume.step, step);
        Arc::new(resume)
    };
    let checkpoints: Vec<_> = wanted.map(checkpoint).collect();
    assert_eq!(parts.len(), checkpoints.len() * plan.ranks() as usize, "nothing but what is wanted");
    ran.check_bytes_from(plan, case.images, done);
    Ran { latents: ran.latents, checkpoints }
}

/// Fails unless two runs in these layouts give the same: bit for bit, within rounding where a ring adds otherwise.
fn same(a: &[f32], b: &[f32], (of_a, of_b): (Layout, Layout), what: &str) {
    let far = distance(a, b);
    if of_a == of_b || of_a.ring.max(of_b.ring) == 1 {
        assert!(bits(a) == bits(b), "{what}: {far:e} apart");
    }
    assert!(far <= 1e-5, "{what}: {far:e} apart");
}

/// An undisturbed run in the first layout, from each of whose checkpoints every layout goes on.
fn check(case: &Case, plans: &[Plan]) -> usize {
    check_with(case, plans, Setup::default())
}

fn check_with(case: &Case, plans: &[Plan], setup: Setup<'_>) -> usize {
    let whole = go(case, &plans[0], None, setup);
    let (last, before) = whole.checkpoints.split_last().expect("the final latents");
    assert!(bits(&last.latents) == bits(&whole.latents), "nothing comes after the last step");
    assert!(before.iter().all(|c| bits(&c.latents) != bits(&whole.latents)));
    let mut runs = 0;
    for from in &whole.checkpoints {
        for plan in plans {
            let layouts = (plans[0].layout, plan.layout);
            let what = format!("{} after step {} in {}: {case:?}", layouts.0, from.step, layouts.1);
            let rest = go(case, plan, Some(from), setup);
            same(&whole.latents, &rest.latents, layouts, &what);
            // and what it hands out itself
            let later = whole.checkpoints.iter().filter(|c| c.step > from.step);
            assert_eq!(rest.checkpoints.len(), later.clone().count(), "{what}");
            for (a, b) in later.zip(&rest.checkpoints) {
                assert_eq!(a.step, b.step, "{what}");
                same(&a.latents, &b.latents, layouts, &what);
            }
            runs += 1;
        }
    }
    runs
}

fn case(size: (u32, u32), text: u32, images: usize) -> Case {
    Case { steps: 4, ..Case::new(size, text, images) }
}

/// Plans of the degrees cfg, pp, ring, Ulysses.
fn plans(case: &Case, degrees: &[[u32; 4]], ask: &Ask) -> Vec<Plan> {
    let layout = |[cfg, pp, ring, ulysses]: [u32; 4]| Layout { dp: 1, cfg, pp, ring, ulysses };
    degrees.iter().map(|degrees| case.plan(&Ask { layout: layout(*degrees), ..ask.clone() })).collect()
}

fn exact(case: &Case, degrees: &[[u32; 4]]) -> Vec<Plan> {
    let plans = plans(case, degrees, &Ask::layout(Layout::SERIAL));
    assert!(plans.iter().all(|plan| plan.passes != Passes::Patches && plan.is_exact()));
    plans
}

fn stale(case: &Case, degrees: &[[u32; 4]], patches: usize, warmup: usize) -> Vec<Plan> {
    let ask = Ask::layout(Layout::SERIAL);
    let ask = Ask { pipeline: Pipeline::Stale, patches: Some(patches), warmup, ..ask };
    let plans = plans(case, degrees, &ask);
    assert!(plans.iter().all(|plan| plan.passes == Passes::Patches));
    plans
}

#[test]
fn ulysses_goes_on_in_fewer_ranks_and_in_one() {
    let one = case((80, 48), 7, 1);
    assert_eq!(check(&one, &exact(&one, &[[1, 1, 1, 4], [1, 1, 1, 2], [1, 1, 1, 1]])), 4 * 3);
    assert_eq!(check(&one, &exact(&one, &[[1, 1, 1, 1], [1, 1, 1, 3]])), 4 * 2);
    // so that these are the serial latents
    let whole = go(&one, &exact(&one, &[[1, 1, 1, 4]])[0], None, Setup::default());
    assert!(bits(&whole.latents) == bits(&one.serial()));
}

#[test]
fn branches_go_on() {
    let two = Case { true_cfg: true, ..case((64, 64), 7, 2) };
    let degrees = [[2, 1, 1, 2], [2, 1, 1, 1], [1, 1, 1, 2], [1, 2, 1, 1], [2, 2, 1, 1]];
    check(&two, &exact(&two, &degrees));
}

#[test]
fn the_exact_pipeline_goes_on() {
    let two = case((80, 48), 7, 2);
    check(&two, &exact(&two, &[[1, 2, 1, 1], [1, 1, 1, 2], [1, 1, 1, 1], [1, 2, 1, 2]]));
    check(&two, &exact(&two, &[[1, 2, 1, 2], [1, 2, 1, 1]]));
    let three = case((64, 64), 1, 3);
    check(&three, &exact(&three, &[[1, 3, 1, 1], [1, 2, 1, 1], [1, 1, 1, 3]]));
}

#[test]
fn a_ring_goes_on_within_rounding() {
    let one = case((80, 48), 7, 1);
    check(&one, &exact(&one, &[[1, 1, 2, 1], [1, 1, 1, 1], [1, 1, 3, 1], [1, 1, 2, 2]]));
    let two = case((64, 64), 7, 2);
    check(&two, &exact(&two, &[[1, 2, 2, 2], [1, 1, 2, 1], [1, 2, 1, 2]]));
}

#[test]
fn pipefusion_goes_on_by_warming_up_again() {
    let one = case((80, 48), 7, 1);
    let all = stale(&one, &[[1, 2, 1, 1], [1, 4, 1, 1], [1, 1, 1, 1], [1, 2, 1, 2], [1, 2, 2, 1]], 4, 2);
    // after step 1 and after the last one
    assert_eq!(check(&one, &all), 2 * 5);
    assert_eq!(check(&one, &stale(&one, &[[1, 4, 1, 1], [1, 2, 1, 1]], 4, 2)), 2 * 2);
    assert_eq!(check(&one, &stale(&one, &[[1, 2, 1, 2], [1, 2, 1, 1]], 4, 3)), 3 * 2);
    let two = Case { true_cfg: true, ..case((80, 48), 7, 2) };
    assert_eq!(check(&two, &stale(&two, &[[2, 2, 1, 1], [1, 3, 1, 1], [2, 1, 1, 2]], 3, 2)), 2 * 3);
}

#[test]
fn pipefusion_with_little_or_much_warm_up() {
    let one = case((80, 48), 7, 1);
    let degrees = [[1, 2, 1, 1], [1, 3, 1, 1]];
    for (warmup, checkpoints) in [(0, 1), (1, 1), (4, 4), (9, 4)] {
        assert_eq!(check(&one, &stale(&one, &degrees, 4, warmup)), checkpoints * 2, "warm-up {warmup}");
    }
}

#[test]
fn uneven_shares_and_ranks_without_a_token_go_on() {
    let tiny = case((16, 16), 2, 2);
    check(&tiny, &exact(&tiny, &[[1, 1, 1, 4], [1, 1, 1, 1], [1, 2, 1, 3]]));
    let prime = case((16, 16 * 13), 5, 1);
    check(&prime, &exact(&prime, &[[1, 1, 1, 7], [1, 1, 1, 5]]));
    check(&prime, &stale(&prime, &[[1, 3, 1, 2], [1, 2, 1, 3], [1, 5, 1, 1]], 7, 3));
}

#[test]
fn late_messages_change_nothing() {
    let two = case((64, 64), 7, 2);
    let late = Setup { late: (3, std::time::Duration::from_millis(2)), ..Setup::default() };
    check_with(&two, &exact(&two, &[[1, 2, 1, 2]]), late);
    check_with(&two, &stale(&two, &[[1, 3, 1, 1]], 4, 2), late);
}

#[test]
fn bfloat16_goes_on_bit_for_bit() {
    let bytes: &'static [u8] = Vec::leak(weights(&shape()));
    let source = ModelSource::Embedded(vec![("transformer/model.safetensors", bytes)]);
    let files = WeightFiles::open(&source, "transformer", "model").expect("a file in memory");
    let load = |plan: &Plan, rank: u32| {
        let loader = files.loader(&cpu(), Precision::Bf16);
        let denoiser = Denoiser::load(&loader, &shape(), blocks(plan, rank), TimeDtype::Model);
        Arc::new(denoiser.expect("all weights of a stage"))
    };
    let two = case((80, 48), 7, 2);
    let setup = Setup { weights: Some(&load), ..Setup::default() };
    let work = Work { dtype: DType::Bfloat16, ..two.work() };
    for layout in [Layout { ulysses: 3, ..Layout::SERIAL }, Layout { pp: 2, ring: 2, ..Layout::SERIAL }] {
        let plan = Plan::new(&work, &Ask::layout(layout)).expect("a legal layout");
        check_with(&two, &[plan], setup);
    }
}

#[test]
fn other_latents_make_other_pictures() {
    let two = case((80, 48), 7, 2);
    let plan = &exact(&two, &[[1, 1, 1, 2]])[0];
    let whole = go(&two, plan, None, Setup::default());
    let of = |resume: Resume| go(&two, plan, Some(&Arc::new(resume)), Setup::default()).latents;
    let second = Resume::clone(&whole.checkpoints[1]);
    assert!(bits(&of(second.clone())) == bits(&whole.latents));
    let row = shape().in_channels;
    let mut swapped = second.clone();
    swapped.latents[..2 * row].rotate_left(row);
    assert!(bits(&of(swapped)) != bits(&whole.latents));
    assert!(bits(&of(Resume { step: 3, ..second })) != bits(&whole.latents), "a step is left out");
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused() {
    let two = case((80, 48), 7, 2);
    let values = two.images * two.work().size.image_tokens() * shape().in_channels;
    let refusal = |plan: &Plan, step: usize, values: usize| {
        let (batch, resume) = (two.batch(), Resume { step, latents: vec![0.5; values] });
        let job = RankJob {
            plan: Arc::new(plan.clone()),
            resume: Some(Arc::new(resume)),
            ..RankJob::alone(&two.work().shape, &batch, DType::Float32)
        };
        let (d, encoded) = (crate::engine::denoiser(plan, 0), two.encoded());
        let result = alone(|| d.run(&batch, &schedule(&two), Some(&encoded), &job, &mut Unwatched).err());
        match result {
            Some(PassError::Resume(refusal)) => Some(refusal),
            Some(other) => panic!("{other}"),
            None => None,
        }
    };
    let serial = &exact(&two, &[[1, 1, 1, 1]])[0];
    let not_after = |step, warmup| Some(ResumeError::Step { step, steps: 4, warmup });
    assert_eq!(refusal(serial, 0, values), not_after(0, 0));
    assert_eq!(refusal(serial, 5, values), not_after(5, 0));
    assert_eq!(refusal(serial, 3, values), None);
    let fewer = ResumeError::Values { found: values - 1, expected: values };
    assert_eq!(refusal(serial, 3, values - 1), Some(fewer));
    let stale = &stale(&two, &[[1, 1, 1, 1]], 4, 2)[0];
    assert_eq!(refusal(stale, 1, values), None);
    assert_eq!(refusal(stale, 2, values), not_after(2, 2));
    assert_eq!(refusal(stale, 3, values), not_after(3, 2));
    assert_eq!(refusal(stale, 4, values), None);
}
