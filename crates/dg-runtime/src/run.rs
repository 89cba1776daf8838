//! One job on the ranks of a replica: what they share, and each rank's part of it.

use crate::JobError;
use crate::board::Board;
use crate::job::{BEGINNINGS_MAX, Canceller, JobSpec};
use crate::logic::ends::{End, Ends, Fault, Outcome};
use crate::logic::queue::JobId;
use crate::told::{Tell, Told};
use dg_comm::{Communicator, InProcess, Options, Recording};
use dg_core::{ExitCode, GenerateRequest, StepEvent};
use dg_flux::Picture;
use dg_flux::parallel::RankJob;
use dg_plan::Plan;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// How a job ended on one rank: with pictures, if it is the one that decodes.
pub(crate) type PartEnd = End<Option<Vec<Picture>>, JobError>;
type PartEnds = Ends<Option<Vec<Picture>>, JobError>;

/// What the ranks of a replica share about a job.
pub(crate) struct Run {
    pub(crate) job: JobId,
    pub(crate) batch: Arc<[GenerateRequest]>,
    pub(crate) canceller: Canceller,
    pub(crate) events: UnboundedSender<StepEvent>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) board: Arc<Board>,
    /// The replica's first rank, counted over all replicas.
    first: usize,
    patience: Duration,
    tell: Tell,
    /// Until the last rank has told how it ended.
    open: Mutex<Option<(JobSpec, PartEnds)>>,
}

/// One rank's part of a job. Dropped without a [report](Self::report), it has never begun.
pub(crate) struct Part {
    pub(crate) run: Arc<Run>,
    /// Rank within the replica.
    pub(crate) local: usize,
    /// Until the work begins.
    comm: Option<Arc<dyn Communicator>>,
    is_told: bool,
}

impl Run {
    /// Makes the parts of a job for the replica that begins at rank `first`, each with its end of new connections
    /// between these ranks: what ends this job ends no other.
    pub(crate) fn parts(
        spec: JobSpec,
        plan: Arc<Plan>,
        (board, first): (&Arc<Board>, usize),
        patience: Duration,
        tell: Tell,
    ) -> Vec<Part> {
        let ranks = plan.ranks() as usize;
        let run = Arc::new(Self {
            job: spec.id,
            batch: spec.batch.clone(),
            canceller: spec.canceller.clone(),
            events: spec.events.clone(),
            plan,
            board: board.clone(),
            first,
            patience,
            tell,
            open: Mutex::new(Some((spec, Ends::new(ranks)))),
        });
        let names = (first..first + ranks).map(|rank| board.name(rank)).collect();
        let comms = InProcess::with(Options { names, ..Options::ranks(first..first + ranks) });
        let part = |(local, comm): (usize, InProcess)| {
            let comm: Arc<dyn Communicator> = match board.trace() {
                Some(trace) => Arc::new(Recording::new(comm, trace.clone())),
                None => Arc::new(comm),
            };
            Part { run: run.clone(), local, comm: Some(comm), is_told: false }
        };
        comms.into_iter().enumerate().map(part).collect()
    }

    /// Whether this rank of the replica decodes.
    pub(crate) fn decodes(&self, local: usize) -> bool {
        self.plan.decoder_rank(0) as usize == local
    }

    /// The job's latents are there.
    pub(crate) fn denoised(&self) {
        (self.tell)(Told::Denoised(self.job));
    }

    fn report(&self, local: usize, end: PartEnd) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((spec, mut ends)) = open.take() else { return };
        match ends.report(local, end) {
            None => *open = Some((spec, ends)),
            Some(outcome) => {
                drop(open);
                self.close(spec, outcome);
            }
        }
    }

    /// Tells the owner and the supervisor.
    fn close(&self, mut spec: JobSpec, outcome: Outcome<Option<Vec<Picture>>, JobError>) {
        let mut has_lost = false;
        let result = match outcome {
            Outcome::Done(results) => results.into_iter().flatten().next().ok_or_else(|| JobError::Run {
                reason: format!("no rank has pictures of job {}", self.job.0),
                hint: Some("this is a bug: report it with the command and the model".into()),
                exit: ExitCode::Failed,
            }),
            Outcome::Failed { rank, fault, error } => {
                has_lost = fault == Fault::Panic;
                Err(self.named(rank, error))
            }
            Outcome::Orphaned { .. } if spec.restarts + 1 < BEGINNINGS_MAX => {
                spec.restarts += 1;
                return (self.tell)(Told::Orphaned(spec, self.plan.clone()));
            }
            Outcome::Orphaned { rank } => {
                let reason = format!("lost through other jobs, {BEGINNINGS_MAX} times in a row");
                let hint = Some("submit it again".into());
                Err(self.named(rank, JobError::Run { reason, hint, exit: ExitCode::Failed }))
            }
        };
        // first, so that what the owner submits next finds these ranks free
        (self.tell)(Told::Ended { job: spec.id, has_lost });
        spec.end(result);
    }

    /// Errors name their rank where there is a choice.
    fn named(&self, local: usize, error: JobError) -> JobError {
        if self.board.layout().ranks() == 1 {
            return error;
        }
        error.on(&self.board.name(self.first + local))
    }
}

impl Part {
    /// Rank, counted over all replicas.
    pub(crate) fn rank(&self) -> usize {
        self.run.first + self.local
    }

    /// What the engine is told; once. Whoever holds it holds the rank's end of the connections: to drop it is to die,
    /// for the other ranks.
    pub(crate) fn begin(&mut self) -> Option<RankJob> {
        let Run { plan, job, patience, .. } = &*self.run;
        let comm = self.comm.take()?;
        let resume = None;
        Some(RankJob { plan: plan.clone(), comm, request: job.0, patience: *patience, resume })
    }

    /// The job has ended on this rank. With the last rank, the job has ended.
    pub(crate) fn report(mut self, end: PartEnd) {
        self.is_told = true;
        self.run.report(self.local, end);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // first, so that the others hear of it
        self.comm = None;
        if !self.is_told {
            self.run.report(self.local, End::Lost);
        }
    }
}
