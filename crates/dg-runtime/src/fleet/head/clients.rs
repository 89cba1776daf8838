//! Clients of the head: each question is a stream of its own, and so is its answer.

use super::actor::{Message, State};
use super::events::Event;
use crate::fleet::job::JobBody;
use crate::fleet::protocol::{AgentAsk, LogLines};
use crate::logic::cluster::{JobId, head};
use bytes::Bytes;
use dg_net::bus::BULK_BYTES_MAX;
use dg_net::endpoint::Peer;
use dg_net::quiet::Quiet;
use dg_net::wire::{self, WireError};
use quic::{Receiving, Sending};
use ractor::ActorRef;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

/// The streams of a client, without the name of the library.
mod quic {
    pub(super) use dg_net::endpoint::{RecvStream as Receiving, SendStream as Sending};
}

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Make this job; the body is a [`JobBody`] as JSON.
    Submit,
    /// What nodes, ranks and jobs there are, as JSON.
    Status,
    /// Jobs that wait, run and are over, as JSON.
    Jobs,
    /// What has happened, as JSON.
    Events,
    /// The card of a model; absent, of the file's.
    Model(Option<String>),
    /// Cancel a job.
    Cancel(String),
    /// Give a node no new work, or give it work again.
    Drain(String, bool),
    /// Log lines of a rank after this number.
    Logs(u32, u64),
    /// End the cluster.
    Down,
}

impl wire::Message for Ask {}

/// What the head answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Tell {
    /// The job is taken.
    Accepted {
        /// Its number.
        job: String,
    },
    /// A step event as JSON.
    Event(String),
    /// Something notable, an event of a report as JSON.
    Notice(String),
    /// The body is what a rank did and made.
    Rank,
    /// All ranks were told of.
    Done,
    /// The job is cancelled.
    Cancelled,
    /// It did not work.
    Failed {
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
        /// Exit code of a program that ends because of it.
        exit: u8,
    },
    /// The body is the answer.
    Answer,
}

impl wire::Message for Tell {}

/// Where the answers to a question go.
pub(super) struct Sink {
    sender: Option<mpsc::UnboundedSender<(Tell, Bytes)>>,
    /// Told when the client goes away.
    job: Arc<std::sync::OnceLock<JobId>>,
    /// News that are not on their way yet.
    unread: Arc<AtomicUsize>,
}

impl Sink {
    pub(super) fn nobody() -> Self {
        Self { sender: None, job: Default::default(), unread: Default::default() }
    }

    /// That the client is gone does not matter here: it is told of elsewhere. One that does not read misses news, but
    /// nothing that its job ends with.
    pub(super) fn tell(&self, tell: Tell, body: Bytes) {
        let Some(sender) = &self.sender else { return };
        if is_news(&tell) && self.unread.fetch_add(1, Ordering::Relaxed) >= NEWS_MAX {
            self.unread.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let _ = sender.send((tell, body));
    }

    fn json(&self, value: &impl Serialize) {
        self.tell(Tell::Answer, serde_json::to_vec(value).unwrap_or_default().into());
    }

    fn fail(&self, message: String, hint: Option<&str>, exit: dg_core::ExitCode) {
        self.tell(Tell::Failed { message, hint: hint.map(Into::into), exit: exit.code() }, Bytes::new());
    }

    /// The question was for this job: when the client goes, so does the job. One that has gone before is not told of
    /// again: look at [`is_closed`](Self::is_closed) after this.
    pub(super) fn of_job(&mut self, job: JobId) {
        let _ = self.job.set(job);
    }

    /// Whether nobody hears the answers any more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.as_ref().is_none_or(|sender| sender.is_closed())
    }
}

/// What a job goes on without.
fn is_news(tell: &Tell) -> bool {
    matches!(tell, Tell::Event(_) | Tell::Notice(_))
}

/// Serves a client until it leaves.
pub(super) async fn serve(peer: Peer, actor: ActorRef<Message>) {
    let client = Arc::new(Client {
        name: peer.name().to_string(),
        bodies: Semaphore::new(BODIES_MAX),
        turns: Semaphore::new(ANSWERS_MAX),
        places: Semaphore::new(WAITING_MAX),
        quiet: Quiet::default(),
    });
    while let Ok((sending, receiving)) = peer.connection().accept_bi().await {
        tokio::spawn(question(client.clone(), sending, receiving, actor.clone()));
    }
}

/// What the streams of a client share.
struct Client {
    name: String,
    /// Bodies that are read at a time.
    bodies: Semaphore,
    /// Questions that are answered at a time, to the last byte that is read.
    turns: Semaphore,
    /// Questions that wait for their turn.
    places: Semaphore,
    quiet: Quiet,
}

impl Client {
    /// Waits until this question is to be answered. A job has a stream for as long as it lasts; all else is answered at
    /// once, so that a client which does not read holds a few answers and no more. None: it has gone, or asks too much.
    async fn turn(&self, ask: &Ask, sending: &Sending) -> Option<Option<SemaphorePermit<'_>>> {
        if matches!(ask, Ask::Submit) {
            return Some(None);
        }
        let Ok(_place) = self.places.try_acquire() else {
            if self.quiet.allows(std::time::Instant::now()) {
                tracing::warn!(client = self.name, "more than {WAITING_MAX} questions without an answer");
            }
            return None;
        };
        tokio::select! {
            turn = self.turns.acquire() => turn.ok().map(Some),
            _ = sending.stopped() => None,
        }
    }
}

/// Reads a question. A client has streams for many jobs that wait, but not memory for as many bodies at a time.
async fn hear(client: &Client, receiving: &mut Receiving) -> Result<(Ask, Bytes), WireError> {
    let ask = wire::read_frame::<Ask>(receiving, QUESTION_MAX).await?;
    let late = |_| WireError::Deadline { within: QUESTION_MAX };
    let body = async {
        let _slot = client.bodies.acquire().await;
        read_body(receiving, if matches!(ask, Ask::Submit) { JOB_BYTES_MAX } else { 0 }).await
    };
    let body = tokio::time::timeout(QUESTION_MAX, body).await.map_err(late)??;
    Ok((ask, body))
}

async fn question(
    client: Arc<Client>,
    mut sending: Sending,
    mut receiving: Receiving,
    actor: ActorRef<Message>,
) {
    let name = client.name.clone();
    let (ask, body) = match hear(&client, &mut receiving).await {
        Ok(read) => read,
        Err(error) => {
            if client.quiet.allows(std::time::Instant::now()) {
                tracing::warn!(client = name, %error, "a question that is not understood");
            }
            return;
        }
    };
    let Some(_turn) = client.turn(&ask, &sending).await else { return };
    let (sender, mut answers) = mpsc::unbounded_channel();
    let (job, unread) = (Arc::new(std::sync::OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let sink = Sink { sender: Some(sender), job: job.clone(), unread: unread.clone() };
    if actor.cast(Message::Ask(name, ask, body, sink)).is_err() {
        return;
    }
    loop {
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            // The client has left, or says nothing more by ending its side for good.
            _ = sending.stopped() => break,
        };
        let Some((tell, body)) = answer else {
            let _ = sending.finish();
            if tokio::time::timeout(QUESTION_MAX, sending.stopped()).await.is_err() {
                // What nobody reads is not kept.
                let _ = sending.reset(UNREAD.into());
            }
            return;
        };
        if is_news(&tell) {
            unread.fetch_sub(1, Ordering::Relaxed);
        }
        if write(&mut sending, &tell, body).await.is_err() {
            break;
        }
    }
    let _ = sending.reset(UNREAD.into());
    // In this order: a job that is made now is seen here, or it sees that this is closed.
    answers.close();
    if let Some(job) = job.get() {
        let _ = actor.cast(Message::Gone(*job));
    }
}

/// Reads a message and its body.
pub(in crate::fleet) async fn read<M: wire::Message>(
    stream: &mut Receiving,
    within: Duration,
) -> Result<(M, Bytes), WireError> {
    let message = wire::read_frame(stream, within).await?;
    Ok((message, read_body(stream, BULK_BYTES_MAX).await?))
}

async fn read_body(stream: &mut Receiving, bytes_max: usize) -> Result<Bytes, WireError> {
    use tokio::io::AsyncReadExt;
    let io = |e: std::io::Error| WireError::Io(e.to_string());
    let length = stream.read_u64().await.map_err(io)?;
    let size = usize::try_from(length).ok().filter(|size| *size <= bytes_max);
    let size = size.ok_or(WireError::Size { bytes: length })?;
    // Grows with what arrives: a length alone makes no room.
    let mut body = Vec::with_capacity(size.min(FIRST_BYTES));
    let read = stream.take(length).read_to_end(&mut body).await.map_err(io)?;
    if read == size { Ok(body.into()) } else { Err(WireError::Cut) }
}

/// Writes a message and its body.
pub(in crate::fleet) async fn write(
    stream: &mut Sending,
    message: &impl wire::Message,
    body: Bytes,
) -> Result<(), WireError> {
    use tokio::io::AsyncWriteExt;
    wire::write_frame(stream, message, QUESTION_MAX).await?;
    let io = |e: std::io::Error| WireError::Io(e.to_string());
    stream.write_u64(body.len() as u64).await.map_err(io)?;
    // Without a body the other side has all of it by now, and may have answered and left.
    for begin in (0..body.len()).step_by(CHUNK_BYTES) {
        let chunk = body.slice(begin..body.len().min(begin + CHUNK_BYTES));
        let written = tokio::time::timeout(QUESTION_MAX, stream.write_chunk(chunk)).await;
        let written = written.map_err(|_| WireError::Deadline { within: QUESTION_MAX })?;
        written.map_err(|e| WireError::Io(e.to_string()))?;
    }
    Ok(())
}

impl State {
    pub(super) fn asked(&mut self, client: &str, ask: Ask, body: &Bytes, sink: Sink) {
        use dg_core::ExitCode::{Config, Failed, Infeasible};
        match ask {
            Ask::Submit => match serde_json::from_slice::<JobBody>(body) {
                Ok(_) if self.is_going_down => sink.fail("the cluster goes down".into(), None, Failed),
                Ok(_) if self.jobs.len() + self.jobs_in_probes() >= JOBS_MAX => {
                    sink.fail(format!("{JOBS_MAX} jobs are waiting"), Some("submit it again later"), Failed);
                }
                Ok(job) => self.submit_when_known(client, job, body.len(), sink),
                Err(error) => sink.fail(format!("a job that is not understood: {error}"), None, Config),
            },
            Ask::Status => sink.json(&self.status()),
            Ask::Jobs => sink.json(&self.job_list()),
            Ask::Events => sink.json(&self.events.last().collect::<Vec<&Event>>()),
            Ask::Model(name) => self.model_asked(name, sink),
            Ask::Cancel(job) => match job.parse().ok().filter(|id| self.jobs.contains_key(id)) {
                Some(id) => {
                    self.logic_event(head::Event::Cancel(id));
                    sink.json(&"cancelled");
                }
                None => sink.fail(
                    format!("no job `{job}` waits or runs"),
                    Some("`dg-cluster jobs` lists them"),
                    Config,
                ),
            },
            Ask::Drain(name, is_draining) => match self.node(&name).map(|node| (node.id, node.is_in)) {
                Some((id, true)) => {
                    self.logic_event(head::Event::Drain(id, is_draining));
                    sink.json(&"ok");
                }
                Some((_, false)) => sink.fail(format!("node `{name}` is not in"), None, Infeasible),
                None => {
                    sink.fail(format!("no node `{name}`"), Some("`dg-cluster status` lists them"), Config);
                }
            },
            Ask::Logs(rank, after) => self.logs_asked(rank, after, sink),
            Ask::Down => {
                sink.json(&"going down");
                let _ = self.me.cast(Message::Down);
            }
        }
    }

    fn logs_asked(&self, rank: u32, after: u64, sink: Sink) {
        let of = |node: &&super::node::Node| {
            rank.checked_sub(node.spec.first).is_some_and(|slot| slot < u32::from(node.spec.slots))
        };
        let Some(node) = self.nodes.iter().find(of) else {
            return sink.fail(
                format!("no rank {rank}"),
                Some("`dg-cluster status` lists them"),
                dg_core::ExitCode::Config,
            );
        };
        let Some(link) = node.link.clone() else {
            return sink.fail(format!("node `{}` is not in", node.name), None, dg_core::ExitCode::Infeasible);
        };
        let slot = u16::try_from(rank - node.spec.first).unwrap_or(u16::MAX);
        tokio::spawn(async move {
            match link.call::<LogLines>(&AgentAsk::Logs(Some(slot), after), Duration::from_secs(5)).await {
                Ok(lines) => sink.json(&serde_json::json!({ "last": lines.last, "lines": lines.lines })),
                Err(error) => sink.fail(error.to_string(), None, error.exit_code()),
            }
        });
    }
}

const QUESTION_MAX: Duration = Duration::from_secs(30);
/// Jobs that wait or run.
pub(super) const JOBS_MAX: usize = 16_384;
/// A job as JSON: some thousand long prompts.
const JOB_BYTES_MAX: usize = 4 << 20;
const FIRST_BYTES: usize = 64 << 10;
/// So much of a body has to be read in [`QUESTION_MAX`].
const CHUNK_BYTES: usize = 256 << 10;
/// Questions of a client that are answered at a time.
const ANSWERS_MAX: usize = 16;
/// Questions of a client that wait for their turn.
const WAITING_MAX: usize = 256;
/// Events and notices of a job that are not on their way yet.
const NEWS_MAX: usize = 256;
/// Why a stream is reset whose answer is not read.
const UNREAD: u32 = 1;
/// Bodies that are read from a client at a time.
const BODIES_MAX: usize = 4;
