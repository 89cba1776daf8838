//! The head of a cluster: one actor that decides, and around it what carries its decisions out.
//!
//! It decides by [`logic::cluster::head`](crate::logic::cluster::head). Peers with a node's certificate become agents,
//! peers with a client's may ask. What happens is written down in `events.jsonl` of the state folder.

mod actor;
mod admitted;
mod carry;
pub(in crate::fleet) mod clients;
mod events;
mod guests;
mod jobs;
mod launch;
mod models;
mod node;
mod say;
pub(in crate::fleet) mod status;

pub use events::Event as LogEvent;

use super::{counter, lock};
use dg_config::ClusterFile;
use dg_core::ExitCode;
use dg_net::endpoint::{Endpoint, Options};
use dg_net::identity::{Name, State};
use dg_net::join::JoinDesk;
use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a head is started with.
pub struct HeadArgs {
    /// The cluster.
    pub file: ClusterFile,
    /// Folder of certificates, logs and locks.
    pub state_dir: PathBuf,
    /// The program that is an agent; arguments for the node are added.
    pub program: PathBuf,
    /// Name of the model of the file.
    pub model: Option<String>,
    /// Lets nodes with a token in.
    pub desk: Option<Arc<JoinDesk>>,
}

/// Why a head does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// Its certificate.
    #[error(transparent)]
    Identity(#[from] dg_net::identity::IdentityError),
    /// Its socket.
    #[error("{}", .0.parts().0)]
    Endpoint(#[from] dg_net::endpoint::EndpointError),
    /// Its actors.
    #[error(transparent)]
    Bus(#[from] dg_net::bus::BusError),
    /// Another head of the cluster runs here.
    #[error("the cluster `{0}` is up already")]
    Runs(String),
    /// Its address.
    #[error("listen `{address}`: {why}")]
    Address {
        /// As written.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// It has ended, and nobody has asked for that.
    #[error("the head has failed; agents and ranks stay for a while")]
    Died,
    /// A file of the state folder.
    #[error("`{}`: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl HeadError {
    /// How a program ends because of it.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Identity(e) => e.exit_code(),
            Self::Died => ExitCode::Failed,
            Self::Runs(_) => ExitCode::Infeasible,
            Self::Endpoint(dg_net::endpoint::EndpointError::Address { .. }) => ExitCode::Infeasible,
            Self::Endpoint(e) => e.exit_code(),
            _ => ExitCode::Config,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Runs(_) => Some("`dg-cluster down` ends it, `dg-cluster status` shows it".into()),
            Self::Endpoint(dg_net::endpoint::EndpointError::Address { .. }) => {
                Some("is another program on this port? `[cluster] listen` names another one".into())
            }
            Self::Endpoint(e) => e.parts().1,
            Self::Died => {
                Some("`dg-cluster up` with the same file takes them back; the log tells why".into())
            }
            _ => None,
        }
    }
}

/// A head that runs.
pub struct Head {
    actor: ractor::ActorRef<actor::Message>,
    joined: tokio::task::JoinHandle<()>,
    endpoint: Endpoint,
    address: SocketAddr,
    is_asked: actor::IsAsked,
    _lock: File,
}

impl Head {
    /// Starts it: listens, launches the agents that it has to launch.
    ///
    /// # Errors
    /// [`HeadError`].
    pub async fn start(args: HeadArgs) -> Result<Self, HeadError> {
        let state = State::create(&args.state_dir)?;
        let file_error =
            |path: PathBuf| move |e: std::io::Error| HeadError::File { path, why: e.to_string() };
        let path = args.state_dir.join("head.lock");
        let lock = lock::take(&path).await.map_err(file_error(path.clone()))?;
        let lock = lock.ok_or_else(|| HeadError::Runs(args.file.cluster.name.clone()))?;
        let identity = state.load(&Name::head())?;
        let term = next_term(&args.state_dir)?;
        let listen = resolve(&args.file.cluster.listen.to_string())?;
        let options = options(&args.file);
        let admitted = match &args.desk {
            Some(desk) => desk.admitted(),
            None => state.admitted()?,
        };
        let (endpoint, listener) =
            Endpoint::listener(listen, &identity, admitted.clone(), args.desk.clone(), options)?;
        let address = endpoint.local_addr()?;
        let shown = reachable(address, &args.file);
        let path = args.state_dir.join("head.addr");
        std::fs::write(&path, format!("{shown}\n")).map_err(file_error(path))?;
        let bus = dg_net::bus::Bus::start("head", term, None).await?;
        let is_asked = actor::IsAsked::default();
        let (actor, joined) = actor::start(args, term, shown, is_asked.clone()).await?;
        let serving = guests::serve(listener, bus, term, actor.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serving => {}
                () = admitted::keep_up(admitted) => {}
                () = give_back() => {}
            }
        });
        Ok(Self { actor, joined, endpoint, address, is_asked, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the cluster: agents and ranks too.
    pub fn shut_down(&self) {
        let _ = self.actor.cast(actor::Message::Down);
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`HeadError::Died`] if nobody has asked for that.
    pub async fn ended(&mut self) -> Result<(), HeadError> {
        let _ = (&mut self.joined).await;
        if self.is_asked.load(Ordering::Acquire) {
            self.endpoint.close("the cluster is down").await;
            return Ok(());
        }
        self.endpoint.close("the head has failed").await;
        Err(HeadError::Died)
    }
}

/// Times of connections as the file has them.
pub fn options(file: &ClusterFile) -> Options {
    Options {
        idle_timeout: file.cluster.idle_timeout,
        keep_alive: file.cluster.keep_alive,
        uni_streams_max: 256,
        // A client has one for each job that waits or runs.
        bidi_streams_max: clients::JOBS_MAX as u32 + 1024,
        ..Options::default()
    }
}

/// What nodes dial: on a wildcard address nobody can, so it is the loopback device then.
fn reachable(address: SocketAddr, file: &ClusterFile) -> String {
    match address.ip().is_unspecified() {
        true => format!("127.0.0.1:{}", address.port()),
        false => {
            // The name of the file, in case that the address changes.
            let host = &file.cluster.listen.host;
            if host.contains(':') {
                format!("[{host}]:{}", address.port())
            } else {
                format!("{host}:{}", address.port())
            }
        }
    }
}

fn resolve(address: &str) -> Result<SocketAddr, HeadError> {
    let error = |why: String| HeadError::Address { address: address.into(), why };
    let mut found = address.to_socket_addrs().map_err(|e| error(e.to_string()))?;
    found.next().ok_or_else(|| error("no such host".into()))
}

/// What a rush of questions has needed is not kept.
async fn give_back() {
    loop {
        tokio::time::sleep(GIVE_BACK_EVERY).await;
        let _ = tokio::task::spawn_blocking(dg_map::give_back).await;
    }
}

const GIVE_BACK_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// A number that is larger after each start of the head.
fn next_term(folder: &Path) -> Result<u64, HeadError> {
    let path = folder.join("term");
    counter::next(&path, 0).map_err(|e| HeadError::File { path, why: e.to_string() })
}

/// The arguments of an agent's process.
fn agent_arguments(name: &str, head: &str, state_dir: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["agent", "--name", name, "--head", head, "--state_dir"].map(Into::into).into();
    arguments.push(state_dir.into());
    arguments
}

#[cfg(test)]
mod tests;
