//! The process of a rank: an actor that hears its agent, and a thread that computes.
//!
//! The actor never waits for the thread: orders to stop get through while it computes, and when the agent is gone, so
//! is the process.

mod attempt;
mod compute;
mod device;
mod fault;
pub(crate) use fault::is_out_of_memory;
#[cfg(feature = "cuda")]
mod gpu;
mod told;

use super::job::JobBody;
use super::pipe;
use super::protocol::{RankIn, RankOrder, RankOut, RankSay, RankSetup};
use crate::failpoint::{self, Failpoint};
use crate::fleet::OpenModel;
use crate::logic::cluster::Stamp;
use crate::logic::cluster::epoch::Trouble;
use bytes::Bytes;
use dg_core::ExitCode;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::mpsc;
use told::{Told, Verdict};

/// Runs the rank whose agent started this process, until the agent ends it. Needs a standard input that is the pipe.
///
/// # Errors
/// If this process was not started by an agent.
pub fn run(open: OpenModel) -> Result<ExitCode, String> {
    dg_map::keep_large_blocks();
    // Whatever happens to the agent, its ranks go with it.
    let signal = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| e.to_string())?.block_on(live(open))
}

async fn live(open: OpenModel) -> Result<ExitCode, String> {
    let not_started = |e: &dyn std::fmt::Display| format!("standard input is no pipe of an agent: {e}");
    let stream = pipe::inherited().map_err(|e| not_started(&e))?;
    let (mut incoming, outgoing) = stream.into_split();
    let (first, _) = pipe::read::<RankIn>(&mut incoming).await.map_err(|e| not_started(&e))?;
    let RankIn::Setup(setup) = first else { return Err(not_started(&"it does not begin with a set-up")) };
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent.and_then(|pid| u32::try_from(pid).ok()) != Some(setup.agent) {
        return Ok(ExitCode::Ok);
    }
    let (out, frames) = mpsc::unbounded_channel();
    tokio::spawn(pipe::write(outgoing, frames));
    let failpoint = std::env::var(failpoint::VARIABLE).ok().filter(|text| !text.is_empty());
    let failpoint = failpoint.map(|text| text.parse::<Failpoint>()).transpose().map_err(|e| e.to_string())?;
    let args = Arguments { setup, open, out: out.clone(), failpoint };
    let (actor, _) = Actor::spawn(None, RankActor, args).await.map_err(|e| e.to_string())?;
    let _ = out.send((RankOut::Ready, Bytes::new()));
    while let Ok((message, body)) = pipe::read::<RankIn>(&mut incoming).await {
        if actor.cast(Message::Heard(message, body)).is_err() {
            break;
        }
    }
    // The agent is gone, or ends this rank.
    Ok(ExitCode::Ok)
}

struct Arguments {
    setup: RankSetup,
    open: OpenModel,
    out: mpsc::UnboundedSender<(RankOut, Bytes)>,
    failpoint: Option<Failpoint>,
}

struct RankActor;

/// What the actor hears.
enum Message {
    /// From the agent.
    Heard(RankIn, Bytes),
    /// From the thread: the work of this epoch that it was given last has ended.
    Ended(Stamp, RankSay, Bytes),
    /// From the thread, in the middle of its work.
    Said(Stamp, RankSay, Bytes),
}

impl ractor::Message for Message {}

/// What the thread is given.
enum Work {
    Prepare(Stamp, super::protocol::RankTeam, Box<JobBody>, told::Stop),
    Group(Stamp, dg_net::plane::EpochKey, Vec<dg_net::plane::Member>),
    Run(Stamp, u32, Bytes),
}

struct State {
    told: Told,
    work: Sender<Work>,
    out: mpsc::UnboundedSender<(RankOut, Bytes)>,
}

impl Actor for RankActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, me: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        let out = args.out.clone();
        let work = compute::start(args, Arc::new(move |message| drop(me.cast(message))))?;
        Ok(State { told: Told::default(), work, out })
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Heard(RankIn::Setup(_), _) => {}
            Message::Heard(RankIn::Fence, _) => {
                let answer = state.told.fence();
                state.answer(answer);
            }
            Message::Heard(RankIn::Order(epoch, order), body) => state.order(epoch, order, body),
            Message::Said(epoch, say, body) => {
                if state.told.is_current(epoch) {
                    state.say(epoch, say, body);
                }
            }
            Message::Ended(epoch, say, body) => {
                let answer = state.told.ended(epoch, say, body);
                state.answer(answer);
            }
        }
        Ok(())
    }
}

impl State {
    fn order(&mut self, epoch: Stamp, order: RankOrder, body: Bytes) {
        match self.told.order(epoch, &order, !body.is_empty()) {
            Verdict::Begin(stop) => {
                if let Some(work) = work(epoch, order, body, stop) {
                    // The thread ends with the process only.
                    let _ = self.work.send(work);
                } else {
                    let trouble = Trouble::Error("an order that makes no sense".into());
                    let answer = self.told.ended(epoch, RankSay::Failed(trouble), Bytes::new());
                    self.answer(answer);
                }
            }
            Verdict::Answer(answers) => self.answer(answers),
        }
    }

    fn answer(&self, answers: Vec<(Stamp, RankSay, Bytes)>) {
        for (epoch, say, body) in answers {
            self.say(epoch, say, body);
        }
    }

    fn say(&self, epoch: Stamp, say: RankSay, body: Bytes) {
        let _ = self.out.send((RankOut::Said(epoch, say), body));
    }
}

fn work(epoch: Stamp, order: RankOrder, body: Bytes, stop: told::Stop) -> Option<Work> {
    match order {
        RankOrder::Prepare(team) => {
            Some(Work::Prepare(epoch, team, serde_json::from_slice(&body).ok()?, stop))
        }
        RankOrder::InitGroup { key, members } => Some(Work::Group(epoch, key, members)),
        RankOrder::Run { from_step, .. } => Some(Work::Run(epoch, from_step, body)),
        RankOrder::Abort => None,
    }
}
