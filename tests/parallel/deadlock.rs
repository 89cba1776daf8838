//! No layout stands still, however late messages are, and none outlives a rank that fails.

use crate::engine::{Case, Setup, blocks, denoiser, layouts, run_jobs, work};
use crate::ranks::{alone, bits, distance};
use burn::tensor::Tensor;
use dg_comm::{
    Block, BlockShape, Call, CommError, Communicator, Counters, Gone, InProcess, Options, Pending, Place,
    Side,
};
use dg_core::StepEvent;
use dg_flux::PassError;
use dg_flux::parallel::on_rank;
use dg_flux::watch::{Unwatched, Watch};
use dg_plan::{Ask, Layout, Pipeline, Plan};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// SplitMix64: seeded, so that a failure can be had again.
struct Random(u64);

impl Random {
    /// From 0 up to `n`, which is not reached.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A tiny picture in some layout of 1 to `ranks_max` ranks.
    fn plan(&mut self, ranks_max: usize) -> (Case, Plan) {
        loop {
            let ranks = 1 + self.below(ranks_max) as u32;
            let replicas: Vec<Layout> = layouts(ranks).into_iter().filter(|l| l.dp == 1).collect();
            let layout = self.one_of(&replicas);
            let size = self.one_of(&[(16, 16), (32, 16), (48, 16), (32, 32), (80, 16)]);
            let new = Case::new(size, self.one_of(&[1, 2, 5]), 1 + self.below(3));
            let true_cfg = layout.cfg == 2 || self.below(3) == 0;
            let case = Case { steps: 2 + self.below(2) as u32, true_cfg, ..new };
            let tokens = (size.0 * size.1 / 256) as usize;
            let ask = Ask {
                pipeline: self.one_of(&[Pipeline::Auto, Pipeline::Exact, Pipeline::Stale]),
                patches: Some(1 + self.below(tokens)),
                warmup: self.below(4),
                ..Ask::layout(layout)
            };
            // the exact pipeline is refused if there are too few streams
            if let Ok(plan) = Plan::new(&case.work(), &ask) {
                return (case, plan);
            }
        }
    }
}

fn random_layouts(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (case, plan) = Random(seed).plan(8);
        let setup = Setup { late: (seed, Duration::from_micros(400)), ..Setup::default() };
        let ran = run_jobs(&[(case, plan.clone())], setup);
        ran.check_bytes(&plan, case.images);
        let what = || format!("seed {seed}: {} {:?} {case:?}", plan.layout, plan.passes);
        if plan.is_exact() {
            let serial = case.serial();
            let far = distance(&serial, &ran.latents);
            let is_same = bits(&serial) == bits(&ran.latents);
            assert!(if plan.layout.ring > 1 { far <= 1e-5 } else { is_same }, "{} {far:e}", what());
        } else {
            let is_whole = ran.latents.len() == case.serial().len();
            assert!(is_whole && ran.latents.iter().all(|x| x.is_finite()), "{}", what());
        }
    }
}

#[test]
fn two_hundred_and_fifty_layouts_with_late_messages_end() {
    random_layouts(0..250);
}

#[test]
fn two_hundred_and_fifty_more_layouts_with_late_messages_end() {
    random_layouts(250..500);
}

/// More patches than messages may be on their way, and the last step gives no credit.
#[test]
fn many_patches_end() {
    let case = Case { steps: 3, ..Case::new((192, 192), 1, 1) };
    let layout = Layout { pp: 3, ..Layout::SERIAL };
    let ask = Ask { pipeline: Pipeline::Stale, patches: Some(144), ..Ask::layout(layout) };
    let plan = case.plan(&ask);
    let setup = Setup { late: (1, Duration::from_millis(1)), ..Setup::default() };
    run_jobs(&[(case, plan.clone())], setup).check_bytes(&plan, 1);
}

/// How a rank goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A call between ranks panics.
    Panic,
    /// A call between ranks fails.
    Error,
    /// Somebody stops the run.
    Stop,
}

/// Counts down to the fault, and knows when it was.
#[derive(Clone)]
struct Fuse {
    fault: Option<Fault>,
    /// Calls and looks so far.
    calls: Arc<AtomicUsize>,
    /// The one that goes wrong.
    at: usize,
    began: Arc<Mutex<Option<Instant>>>,
}

impl Fuse {
    /// Counts one; whether it is the one that goes wrong.
    fn is_now(&self) -> bool {
        let is_now = self.calls.fetch_add(1, Ordering::Relaxed) == self.at && self.fault.is_some();
        if is_now {
            *self.began.lock().expect("nobody panics with it") = Some(Instant::now());
        }
        is_now
    }

    fn call(&self, call: &Call) -> dg_comm::Result<()> {
        match self.fault {
            Some(Fault::Stop) => Ok(()),
            fault if self.is_now() => match fault {
                Some(Fault::Panic) => panic!("by intention"),
                _ => {
                    let place = Place::new(call, Side::Neither, None);
                    Err(CommError::Invalid { place, what: "by intention".into() })
                }
            },
            _ => Ok(()),
        }
    }
}

/// Goes wrong in some call.
struct Faulty {
    inner: InProcess,
    fuse: Fuse,
}

impl Communicator for Faulty {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> dg_comm::Result<()> {
        self.fuse.call(call)?;
        self.inner.send(to, call, block)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> dg_comm::Result<Pending> {
        self.fuse.call(call)?;
        self.inner.post_recv(from, call, shape)
    }

    fn abort(&self, cause: &str) {
        self.inner.abort(cause);
    }

    fn check(&self) -> dg_comm::Result<()> {
        self.inner.check()
    }

    fn finish(&self) -> dg_comm::Result<()> {
        self.inner.finish()
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// Stops when the fuse is down.
struct Stopping(Fuse);

impl Watch for Stopping {
    fn see(&mut self, name: &str, x: &Tensor<3>) {
        Unwatched.see(name, x);
    }

    fn event(&mut self, event: StepEvent) {
        Unwatched.event(event);
    }

    fn stop(&self) -> bool {
        self.0.fault == Some(Fault::Stop) && self.0.is_now()
    }
}

/// What became of one rank: its result, or a panic.
type End = std::thread::Result<Result<Option<Vec<f32>>, PassError>>;

/// Runs `case` with a fuse on one rank.
fn ends(case: &Case, plan: &Arc<Plan>, culprit: usize, fuse: &Fuse) -> Vec<End> {
    let names = (0..plan.ranks()).map(|rank| format!("rank {rank} (of this test)")).collect();
    let ranks = InProcess::with(Options { names, first: 0, in_flight_max: 64 });
    std::thread::scope(|scope| {
        let spawn = |inner: InProcess| {
            let (rank, plan) = (inner.rank(), plan);
            let other = Fuse { fault: None, calls: Arc::default(), ..fuse.clone() };
            let fuse = if rank == culprit { fuse.clone() } else { other };
            let one = move || {
                let comm: Arc<dyn Communicator> = Arc::new(Faulty { inner, fuse: fuse.clone() });
                let with = (&*denoiser(plan, rank as u32), 7, None);
                on_rank(comm.as_ref(), || work(case, plan, with, &comm, &mut Stopping(fuse)))
            };
            // what a rank owns is dropped while it panics
            scope.spawn(move || alone(|| catch_unwind(AssertUnwindSafe(one))))
        };
        let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    })
}

/// Fails unless all ranks end with the right error; gives how long they took to. Late in a run, ranks that have
/// done their part may be through.
fn check_fault(
    case: &Case,
    plan: &Arc<Plan>,
    (culprit, fault, at): (usize, Fault, usize),
    is_late: bool,
) -> Duration {
    let fuse = Fuse { fault: Some(fault), calls: Arc::default(), at, began: Arc::default() };
    let ends = ends(case, plan, culprit, &fuse);
    let began: Option<Instant> = *fuse.began.lock().expect("nobody panics with it");
    let took = began.expect("it went wrong").elapsed();
    let what = format!("{fault:?} at {at} of rank {culprit} of {} {:?}", plan.layout, plan.passes);
    for (rank, end) in ends.into_iter().enumerate() {
        match (end, fault) {
            (Err(_), Fault::Panic) if rank == culprit => {}
            (Ok(Err(PassError::Cancelled(_))), Fault::Stop) if rank == culprit => {}
            (Ok(Err(PassError::Comm(CommError::Invalid { .. }))), Fault::Error) if rank == culprit => {}
            (Ok(Err(PassError::Comm(error))), _) if rank != culprit => {
                assert!(names(&error, culprit, fault), "{what}: rank {rank} says {error:?}");
            }
            (Ok(Ok(_)), _) if rank != culprit && is_late => {}
            (end, _) => panic!("{what}: rank {rank} ended with {end:?}"),
        }
    }
    took
}

/// Whether another rank's `error` says who began and why.
fn names(error: &CommError, culprit: usize, fault: Fault) -> bool {
    let is_right = match (error, fault) {
        (CommError::PeerGone { rank, how: Gone::Panicked, .. }, Fault::Panic) => rank.rank == culprit,
        (CommError::Aborted { by, cause, .. }, Fault::Error) => {
            by.rank == culprit && cause.contains("by intention")
        }
        (CommError::Aborted { by, cause, .. }, Fault::Stop) => by.rank == culprit && cause == "cancelled",
        _ => false,
    };
    is_right && error.to_string().contains(&format!("rank {culprit} (of this test)"))
}

/// Faults in the first part of a run, while every rank has something left to do with the others; if `is_late`, in
/// any part of it.
fn faults(seeds: std::ops::Range<u64>, is_late: bool) {
    for seed in seeds {
        let mut random = Random(seed);
        let (case, plan) = loop {
            let (case, plan) = random.plan(8);
            if plan.ranks() > 1 {
                break (case, Arc::new(plan));
            }
        };
        let culprit = random.below(plan.ranks() as usize);
        let fault = [Fault::Panic, Fault::Error, Fault::Stop][seed as usize % 3];
        // how many calls there are, to choose one of them
        let quiet = Fuse { fault: None, calls: Arc::default(), at: 0, began: Arc::default() };
        let all = ends(&case, &plan, culprit, &quiet);
        assert!(all.iter().all(|end| matches!(end, Ok(Ok(_)))), "{} {:?}", plan.layout, plan.passes);
        let count = match fault {
            // a look after every block of the first of at least two steps
            Fault::Stop => blocks(&plan, culprit as u32).len(),
            _ if is_late => quiet.calls.load(Ordering::Relaxed),
            _ => (quiet.calls.load(Ordering::Relaxed) * 2 / 5).max(1),
        };
        let at = random.below(count);
        // the bound is on what ranks do, not on who else needs the processor: one of three tries has to keep it
        let mut tries = (0..3).map(|_| check_fault(&case, &plan, (culprit, fault, at), is_late));
        let is_kept = tries.any(|took| took < Duration::from_secs(1));
        assert!(is_kept, "seed {seed}: {fault:?} in {} took more than a second", plan.layout);
    }
}

#[test]
fn a_fault_while_all_are_at_work_ends_all_ranks() {
    faults(1000..1060, false);
}

#[test]
fn a_fault_in_any_call_leaves_no_rank_waiting() {
    faults(1060..1120, true);
}
