//! The supervisor actor: queues jobs, starts workers, replaces lost ones.

use crate::compute::Load;
use crate::job::JobSpec;
use crate::logic::queue::{Action, Event, JobId, Queue, WAITING_MAX};
use crate::worker::{self, Worker};
use crate::{JobError, StartError};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::HashMap;
use tokio::sync::oneshot;

pub(crate) struct Supervisor;

pub(crate) struct Arguments {
    pub(crate) load: Load,
    pub(crate) threads: usize,
    /// Told once, when the first worker is ready or broken.
    pub(crate) started: oneshot::Sender<Result<(), StartError>>,
}

pub(crate) enum Message {
    /// A new job.
    Submit(JobSpec),
    /// The worker has loaded the model.
    Ready,
    /// The worker could not load the model.
    Broken(StartError),
    /// The worker has ended a job.
    Finished(JobId),
}

pub(crate) struct State {
    load: Load,
    threads: usize,
    started: Option<oneshot::Sender<Result<(), StartError>>>,
    queue: Queue,
    waiting: HashMap<JobId, JobSpec>,
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
        let mut state = State {
            load: args.load,
            threads: args.threads,
            started: Some(args.started),
            queue: Queue::default(),
            waiting: HashMap::new(),
            worker: None,
        };
        state.spawn_worker(&myself).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            Message::Submit(job) => {
                let id = job.id;
                state.waiting.insert(id, job);
                Event::Submitted(id)
            }
            Message::Ready => {
                state.report_start(Ok(()));
                Event::WorkerReady
            }
            Message::Broken(e) => {
                state.report_start(Err(e));
                myself.stop(None);
                return Ok(());
            }
            Message::Finished(id) => Event::Finished(id),
        };
        state.act(event, &myself).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, reason) = event {
            tracing::warn!("a worker failed: {reason}");
            state.worker = None;
            state.act(Event::WorkerLost, &myself).await?;
        }
        Ok(())
    }
}

impl State {
    async fn act(&mut self, event: Event, myself: &ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        for action in self.queue.handle(event) {
            match action {
                Action::Start(id) => {
                    let (Some(job), Some(worker)) = (self.waiting.remove(&id), &self.worker) else {
                        continue;
                    };
                    worker.cast(worker::Message::Run(job))?;
                }
                Action::Refuse(id) => self.end(id, JobError::QueueFull(WAITING_MAX)),
                Action::Fail(id) => self.end(id, JobError::Stopped),
                Action::Respawn => self.spawn_worker(myself).await?,
                Action::Stop => myself.stop(None),
            }
        }
        Ok(())
    }

    async fn spawn_worker(&mut self, myself: &ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        let args =
            worker::Arguments { load: self.load.clone(), threads: self.threads, supervisor: myself.clone() };
        let (worker, _) = Actor::spawn_linked(None, Worker, args, myself.get_cell()).await?;
        self.worker = Some(worker);
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

    /// Ends a job that never reached a worker; one that did has been told by the compute thread.
    fn end(&mut self, id: JobId, error: JobError) {
        if let Some(job) = self.waiting.remove(&id) {
            job.end(Err(error));
        }
    }
}
