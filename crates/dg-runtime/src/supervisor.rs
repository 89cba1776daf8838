//! The supervisor actor: queues jobs, starts workers, replaces lost ones.

use crate::board::{Board, RankState};
use crate::compute::{self, Load};
use crate::job::JobSpec;
use crate::logic::queue::{Action, Event, JobId, Queue, WAITING_MAX};
use crate::plan::job_plan;
use crate::run::Run;
use crate::told::{Tell, Told, WorkerId};
use crate::worker::{self, Worker};
use crate::{EngineOptions, JobError, StartError};
use dg_core::ModelShape;
use dg_plan::Plan;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

pub(crate) struct Supervisor;

pub(crate) struct Arguments {
    pub(crate) load: Load,
    pub(crate) shape: ModelShape,
    pub(crate) options: EngineOptions,
    pub(crate) board: Arc<Board>,
    /// Told once, when all ranks are ready or one is broken.
    pub(crate) started: oneshot::Sender<Result<(), StartError>>,
}

pub(crate) enum Message {
    /// A new job.
    Submit(JobSpec),
    /// From a compute thread.
    Told(Told),
}

impl ractor::Message for Message {}

pub(crate) struct State {
    args: Setup,
    /// Until all ranks are ready or one is broken.
    started: Option<oneshot::Sender<Result<(), StartError>>>,
    queue: Queue,
    /// Jobs that no rank has yet, with their plans.
    waiting: HashMap<JobId, (JobSpec, Arc<Plan>)>,
    /// One per rank.
    workers: Vec<Slot>,
    /// Workers that were started.
    lives: u64,
}

/// What workers and jobs are made with.
struct Setup {
    load: Load,
    shape: ModelShape,
    options: EngineOptions,
    board: Arc<Board>,
    tell: Tell,
    /// Ranks of a replica.
    ranks: usize,
}

/// The place of one rank.
#[derive(Default)]
struct Slot {
    /// The worker that counts; what others say is old.
    life: u64,
    is_ready: bool,
    worker: Option<ActorRef<worker::Message>>,
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        args: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments { load, shape, options, board, started } = args;
        let layout = board.layout();
        let (all, ranks) = (layout.ranks() as usize, layout.replica_ranks() as usize);
        let supervisor = myself.clone();
        // the supervisor may be gone by the time a thread speaks: then nobody needs to know
        let tell: Tell = Arc::new(move |told| drop(supervisor.cast(Message::Told(told))));
        let mut state = State {
            args: Setup { load, shape, options, board, tell, ranks },
            started: Some(started),
            queue: Queue::new(layout.dp as usize, ranks),
            waiting: HashMap::new(),
            workers: (0..all).map(|_| Slot::default()).collect(),
            lives: 0,
        };
        for rank in 0..all {
            state.spawn_worker(rank, &myself).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            Message::Submit(job) => state.submitted(job),
            Message::Told(Told::Broken(id, e)) if state.is_current(id) => {
                state.report_start(Err(e));
                myself.stop(None);
                None
            }
            Message::Told(told) => state.told(told),
        };
        match event {
            Some(event) => state.act(event, &myself).await,
            None => Ok(()),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (SupervisionEvent::ActorFailed(who, _) | SupervisionEvent::ActorTerminated(who, ..)) = &event
        else {
            return Ok(());
        };
        let is = |slot: &Slot| slot.worker.as_ref().is_some_and(|worker| worker.get_id() == who.get_id());
        if let Some(rank) = state.workers.iter().position(is) {
            tracing::warn!("the worker of rank {rank} ended: {event}");
            // after what its thread has said already
            (state.args.tell)(Told::Lost(WorkerId { rank, life: state.workers[rank].life }));
        }
        Ok(())
    }
}

impl State {
    /// Plans the job; one that cannot be planned ends here.
    fn submitted(&mut self, job: JobSpec) -> Option<Event> {
        match job_plan(&self.args.shape, &self.args.options, &job.batch) {
            Ok(plan) => {
                let id = job.id;
                self.waiting.insert(id, (job, Arc::new(plan)));
                Some(Event::Submitted(id))
            }
            Err(refusal) => {
                job.end(Err(refusal.into()));
                None
            }
        }
    }

    fn told(&mut self, told: Told) -> Option<Event> {
        match told {
            Told::Ready(id) if self.is_current(id) => {
                self.workers[id.rank].is_ready = true;
                if self.workers.iter().all(|slot| slot.is_ready) {
                    self.report_start(Ok(()));
                }
                Some(Event::Ready(id.rank))
            }
            Told::Lost(id) if self.is_current(id) => {
                let slot = &mut self.workers[id.rank];
                slot.is_ready = false;
                if let Some(worker) = slot.worker.take() {
                    worker.stop(None);
                }
                tracing::warn!("{} is lost", self.args.board.name(id.rank));
                Some(Event::Lost(id.rank))
            }
            Told::Denoised(job) => Some(Event::Denoised(job)),
            Told::Ended { job, has_lost } => Some(Event::Ended { job, has_lost }),
            Told::Orphaned(spec, plan) => {
                let id = spec.id;
                self.waiting.insert(id, (spec, plan));
                Some(Event::Orphaned(id))
            }
            // of a worker that has been replaced
            Told::Ready(_) | Told::Lost(_) | Told::Broken(..) => None,
        }
    }

    fn is_current(&self, id: WorkerId) -> bool {
        self.workers.get(id.rank).is_some_and(|slot| slot.life == id.life && slot.worker.is_some())
    }

    async fn act(&mut self, event: Event, myself: &ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        for action in self.queue.handle(event) {
            match action {
                Action::Start { job, replica } => self.start(job, replica),
                Action::Refuse(id) => self.end(id, JobError::QueueFull(WAITING_MAX)),
                Action::Fail(id) => self.end(id, JobError::Stopped),
                Action::Respawn(rank) => self.spawn_worker(rank, myself).await?,
                Action::Stop => myself.stop(None),
            }
        }
        Ok(())
    }

    /// Gives the job to the ranks of the replica. A rank that does not get its part has lost it.
    fn start(&mut self, job: JobId, replica: usize) {
        let Some((spec, plan)) = self.waiting.remove(&job) else { return };
        let Setup { board, tell, options, ranks, .. } = &self.args;
        let at = (board, replica * ranks);
        for part in Run::parts(spec, plan, at, options.parallel.patience, tell.clone()) {
            let worker = self.workers.get(part.rank()).and_then(|slot| slot.worker.as_ref());
            let sent = worker.map(|worker| worker.cast(worker::Message::Run(part)));
            if !matches!(sent, Some(Ok(()))) {
                tracing::debug!("job {} went to a worker that is gone", job.0);
            }
        }
    }

    async fn spawn_worker(
        &mut self,
        rank: usize,
        myself: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        self.lives += 1;
        let id = WorkerId { rank, life: self.lives };
        let Setup { load, options, board, tell, .. } = &self.args;
        let (load, board, tell) = (load.clone(), board.clone(), tell.clone());
        let args = compute::Arguments { id, load, threads: options.threads.get(), board, tell };
        // before it can be anything else
        self.args.board.set(rank, RankState::Loading);
        let (worker, _) = Actor::spawn_linked(None, Worker, args, myself.get_cell()).await?;
        self.workers[rank] = Slot { life: self.lives, is_ready: false, worker: Some(worker) };
        Ok(())
    }

    fn report_start(&mut self, result: Result<(), StartError>) {
        match (self.started.take(), result) {
            // the starter may have gone away
            (Some(started), result) => drop(started.send(result)),
            (None, Err(e)) => tracing::error!("a worker could not be replaced: {e}"),
            (None, Ok(())) => {}
        }
    }

    /// Ends a job that no rank has; the ranks end the others.
    fn end(&mut self, id: JobId, error: JobError) {
        if let Some((job, _)) = self.waiting.remove(&id) {
            job.end(Err(error));
        }
    }
}
