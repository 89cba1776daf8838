//! One rank that cannot go on ends all of them, at once and by name.

use crate::model::Job;
use crate::ranks::{PATIENCE, Tables, alone, plan, tables};
use burn::tensor::Tensor;
use dg_comm::{CommError, Communicator, Gone, InProcess, Options};
use dg_flux::PassError;
use dg_flux::attend::{Attend, Pass, Projected};
use dg_flux::parallel::{self, Sequence, Share, on_rank};
use dg_flux::watch::Cancelled;
use dg_kernels::Precision;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a rank goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Panic,
    Stop,
    Leave,
}

/// Goes wrong in some block.
struct Faulty {
    inner: Sequence,
    blocks: usize,
    fault: Option<Fault>,
    began: Arc<std::sync::Mutex<Option<Instant>>>,
}

impl Attend for Faulty {
    fn begin(&mut self, pass: Pass) {
        self.inner.begin(pass);
    }

    fn attend(
        &mut self,
        parts: Vec<Projected>,
        scale: f32,
        p: Precision,
    ) -> Result<Vec<Tensor<4>>, PassError> {
        if self.blocks == 0
            && let Some(fault) = self.fault
        {
            *self.began.lock().expect("nobody panics with it") = Some(Instant::now());
            match fault {
                Fault::Panic => panic!("by intention"),
                Fault::Stop | Fault::Leave => return Err(Cancelled.into()),
            }
        }
        self.blocks = self.blocks.wrapping_sub(1);
        self.inner.attend(parts, scale, p)
    }
}

/// The errors of the ranks that did nothing wrong, and how long after the fault all ranks were over.
fn errors(job: &Job, tables: &Tables, culprit: usize, fault: Fault) -> (Vec<PassError>, Duration) {
    let whole = &job.whole();
    let began = Arc::default();
    let names = (0..tables.segments.owners()).map(|rank| format!("rank {rank} (of this test)")).collect();
    let ranks = InProcess::with(Options { names, first: 0, in_flight_max: 64 });
    let one = |comm: InProcess| {
        let (me, comm): (_, Arc<dyn Communicator>) = (comm.rank(), Arc::new(comm));
        let about = parallel::Job { request: 7, patience: PATIENCE };
        let inner = Sequence::new(comm.clone(), &tables.segments, &tables.heads, about).expect("a group");
        let fault = (me == culprit).then_some(fault);
        let mut attend = Faulty { inner, blocks: 11, fault, began: Arc::clone(&began) };
        let share = Share::new(&tables.segments, me);
        let (x, text, rope) = (share.image(&whole.x), share.text(&whole.text), share.rope(&whole.rope));
        let work = || job.denoise(whole, x, text, &rope, &mut attend);
        match fault {
            Some(Fault::Leave) => work(),
            _ => on_rank(comm.as_ref(), work),
        }
    };
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        let spawn = |(rank, comm)| {
            let one = &one;
            // what a rank owns is dropped while it panics
            let body = move || alone(|| catch_unwind(AssertUnwindSafe(|| one(comm))));
            (rank, scope.spawn(body))
        };
        let threads: Vec<_> = ranks.into_iter().enumerate().map(spawn).collect();
        for (rank, thread) in threads {
            let result = thread.join().expect("panics are caught");
            match result {
                Ok(result) if rank != culprit => found.push(result.expect_err("it cannot go through")),
                Ok(_) => {}
                Err(_) => assert!(rank == culprit && matches!(fault, Fault::Panic), "rank {rank} panicked"),
            }
        }
    });
    let began: Option<Instant> = *began.lock().expect("nobody panics with it");
    (found, began.expect("it went wrong").elapsed())
}

fn check(fault: Fault, right: impl Fn(&CommError) -> bool) {
    let job = Job::new((80, 48), 7, 1);
    for (ring, ulysses) in [(1, 4), (4, 1), (2, 2), (3, 2)] {
        let tables = tables(&plan(&job, ring, ulysses));
        for culprit in [0, 2] {
            // the bound is on what ranks do, not on who else needs the processor: one of three tries has to keep it
            let mut tries = (0..3).map(|_| errors(&job, &tables, culprit, fault));
            let kept = tries.find(|(_, took)| *took < Duration::from_secs(1));
            let (errors, _) =
                kept.unwrap_or_else(|| panic!("{fault:?} {ring} {ulysses}: more than a second"));
            assert_eq!(errors.len(), (ring * ulysses) as usize - 1);
            for error in errors {
                let PassError::Comm(error) = error else { panic!("{error:?}") };
                assert!(right(&error), "{error:?}");
                assert!(error.to_string().contains(&format!("rank {culprit} (of this test)")), "{error}");
            }
        }
    }
}

#[test]
fn a_panic_ends_all_ranks() {
    check(Fault::Panic, |e| matches!(e, CommError::PeerGone { how: Gone::Panicked, .. }));
}

#[test]
fn an_error_ends_all_ranks_with_its_cause() {
    check(Fault::Stop, |e| matches!(e, CommError::Aborted { cause, .. } if cause == "cancelled"));
}

#[test]
fn a_rank_that_leaves_ends_all_ranks() {
    check(Fault::Leave, |e| matches!(e, CommError::PeerGone { how: Gone::Lost, .. }));
}

#[test]
fn tables_for_other_ranks_are_refused() {
    let job = Job::new((80, 48), 7, 1);
    let Tables { segments, heads } = tables(&plan(&job, 1, 3));
    let comm: Arc<dyn Communicator> = Arc::new(InProcess::group(2).remove(0));
    let about = parallel::Job { request: 7, patience: PATIENCE };
    let refused = Sequence::new(comm, &segments, &heads, about).err().expect("3 owners, 2 ranks");
    assert!(refused.to_string().contains("2 ranks for a sequence of 3 owners"), "{refused}");
}

#[test]
fn a_rank_that_does_not_come_is_waited_for_no_longer_than_allowed() {
    let job = Job::new((80, 48), 7, 1);
    let Tables { segments, heads } = tables(&plan(&job, 1, 2));
    let mut ranks = InProcess::group(2);
    let _idle = ranks.pop();
    let comm: Arc<dyn Communicator> = Arc::new(ranks.remove(0));
    let about = parallel::Job { request: 7, patience: Duration::from_millis(50) };
    let mut attend = Sequence::new(comm, &segments, &heads, about).expect("a group");
    let (whole, share) = (job.whole(), Share::new(&segments, 0));
    let (x, text, rope) = (share.image(&whole.x), share.text(&whole.text), share.rope(&whole.rope));
    let error = job.denoise(&whole, x, text, &rope, &mut attend).expect_err("nobody answers");
    assert!(matches!(error, PassError::Comm(CommError::Deadline { .. })), "{error:?}");
}
