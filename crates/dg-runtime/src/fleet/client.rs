//! Asking a head, and having its cluster make pictures.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use dg_core::{GenerateRequest, ImageSize, Seed};
//! use dg_plan::{Ask, Layout};
//! use dg_runtime::fleet::client::{CLIENT, HeadClient, Options};
//! use dg_runtime::{Cluster, EngineOptions, Parallel};
//! use std::path::Path;
//!
//! // On the head's host the state folder has its address, and a certificate for clients.
//! let state = Path::new("/home/flux/.local/state/dg-cluster/laptop");
//! let head = HeadClient::of_state(state, CLIENT, Options::dialer()).await?;
//! for rank in head.status().await?.ranks {
//!     println!("rank {} on {}: {}", rank.rank, rank.node, rank.state);
//! }
//!
//! // What the nodes know of the model of the cluster's file: it need not be here.
//! let card = head.model(None).await?;
//! let ask = Ask::layout(Layout { ulysses: 4, ..Layout::SERIAL });
//! let parallel = Parallel { ask, ..Parallel::default() };
//! let options = EngineOptions { parallel, ..EngineOptions::default() };
//! let cluster = Cluster::connect(head, None, card, options);
//!
//! let (size, _) = ImageSize::fit(512, 512)?;
//! let mut job = cluster.submit(vec![GenerateRequest::new("a cat", size, Seed(0))]);
//! while let Some(event) = job.next_event().await {
//!     println!("{event:?}");
//! }
//! let pictures = job.await?;
//! for notice in cluster.take_notices() {
//!     println!("{}: {}", notice.kind, notice.message);
//! }
//! # drop(pictures); Ok(()) }
//! ```

use super::head::clients::{read, write};
use super::job::{JobBody, ModelCard, RankDone};
use crate::JobError;
use crate::job::JobSpec;
use bytes::Bytes;
use dg_core::report::{EventReport, RankReport};
use dg_core::{ExitCode, StepEvent};
use dg_flux::Picture;
use dg_net::endpoint::{Endpoint, EndpointError, Peer};
use dg_net::identity::{Admitted, IdentityError, Name, State};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use super::head::clients::{Ask, Tell};
pub use super::head::status::{HeadStatus, JobStatus, NodeStatus, RankStatus, Status};
pub use dg_net::endpoint::Options;

/// Why a head does not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The certificate of this client.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no connection.
    #[error("no head at {address}: {}", source.parts().0)]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why.
        source: Box<EndpointError>,
    },
    /// The address.
    #[error("`{address}` is no address: {why}")]
    Address {
        /// As written.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The cluster is not up.
    #[error("the cluster is not up: `{}` is not there", path.display())]
    NotUp {
        /// What a head would have written.
        path: PathBuf,
    },
    /// The connection ended before the answer.
    #[error("the head went away: {0}")]
    Lost(String),
    /// The head says no.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
        /// How a program ends because of it.
        exit: ExitCode,
    },
}

impl AskError {
    /// How a program ends because of it.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Identity(e) => e.exit_code(),
            Self::Address { .. } => ExitCode::Config,
            Self::Unreachable { source, .. } => source.exit_code(),
            Self::NotUp { .. } | Self::Lost(_) => ExitCode::Unreachable,
            Self::Refused { exit, .. } => *exit,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, .. } if !matches!(**source, EndpointError::Unreachable { .. }) => {
                source.parts().1
            }
            Self::Unreachable { .. } | Self::NotUp { .. } => {
                Some("`dg-cluster up FILE -d --wait` starts it".into())
            }
            Self::Lost(_) => Some("`dg-cluster status` shows whether it is back".into()),
            Self::Refused { hint, .. } => hint.clone(),
            Self::Identity(_) | Self::Address { .. } => None,
        }
    }
}

/// A connection to a head.
#[derive(Clone)]
pub struct HeadClient {
    peer: Arc<Peer>,
    endpoint: Endpoint,
}

/// The certificate of clients, unless another one is named.
pub const CLIENT: &str = "client";

impl HeadClient {
    /// Connects to the head whose state folder this is, with the certificate `client` of that folder.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn of_state(folder: &Path, client: &str, options: Options) -> Result<Self, AskError> {
        let path = folder.join("head.addr");
        let Ok(address) = std::fs::read_to_string(&path) else { return Err(AskError::NotUp { path }) };
        Self::connect(address.trim(), folder, client, options).await
    }

    /// Connects to the head at `address` with the certificate `client` of a state folder.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn connect(
        address: &str,
        folder: &Path,
        client: &str,
        options: Options,
    ) -> Result<Self, AskError> {
        let bad = |why: String| AskError::Address { address: address.into(), why };
        let name = Name::parse(client).map_err(IdentityError::from)?;
        let identity = State::open(folder)?.load(&name)?;
        let found = address.to_socket_addrs().map_err(|e| bad(e.to_string()))?.next();
        let found = found.ok_or_else(|| bad("no such host".into()))?;
        let local = if found.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let local = local.parse().map_err(|_| bad("no local address".into()))?;
        let unreachable =
            |source| AskError::Unreachable { address: address.into(), source: Box::new(source) };
        let endpoint =
            Endpoint::dialer(local, &identity, Admitted::everyone(), options).map_err(unreachable)?;
        let peer = endpoint.try_connect(found, &Name::head()).await.map_err(unreachable)?;
        Ok(Self { peer: Arc::new(peer), endpoint })
    }

    /// Asks something that has one answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, AskError> {
        let (mut sending, mut receiving) = self.open(ask, Bytes::new()).await?;
        let lost = |e: &dyn std::fmt::Display| AskError::Lost(e.to_string());
        let (tell, body) = read::<Tell>(&mut receiving, ANSWER_MAX).await.map_err(|e| lost(&e))?;
        let _ = sending.finish();
        match tell {
            Tell::Answer => serde_json::from_slice(&body).map_err(|e| lost(&e)),
            Tell::Failed { message, hint, exit } => {
                Err(AskError::Refused { message, hint, exit: ExitCode::from_code(exit) })
            }
            _ => Err(AskError::Lost("it answers something else".into())),
        }
    }

    /// What there is.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn status(&self) -> Result<Status, AskError> {
        self.ask(&Ask::Status).await
    }

    /// Jobs that wait, run and are over.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, AskError> {
        self.ask(&Ask::Jobs).await
    }

    /// What the nodes know of a model; absent, of that of the cluster's file.
    ///
    /// # Errors
    /// [`AskError`]; if a node does not have it.
    pub async fn model(&self, name: Option<&str>) -> Result<ModelCard, AskError> {
        self.ask(&Ask::Model(name.map(str::to_owned))).await
    }

    /// Ends the connection and waits until the head knows, so that jobs which nobody waits for end now and not when the
    /// connection has been silent for long enough.
    pub async fn close(&self) {
        self.endpoint.close("the client has ended").await;
    }

    /// Waits until the head has closed the connection, or for so long.
    pub async fn closed(&self, most: Duration) {
        let _ = tokio::time::timeout(most, self.peer.connection().closed()).await;
    }

    async fn open(
        &self,
        ask: &Ask,
        body: Bytes,
    ) -> Result<(dg_net::endpoint::SendStream, dg_net::endpoint::RecvStream), AskError> {
        let lost = |e: &dyn std::fmt::Display| AskError::Lost(e.to_string());
        let mut streams = self.peer.connection().open_bi().await.map_err(|e| lost(&e))?;
        write(&mut streams.0, ask, body).await.map_err(|e| lost(&e))?;
        Ok(streams)
    }

    /// Why the connection has ended, if so.
    fn reason(&self, error: &dyn std::fmt::Display) -> String {
        self.peer.connection().close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string())
    }

    /// Hands a job in and follows it to its end.
    pub(crate) async fn follow(self, spec: JobSpec, body: JobBody, board: RemoteBoard) {
        let canceller = spec.canceller.clone();
        let run = self.run(&spec, &body, &board);
        let result = tokio::select! {
            result = run => result,
            () = canceller.cancelled() => Err(JobError::Cancelled),
        };
        spec.end(result);
    }

    async fn run(
        &self,
        spec: &JobSpec,
        body: &JobBody,
        board: &RemoteBoard,
    ) -> Result<Vec<Picture>, JobError> {
        let body = serde_json::to_vec(body).unwrap_or_default().into();
        let (_sending, mut receiving) = self.open(&Ask::Submit, body).await.map_err(|e| failed(&e))?;
        let mut done = Vec::new();
        loop {
            let (tell, body) = read::<Tell>(&mut receiving, JOB_MAX)
                .await
                .map_err(|e| failed(&AskError::Lost(self.reason(&e))))?;
            match tell {
                Tell::Accepted { job } => tracing::info!(job, "the job is taken"),
                Tell::Event(text) => {
                    if let Ok(event) = serde_json::from_str::<StepEvent>(&text) {
                        let _ = spec.events.send(event);
                    }
                }
                Tell::Notice(text) => {
                    if let Ok(event) = serde_json::from_str::<EventReport>(&text) {
                        board.notice(event);
                    }
                }
                Tell::Rank => done.extend(RankDone::unpack(&body)),
                Tell::Done => return pictures(spec, done, board),
                Tell::Cancelled if spec.canceller.is_cancelled() => return Err(JobError::Cancelled),
                Tell::Cancelled => return Err(cancelled_by_others()),
                Tell::Failed { message, hint, exit } => {
                    return Err(JobError::Run { reason: message, hint, exit: ExitCode::from_code(exit) });
                }
                Tell::Answer => {}
            }
        }
    }
}

/// The pictures of a job, from the rank that has decoded them.
fn pictures(
    spec: &JobSpec,
    done: Vec<(RankDone, Vec<Picture>)>,
    board: &RemoteBoard,
) -> Result<Vec<Picture>, JobError> {
    let mut all = Vec::new();
    for (rank, pictures) in done {
        board.worked(rank.report);
        all.extend(pictures);
    }
    if all.len() == spec.batch.len() {
        return Ok(all);
    }
    let reason = format!("{} pictures came back of {}", all.len(), spec.batch.len());
    Err(JobError::Run { reason, hint: None, exit: ExitCode::Failed })
}

fn failed(error: &AskError) -> JobError {
    JobError::Run { reason: error.to_string(), hint: error.hint(), exit: error.exit() }
}

/// Not what this program was asked to do: that is `JobError::Cancelled`.
fn cancelled_by_others() -> JobError {
    let hint = Some("somebody did that with `dg-cluster cancel`".to_owned());
    JobError::Run { reason: "the job was cancelled on the cluster".into(), hint, exit: ExitCode::Failed }
}

/// What ranks of a cluster have done for this client.
#[derive(Clone, Default)]
pub(crate) struct RemoteBoard(Arc<Mutex<Tally>>);

#[derive(Default)]
struct Tally {
    ranks: BTreeMap<u32, RankReport>,
    notices: Vec<EventReport>,
}

impl RemoteBoard {
    fn notice(&self, event: EventReport) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).notices.push(event);
    }

    /// What was noted since this was asked last.
    pub(crate) fn take_notices(&self) -> Vec<EventReport> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).notices)
    }

    pub(crate) fn reports(&self) -> Vec<RankReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ranks.values().cloned().collect()
    }

    /// A rank may work for several jobs, in other places of other layouts: the last one is told.
    fn worked(&self, new: RankReport) {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(have) = tally.ranks.get_mut(&new.rank) else {
            tally.ranks.insert(new.rank, new);
            return;
        };
        let RankReport { compute_s, wait_s, sent, predicted, .. } = std::mem::take(have);
        *have = new;
        have.compute_s += compute_s;
        have.wait_s += wait_s;
        for (class, before) in sent {
            let now = have.sent.entry(class).or_default();
            now.bytes += before.bytes;
            now.messages += before.messages;
            for (to, bytes) in before.to {
                *now.to.entry(to).or_default() += bytes;
            }
        }
        for (class, bytes) in predicted {
            *have.predicted.entry(class).or_default() += bytes;
        }
    }
}

const ANSWER_MAX: Duration = Duration::from_secs(60);
/// A job may wait for ranks for long; that the head lives is seen from its connection.
const JOB_MAX: Duration = Duration::from_secs(1 << 30);
