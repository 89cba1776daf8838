//! The compute thread of one rank: owns its part of the model, works through one job after the other.

use crate::board::{Board, RankState};
use crate::logic::ends::{End, Fault};
use crate::logic::queue::IN_FLIGHT_MAX;
use crate::run::{Part, PartEnd, Run};
use crate::told::{Tell, Told, WorkerId};
use crate::{JobError, StartError};
use dg_comm::{CommError, Counters, Gone};
use dg_core::{GenerateRequest, StepEvent};
use dg_flux::parallel::RankJob;
use dg_flux::watch::Watch;
use dg_flux::{Picture, Pipeline, RunError};
use rayon::ThreadPool;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// What makes pictures, or one rank's part of them.
pub(crate) trait Engine: Send {
    /// See [`Pipeline::generate_on`].
    fn generate(
        &mut self,
        batch: &[GenerateRequest],
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<Picture>>, RunError>;

    /// Bytes of the weights that this rank has.
    fn mapped_bytes(&self) -> u64;
}

impl Engine for Pipeline {
    fn generate(
        &mut self,
        batch: &[GenerateRequest],
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<Picture>>, RunError> {
        self.generate_on(batch, job, watch)
    }

    fn mapped_bytes(&self) -> u64 {
        Self::mapped_bytes(self)
    }
}

/// Loads the engine of a rank (counted over all replicas), for its first worker and for each that replaces a lost one.
pub(crate) type Load = Arc<dyn Fn(usize) -> Result<Box<dyn Engine>, StartError> + Send + Sync>;

/// What a thread is started with.
pub(crate) struct Arguments {
    pub(crate) id: WorkerId,
    pub(crate) load: Load,
    /// Of its pool.
    pub(crate) threads: usize,
    pub(crate) board: Arc<Board>,
    pub(crate) tell: Tell,
}

/// Starts the thread. It ends when the sender is gone, or a job panics.
pub(crate) fn start(args: Arguments) -> Result<SyncSender<Part>, StartError> {
    let (rank, threads) = (args.id.rank, args.threads);
    let refused = |reason: String| StartError::Threads { threads, reason };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("dg-rank{rank}-{i}"))
        .build()
        .map_err(|e| refused(e.to_string()))?;
    let (sender, parts) = sync_channel(IN_FLIGHT_MAX);
    std::thread::Builder::new()
        .name(format!("dg-rank{rank}"))
        .spawn(move || live(&args, &pool, parts))
        .map_err(|e| refused(e.to_string()))?;
    Ok(sender)
}

/// The thread, from loading to its end.
fn live(args: &Arguments, pool: &ThreadPool, parts: Receiver<Part>) {
    let Arguments { id, load, board, tell, .. } = args;
    let begin = board.now();
    let outcome = catch_unwind(AssertUnwindSafe(|| pool.install(|| load(id.rank))));
    board.span(id.rank, None, begin);
    let error = match outcome {
        Ok(Ok(mut engine)) => {
            board.loaded(id.rank, engine.mapped_bytes());
            board.set(id.rank, RankState::Idle);
            tell(Told::Ready(*id));
            work(&mut *engine, pool, &parts, || tell(Told::Lost(*id)));
            // before the engine, as others may wait for what is dropped here
            drop(parts);
            return;
        }
        Ok(Err(e)) => e,
        Err(panic) if board.layout().ranks() == 1 => StartError::Panicked(message(&*panic)),
        Err(panic) => StartError::Panicked(format!("{}: {}", board.name(id.rank), message(&*panic))),
    };
    tell(Told::Broken(*id, error));
}

/// Until the other end hangs up or a job panics: the engine may be in any state then. That is told before the job's
/// owner hears of it, so that the replica gets no other job in between.
fn work(engine: &mut dyn Engine, pool: &ThreadPool, parts: &Receiver<Part>, lost: impl Fn()) {
    for mut part in parts {
        let end = run(engine, pool, &mut part);
        let panicked = matches!(end, End::Failed(Fault::Panic, _));
        if panicked {
            lost();
        }
        part.report(end);
        if panicked {
            return;
        }
    }
}

/// Does one rank's part of a job.
fn run(engine: &mut dyn Engine, pool: &ThreadPool, part: &mut Part) -> PartEnd {
    let Some(job) = part.begin() else { return End::Lost };
    let (rank, run, done) = (part.rank(), &*part.run, job.steps_done());
    run.board.set(rank, RankState::Busy { job: run.job.0 });
    let mut watch = Reporter { run, decodes: run.decodes(part.local), is_denoised: false };
    let (begin, start) = (run.board.now(), Instant::now());
    // the job goes in, so that a panic drops this rank's end of the connections on its way out
    let work = || pool.install(move || connected(engine, &run.batch, job, &mut watch));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let wall = start.elapsed();
    run.board.span(rank, Some(run.job.0), begin);
    run.board.set(rank, if outcome.is_ok() { RankState::Idle } else { RankState::Lost });
    match outcome {
        Ok((result, counters)) => {
            let local = u32::try_from(part.local).unwrap_or(u32::MAX);
            let predicted = result.is_ok().then(|| run.plan.sent_from(local, run.batch.len(), done));
            run.board.worked(rank, wall, &counters, predicted.as_ref());
            match result {
                Ok(pictures) => End::Done(pictures),
                Err(e) => End::Failed(fault(&e), e.into()),
            }
        }
        Err(panic) => End::Failed(Fault::Panic, JobError::Panicked(message(&*panic))),
    }
}

/// Works on the job, then finishes; if that fails, ends the job on all ranks with the cause. A panic ends it too: it
/// drops the communicator.
fn connected(
    engine: &mut dyn Engine,
    batch: &[GenerateRequest],
    job: RankJob,
    watch: &mut dyn Watch,
) -> (Result<Option<Vec<Picture>>, RunError>, Counters) {
    // it may have been cancelled while it waited for this rank
    let work = watch.check().map_err(RunError::from).and_then(|()| engine.generate(batch, &job, watch));
    let result = work.and_then(|pictures| {
        job.comm.finish()?;
        Ok(pictures)
    });
    if let Err(error) = &result {
        // of several aborts the first counts: whoever fails because of another does not hide its name
        job.comm.abort(&error.to_string());
    }
    (result, job.comm.counters())
}

fn fault(error: &RunError) -> Fault {
    match error {
        RunError::Cancelled(_) => Fault::Cancelled,
        // to miss a rank that has done its work is an error of one of the two
        RunError::Comm(CommError::PeerGone { how: Gone::Finished, .. }) => Fault::Own,
        RunError::Comm(CommError::Aborted { .. } | CommError::PeerGone { .. }) => Fault::Echo,
        _ => Fault::Own,
    }
}

struct Reporter<'a> {
    run: &'a Run,
    /// Whether this rank decodes.
    decodes: bool,
    /// Whether the latents are there.
    is_denoised: bool,
}

impl Watch for Reporter<'_> {
    fn event(&mut self, event: StepEvent) {
        let is_last = matches!(&event, StepEvent::Step { step, steps, .. } if step == steps);
        // nobody listening is no reason to stop
        let _ = self.run.events.send(event);
        if is_last && self.decodes && !std::mem::replace(&mut self.is_denoised, true) {
            self.run.denoised();
        }
    }

    fn stop(&self) -> bool {
        self.run.canceller.is_cancelled()
    }
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}
