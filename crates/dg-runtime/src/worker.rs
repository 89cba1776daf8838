//! The worker actor of one rank: between the supervisor and the compute thread.

use crate::compute::{self, Load, Told};
use crate::job::JobSpec;
use crate::supervisor;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::mpsc::Sender;

pub(crate) struct Worker;

pub(crate) struct Arguments {
    pub(crate) load: Load,
    pub(crate) threads: usize,
    pub(crate) supervisor: ActorRef<supervisor::Message>,
}

pub(crate) enum Message {
    /// Work on a job.
    Run(JobSpec),
    /// From the compute thread.
    Told(Told),
}

pub(crate) struct State {
    jobs: Sender<JobSpec>,
    supervisor: ActorRef<supervisor::Message>,
}

impl Actor for Worker {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        args: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        // the actor may be gone by the time the thread speaks: then nobody needs to know
        let tell = move |told| drop(myself.cast(Message::Told(told)));
        let jobs = compute::start(args.load, args.threads, tell)?;
        Ok(State { jobs, supervisor: args.supervisor })
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let up = match message {
            Message::Run(job) => {
                if let Err(refused) = state.jobs.send(job) {
                    refused.0.end(Err(crate::JobError::Stopped));
                    return Err("the compute thread is gone".into());
                }
                return Ok(());
            }
            Message::Told(Told::Panicked) => return Err("a job panicked".into()),
            Message::Told(Told::Broken(e)) => supervisor::Message::Broken(e),
            Message::Told(Told::Ready) => supervisor::Message::Ready,
            Message::Told(Told::Finished(id)) => supervisor::Message::Finished(id),
        };
        state.supervisor.cast(up)?;
        Ok(())
    }
}
