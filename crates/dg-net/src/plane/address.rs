//! Where ranks wait for each other.

use super::error::SetUpError;
use super::stream::Stream;
use super::{hello, tls};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a rank can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// A socket of the host's file system.
    Unix(PathBuf),
    /// A socket of the host's network namespace that has a name and no file. Any user of the host may connect to it;
    /// the key of the epoch decides who is let in.
    Abstract(String),
    /// TCP in clear text, on the loopback device only.
    Tcp(SocketAddr),
    /// TCP with TLS 1.3 and certificates on both sides.
    Tls {
        /// Where it listens.
        address: SocketAddr,
        /// Name in its certificate.
        name: String,
    },
}

impl Address {
    /// Whether it can be reached from another host.
    pub const fn is_remote(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }

    /// Connects; a connection is not an acceptance.
    pub(super) fn connect(&self, patience: Duration) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Self::Abstract(name) => {
                UnixStream::connect_addr(&UnixAddr::from_abstract_name(name)?).map(Stream::Unix)
            }
            Self::Tcp(address) | Self::Tls { address, .. } => {
                let stream = TcpStream::connect_timeout(address, patience)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// # Errors
    /// [`SetUpError::Invalid`] for TCP in clear text that leaves the host.
    pub(super) fn checked(&self) -> Result<(), SetUpError> {
        match self {
            Self::Tcp(address) if !address.ip().is_loopback() => {
                Err(SetUpError::Invalid(format!("{self} is not on the loopback device; use TLS")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "abstract:{name}"),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Tls { address, name } => write!(f, "tls:{address} ({name})"),
        }
    }
}

/// A socket on which this rank waits for the ranks above it. Dropping it closes it and removes its file.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    /// The folder goes with the listener.
    Unix(UnixListener, Option<PathBuf>),
    Tcp(TcpListener),
}

impl Listener {
    /// A unix socket in a new folder below `parent` that only this user can open. `parent` must be short: the system
    /// allows about 100 bytes for all.
    ///
    /// # Errors
    /// [`SetUpError::Listen`].
    pub fn unix(parent: &Path) -> Result<Self, SetUpError> {
        let folder = parent.join(format!("plane-{}", random_name()));
        let path = folder.join("s");
        let listen = || {
            std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
            UnixListener::bind(&path)
        };
        let bound = listen();
        // From here on the folder is removed, whatever happens.
        let address = Address::Unix(path.clone());
        match bound {
            Ok(socket) => Self::new(Socket::Unix(socket, Some(folder)), address),
            Err(source) => {
                let _ = std::fs::remove_dir(&folder);
                Err(SetUpError::Listen { address: address.to_string(), source })
            }
        }
    }

    /// A unix socket without a file: nothing is left over, however the process ends.
    ///
    /// # Errors
    /// [`SetUpError::Listen`].
    pub fn abstract_unix() -> Result<Self, SetUpError> {
        let name = format!("dg-plane-{}", random_name());
        let bound = UnixAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
        let address = Address::Abstract(name);
        let failed = |source| SetUpError::Listen { address: address.to_string(), source };
        let socket = bound.map_err(failed)?;
        Self::new(Socket::Unix(socket, None), address)
    }

    /// TCP in clear text on a loopback address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`SetUpError::Invalid`] for an address of another device, [`SetUpError::Listen`].
    pub fn tcp(at: SocketAddr) -> Result<Self, SetUpError> {
        Address::Tcp(at).checked()?;
        let (socket, at) = bind(at)?;
        Self::new(Socket::Tcp(socket), Address::Tcp(at))
    }

    /// TCP with TLS, for a rank whose certificate is for `name`; port 0 takes a free one. If `at` is the unspecified
    /// address, tell the others the real one ([`Address::Tls`]).
    ///
    /// # Errors
    /// [`SetUpError::Listen`].
    pub fn tls(at: SocketAddr, name: impl Into<String>) -> Result<Self, SetUpError> {
        let (socket, address) = bind(at)?;
        Self::new(Socket::Tcp(socket), Address::Tls { address, name: name.into() })
    }

    /// Where the others find it.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    fn new(socket: Socket, address: Address) -> Result<Self, SetUpError> {
        let listener = Self { socket, address };
        let polled = match &listener.socket {
            Socket::Unix(socket, _) => socket.set_nonblocking(true),
            Socket::Tcp(socket) => socket.set_nonblocking(true),
        };
        let failed = |source| SetUpError::Listen { address: listener.address.to_string(), source };
        polled.map_err(failed)?;
        Ok(listener)
    }

    /// The next connection and who it says it comes from; `None` if there is none now.
    pub(super) fn accept(&self) -> io::Result<Option<(Stream, String)>> {
        let accepted = match &self.socket {
            Socket::Unix(socket, _) => {
                socket.accept().map(|(stream, _)| (Stream::Unix(stream), self.address.to_string()))
            }
            Socket::Tcp(socket) => {
                socket.accept().map(|(stream, from)| (Stream::Tcp(stream), from.to_string()))
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_passing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match &stream {
            Stream::Unix(stream) => stream.set_nonblocking(false)?,
            Stream::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
            }
        }
        Ok(Some((stream, from)))
    }

    /// Whether those who connect have to show a certificate.
    pub(super) const fn has_tls(&self) -> bool {
        matches!(self.address, Address::Tls { .. })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Socket::Unix(_, Some(folder)) = &self.socket else { return };
        let _ = std::fs::remove_file(folder.join("s"));
        if let Err(error) = std::fs::remove_dir(folder) {
            tracing::warn!(folder = %folder.display(), %error, "the folder of a socket stays behind");
        }
    }
}

/// Errors of `accept` after which the next one may work.
fn is_passing(error: &io::Error) -> bool {
    let kinds = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted];
    kinds.contains(&error.kind())
}

fn bind(at: SocketAddr) -> Result<(TcpListener, SocketAddr), SetUpError> {
    let bound = TcpListener::bind(at).and_then(|socket| {
        let at = socket.local_addr()?;
        Ok((socket, at))
    });
    bound.map_err(|source| SetUpError::Listen { address: at.to_string(), source })
}

fn random_name() -> String {
    let nonce: [u8; hello::NONCE_BYTES] = tls::random();
    nonce.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
