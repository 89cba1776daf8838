//! TLS 1.3 over a blocking stream, with one thread that reads and one that writes.
//!
//! rustls has one state for both directions. The threads share it behind a lock that neither holds while it waits for
//! the network.

use super::error::Refusal;
use super::hello;
use super::stream::Stream;
use crate::endpoint;
use crate::identity::Identity;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ProtocolVersion, ServerConfig, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Certificates and whom to trust, for both ends of a connection.
///
/// Use the provider aws-lc-rs and TLS 1.3, and let the server ask for certificates: a peer without one is refused.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For the ranks that connect here.
    pub server: Arc<ServerConfig>,
    /// For the ranks that this one connects to.
    pub client: Arc<ClientConfig>,
}

impl Tls {
    /// Of a node with this certificate: both ends show theirs, and only those of the same CA count.
    ///
    /// # Errors
    /// What the library says.
    pub fn of(identity: &Identity) -> Result<Self, String> {
        let server = endpoint::tls::server(identity).map_err(|e| e.to_string())?;
        let client = endpoint::tls::client(identity).map_err(|e| e.to_string())?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    filled.expect("the system has random numbers");
    bytes
}

/// The end that listens.
pub(super) fn server(tls: &Tls) -> Result<Connection, Refusal> {
    let connection = ServerConnection::new(tls.server.clone());
    connection.map(Connection::Server).map_err(|error| Refusal::Certificate(error.to_string()))
}

/// The end that connects to the rank whose certificate is for `name`.
pub(super) fn client(tls: &Tls, name: &str) -> Result<Connection, Refusal> {
    let bad = |error: &dyn std::fmt::Display| Refusal::Certificate(format!("{name}: {error}"));
    let name = ServerName::try_from(name.to_owned()).map_err(|error| bad(&error))?;
    let connection = ClientConnection::new(tls.client.clone(), name);
    connection.map(Connection::Client).map_err(|error| bad(&error))
}

/// Shakes hands. What comes back ties what is said later to this session.
pub(super) fn handshake(tls: &mut Connection, stream: &mut (impl Read + Write)) -> Result<[u8; 32], Refusal> {
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(stream).map_err(|error| hello::refusal(&error))?;
    }
    let refused = |why: &str| Err(Refusal::Certificate(why.to_owned()));
    if tls.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return refused("not TLS 1.3");
    }
    if tls.peer_certificates().is_none_or(<[_]>::is_empty) {
        return refused("the peer was not asked for one");
    }
    let binding = tls.export_keying_material([0; 32], b"EXPORTER-dg-plane", None);
    binding.map_err(|error| Refusal::Certificate(error.to_string()))
}

/// A connection during the hello, for one thread.
pub(super) struct Session<'a, S> {
    pub(super) tls: &'a mut Connection,
    pub(super) stream: S,
}

impl<S: Read> Read for Session<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if self.tls.read_tls(&mut self.stream)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl<S: Write> Write for Session<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tls.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }
}

/// Both directions of a connection whose handshake is done, one for each thread.
pub(super) fn split(mut tls: Connection, reading: Stream, writing: Stream) -> (TlsReader, TlsWriter) {
    tls.set_buffer_limit(Some(2 * CHUNK_BYTES));
    let tls = Arc::new(Mutex::new(tls));
    let raw = vec![0; RAW_BYTES];
    let reader = TlsReader { tls: tls.clone(), stream: reading, raw, begin: 0, end: 0 };
    (reader, TlsWriter { tls, stream: writing, raw: Vec::new() })
}

fn lock(tls: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What arrives.
pub(super) struct TlsReader {
    tls: Arc<Mutex<Connection>>,
    stream: Stream,
    /// Encrypted bytes; those from `begin` to `end` wait to be decrypted.
    raw: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Read for TlsReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(read) = self.decrypt(bytes)? {
                return Ok(read);
            }
            self.begin = 0;
            self.end = self.stream.read(&mut self.raw)?;
            if self.end == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl TlsReader {
    /// Fills `bytes` as far as what is here goes; `None` if there is nothing.
    fn decrypt(&mut self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        let mut tls = lock(&self.tls);
        let mut read = 0;
        loop {
            match tls.reader().read(&mut bytes[read..]) {
                // The peer has closed it in order.
                Ok(0) => return Ok(Some(read)),
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.begin == self.end {
                        return Ok((read > 0).then_some(read));
                    }
                    self.begin += tls.read_tls(&mut &self.raw[self.begin..self.end])?;
                    tls.process_new_packets()
                        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                }
                Err(error) => return Err(error),
            }
            if read == bytes.len() {
                return Ok(Some(read));
            }
        }
    }
}

/// What leaves.
pub(super) struct TlsWriter {
    tls: Arc<Mutex<Connection>>,
    stream: Stream,
    raw: Vec<u8>,
}

impl Write for TlsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.raw.clear();
        let written = {
            let mut tls = lock(&self.tls);
            let written = tls.writer().write(&bytes[..bytes.len().min(CHUNK_BYTES)])?;
            while tls.wants_write() {
                tls.write_tls(&mut self.raw)?;
            }
            written
        };
        self.stream.write_all(&self.raw)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encrypted with one hold of the lock.
const CHUNK_BYTES: usize = 64 << 10;

/// Read from the network at once.
const RAW_BYTES: usize = 128 << 10;
