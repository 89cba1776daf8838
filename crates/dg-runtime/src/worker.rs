//! The worker actor of one rank: owns the compute thread, hands it jobs.

use crate::compute;
use crate::run::Part;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::mpsc::SyncSender;

pub(crate) struct Worker;

pub(crate) enum Message {
    /// Work on a job.
    Run(Part),
}

impl ractor::Message for Message {}

pub(crate) struct State {
    /// The thread ends when this is gone, once it has done what it was given.
    parts: SyncSender<Part>,
}

impl Actor for Worker {
    type Msg = Message;
    type State = State;
    type Arguments = compute::Arguments;

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        args: compute::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { parts: compute::start(args)? })
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Message::Run(part) = message;
        if let Err(e) = state.parts.try_send(part) {
            // its thread has told that it ends; the part tells that it never began
            tracing::debug!("a job for a worker that is gone: {e}");
        }
        Ok(())
    }
}
