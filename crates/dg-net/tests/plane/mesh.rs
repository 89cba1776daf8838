//! Ranks of this process, connected as if they were processes.

use crate::certificates::Authority;
use dg_comm::Communicator;
use dg_comm::conformance::Ranks;
use dg_net::plane::{EpochKey, Listener, Member, Options, Rendezvous, SetUpError, Sockets, Tls};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What the ranks are connected by.
#[derive(Clone)]
pub(crate) enum Kind {
    Abstract,
    /// With its folder.
    Unix(PathBuf),
    Tcp,
    Tls(Tls),
    /// Half of the ranks on one host, half on another.
    Mixed(PathBuf, Tls),
}

pub(crate) const NAME: &str = "node.dg-cluster";

impl Kind {
    pub(crate) fn tls() -> Self {
        Self::Tls(Authority::new().tls(NAME))
    }

    /// The listeners of rank `rank` of `size` and where it is.
    pub(crate) fn listen(&self, rank: usize, size: usize) -> (Vec<Listener>, Member) {
        let mut host = "one";
        let listeners = match self {
            Self::Abstract => vec![Listener::abstract_unix().unwrap()],
            Self::Unix(folder) => vec![Listener::unix(folder).unwrap()],
            Self::Tcp => vec![Listener::tcp(LOOPBACK).unwrap()],
            Self::Tls(_) => vec![Listener::tls(LOOPBACK, NAME).unwrap()],
            Self::Mixed(folder, _) => {
                host = if rank < size / 2 { "one" } else { "two" };
                vec![Listener::unix(folder).unwrap(), Listener::tls(LOOPBACK, NAME).unwrap()]
            }
        };
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        (listeners, Member { host: host.to_owned(), addresses })
    }

    pub(crate) fn options(&self) -> Options {
        let tls = match self {
            Self::Tls(tls) | Self::Mixed(_, tls) => Some(tls.clone()),
            _ => None,
        };
        Options { tls, ..Options::default() }
    }
}

/// Connected ranks, or what each of them says.
pub(crate) fn try_mesh(
    kind: &Kind,
    size: usize,
    options: impl Fn(usize, Options) -> Options + Sync,
) -> Vec<Result<Sockets, SetUpError>> {
    let (listeners, members): (Vec<_>, Vec<_>) = (0..size).map(|rank| kind.listen(rank, size)).unzip();
    let key = EpochKey::generate();
    std::thread::scope(|scope| {
        let connect = |(me, listeners): (usize, Vec<Listener>)| {
            let rendezvous = Rendezvous { epoch: 3, key: key.clone(), members: members.clone(), me };
            let options = options(me, kind.options());
            scope.spawn(move || rendezvous.connect(listeners, options))
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(connect).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(crate) fn mesh(
    kind: &Kind,
    size: usize,
    options: impl Fn(usize, Options) -> Options + Sync,
) -> Vec<Sockets> {
    try_mesh(kind, size, options).into_iter().map(|rank| rank.unwrap_or_else(|e| panic!("{e}"))).collect()
}

pub(crate) fn share(ranks: Vec<Sockets>) -> Ranks {
    ranks.into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>).collect()
}

pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const SHORT: Duration = Duration::from_millis(50);
