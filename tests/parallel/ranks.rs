//! Runs a job on threads that share its sequence.

use crate::model::{Job, STEPS, Whole, shape};
use dg_comm::{Call, Class, Communicator, Delayed, Event, EventKind, InProcess, Recording, Tag, Trace};
use dg_core::DType;
use dg_core::report::Sent;
use dg_flux::PassError;
use dg_flux::parallel::{self, Sequence, Share, gather, on_rank};
use dg_kernels::to_vec;
use dg_plan::{Ask, HeadSplit, Layout, Plan, SegmentTable, Work, known};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// More than any message here has to be waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Ulysses degree, and owners of all tokens.
#[derive(Clone)]
pub(crate) struct Tables {
    pub(crate) segments: SegmentTable,
    pub(crate) heads: HeadSplit,
}

/// What a run left behind.
pub(crate) struct Ran {
    /// Of all image tokens, on the first rank.
    pub(crate) latents: Vec<f32>,
    /// By rank, as the communicator counted.
    pub(crate) counted: Vec<BTreeMap<String, Sent>>,
    pub(crate) events: Vec<Event>,
}

/// The plan of ring × Ulysses for a job.
pub(crate) fn plan(job: &Job, ring: u32, ulysses: u32) -> Plan {
    let mut model = known::flux_dev();
    model.transformer = shape();
    let work = Work {
        text_tokens: job.text,
        steps: STEPS,
        images: job.images,
        request_images: job.images,
        batch: job.images,
        dtype: job.dtype,
        ..Work::one(model, job.size)
    };
    Plan::new(&work, &Ask::layout(Layout { ring, ulysses, ..Layout::SERIAL })).expect("a legal layout")
}

/// The tables of a plan.
pub(crate) fn tables(plan: &Plan) -> Tables {
    Tables { segments: plan.segments.clone(), heads: plan.heads.clone() }
}

/// One rank's whole work: its share, all steps, and what it has to bring to the first rank.
pub(crate) fn rank(
    job: &Job,
    whole: &Whole,
    tables: &Tables,
    comm: &Arc<dyn Communicator>,
) -> Result<Option<Vec<f32>>, PassError> {
    let about = parallel::Job { request: 7, patience: PATIENCE };
    let mut attend = Sequence::new(comm.clone(), &tables.segments, &tables.heads, about)?;
    let share = Share::new(&tables.segments, comm.rank());
    let (x, text, rope) = (share.image(&whole.x), share.text(&whole.text), share.rope(&whole.rope));
    let x = job.denoise(whole, x, text, &rope, &mut attend)?;
    let call = Call::within(PATIENCE, Class::Gather, Tag::new(7));
    let all = gather(comm.as_ref(), &tables.segments, x, &call, job.precision())?;
    Ok(all.map(to_vec))
}

/// Runs `job` with late messages if `late` says so, each rank in a pool of its own.
pub(crate) fn run(job: &Job, whole: &Whole, tables: &Tables, late: Option<(u64, Duration)>) -> Ran {
    run_each(job, &|_| whole, tables, late)
}

/// The same with inputs of its own for each rank.
pub(crate) fn run_each<'a>(
    job: &Job,
    whole: &(dyn Fn(usize) -> &'a Whole + Sync),
    tables: &Tables,
    late: Option<(u64, Duration)>,
) -> Ran {
    let trace = Trace::new();
    let ranks = InProcess::group(tables.segments.owners());
    let (mut latents, mut counted) = (None, Vec::new());
    std::thread::scope(|scope| {
        let spawn = |inner: InProcess| {
            let trace = trace.clone();
            scope.spawn(move || {
                let (seed, delay_max) = late.unwrap_or_default();
                let comm = Recording::new(Delayed::new(inner, seed, delay_max), trace);
                let comm: Arc<dyn Communicator> = Arc::new(comm);
                let work = || rank(job, whole(comm.rank()), tables, &comm);
                let result = alone(|| on_rank(comm.as_ref(), work));
                (result.expect("all ranks go through"), comm.counters().sent())
            })
        };
        let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
        for thread in threads {
            let (all, sent) = thread.join().expect("no rank panics");
            latents = latents.take().or(all);
            counted.push(sent);
        }
    });
    Ran { latents: latents.expect("the first rank has them"), counted, events: trace.events() }
}

/// In a pool of one thread, as ranks of one machine have their own.
pub(crate) fn alone<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread").install(f)
}

impl Ran {
    /// Fails unless every rank sent what `plan` predicts: bytes, messages and peers of every class.
    pub(crate) fn check_bytes(&self, plan: &Plan, images: usize) {
        let traced = traced(&self.events, self.counted.len());
        for rank in 0..plan.ranks() {
            let mut predicted = plan.sent(rank, images);
            // these runs begin with embeddings on all ranks
            predicted.0.remove(&dg_plan::Class::Embeds);
            let predicted: BTreeMap<_, _> =
                predicted.0.into_iter().map(|(class, sent)| (class.name().to_string(), sent)).collect();
            assert_eq!(self.counted[rank as usize], predicted, "rank {rank} of {}", plan.layout);
            assert_eq!(traced[rank as usize], predicted, "rank {rank} of {}", plan.layout);
        }
    }
}

/// What each rank handed over, counted from the trace of single messages.
pub(crate) fn traced(events: &[Event], ranks: usize) -> Vec<BTreeMap<String, Sent>> {
    let mut all = vec![BTreeMap::<String, Sent>::new(); ranks];
    for e in events.iter().filter(|e| e.kind == EventKind::Send) {
        let sent = all[e.rank].entry(e.envelope.class.name().into()).or_default();
        sent.bytes += e.bytes;
        sent.messages += 1;
        *sent.to.entry(e.peer as u32).or_default() += e.bytes;
    }
    all
}

/// Largest difference as a part of the largest value of `serial`.
pub(crate) fn distance(serial: &[f32], other: &[f32]) -> f32 {
    assert_eq!(serial.len(), other.len());
    // `max` would pass over NaN
    assert!(serial.iter().chain(other).all(|x| x.is_finite()), "not finite");
    let top = serial.iter().fold(0f32, |top, x| top.max(x.abs()));
    let far = serial.iter().zip(other).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
    assert!(top > 0.0, "all is 0");
    far / top
}

/// The bits, so that 0 and -0 differ and NaN equals itself.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// A job in bfloat16.
pub(crate) fn in_bf16(job: Job) -> Job {
    Job { dtype: DType::Bfloat16, ..job }
}
