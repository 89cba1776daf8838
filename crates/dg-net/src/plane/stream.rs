//! Byte streams of the system, and how long a hello on them may take.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A connection between two processes, both directions.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Another handle to the same connection.
    pub(super) fn share(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// Ends the connection; whoever reads or writes it returns.
    pub(super) fn close(&self) {
        // It fails if the peer has closed it, which is as good.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Longest time of one read and one write; `None` waits for ever.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(parts),
            Self::Unix(stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream for the time of a hello: everything together may take until the deadline, however slowly bytes come.
pub(super) struct Hurried<'a> {
    stream: &'a mut Stream,
    end: Instant,
    /// The set-up is over, whoever still says hello.
    over: &'a AtomicBool,
}

impl<'a> Hurried<'a> {
    pub(super) const fn new(stream: &'a mut Stream, end: Instant, over: &'a AtomicBool) -> Self {
        Self { stream, end, over }
    }

    /// Repeats what waits for the peer, in short turns.
    fn retry<T>(&mut self, mut attempt: impl FnMut(&mut Stream) -> io::Result<T>) -> io::Result<T> {
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.over.load(Ordering::SeqCst) {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_patience(Some(left.min(TURN)))?;
            match attempt(self.stream) {
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                result => return result,
            }
        }
    }
}

impl Read for Hurried<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.retry(|stream| stream.read(bytes))
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(|stream| stream.write(bytes))
    }

    // rustls writes an alert and what comes before it with one call.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.retry(|stream| stream.write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How soon a hello notices that the set-up is over.
const TURN: Duration = Duration::from_millis(50);
