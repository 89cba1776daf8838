//! The agent of a node: starts a process per rank, passes on what head and ranks say to each other, and stops the ranks
//! when the lease of the node ends.

mod actor;
mod dial;
mod gpus;
mod log;
mod ranks;
mod speed;

use super::OpenModel;
use dg_core::ExitCode;
use dg_net::endpoint::Options;
use dg_net::identity::Name;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What an agent is started with.
#[derive(Clone)]
pub struct AgentArgs {
    /// The node: that of its certificate.
    pub name: Name,
    /// The head, `HOST:PORT`.
    pub head: String,
    /// Folder with the certificate.
    pub state_dir: PathBuf,
    /// The program that is a rank, and its arguments.
    pub rank: (PathBuf, Vec<OsString>),
    /// Opens models.
    pub open: OpenModel,
    /// Times of the connection to the head.
    pub options: Options,
}

/// Why an agent ends early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// Its certificate.
    #[error(transparent)]
    Identity(#[from] dg_net::identity::IdentityError),
    /// Its socket.
    #[error("{}", .0.parts().0)]
    Endpoint(#[from] dg_net::endpoint::EndpointError),
    /// Another agent of the node runs here.
    #[error("an agent of node `{0}` runs already")]
    Runs(Name),
    /// The head does not take it, and will not later.
    #[error(transparent)]
    Refused(#[from] dg_net::bus::BusError),
    /// Nobody has told it what to do for too long.
    #[error("node `{node}` has had no head at {head} for {max:?}")]
    Alone {
        /// The node.
        node: Name,
        /// Where the head should be.
        head: String,
        /// How long it has looked for it.
        max: Duration,
    },
    /// The system.
    #[error("{0}")]
    System(String),
}

impl AgentError {
    /// How a program ends because of it.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Identity(e) => e.exit_code(),
            Self::Endpoint(e) => e.exit_code(),
            Self::Refused(e) => e.exit_code(),
            Self::Runs(_) => ExitCode::Infeasible,
            Self::Alone { .. } => ExitCode::Unreachable,
            Self::System(_) => ExitCode::Failed,
        }
    }
}

/// Runs the agent until the head ends it, or `stop` is ready. Without a head for too long is an error, so that whoever
/// has started the agent may start it again.
///
/// # Errors
/// [`AgentError`].
pub async fn run(args: AgentArgs, stop: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
    let state = dg_net::identity::State::open(&args.state_dir)?;
    let identity = state.load(&args.name)?;
    let _lock = super::lock::take(&args.state_dir.join(format!("{}.lock", args.name)))
        .await
        .map_err(|e| AgentError::System(e.to_string()))?
        .ok_or_else(|| AgentError::Runs(args.name.clone()))?;
    let incarnation = incarnation(&args)?;
    actor::run(args, identity, incarnation, stop).await
}

/// Larger after each start of the node's agent. The clock alone would not do: the head would refuse a node whose clock has
/// been set back. The file alone would not either: a node that joins anew has none.
fn incarnation(args: &AgentArgs) -> Result<u64, AgentError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let path = args.state_dir.join(format!("{}.start", args.name));
    let next = super::counter::next(&path, u64::try_from(now).unwrap_or(u64::MAX));
    next.map_err(|e| AgentError::System(format!("`{}`: {e}", path.display())))
}

/// Back-off between attempts to reach the head.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
