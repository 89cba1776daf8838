//! SIGINT and SIGTERM: the first asks the run to stop, the second stops it.

use crate::output::write;
use dg_core::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// What stopped the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`.
    Terminate,
}

impl Signal {
    /// The exit code of a program that it stops.
    pub(crate) fn exit(self) -> ExitCode {
        match self {
            Self::Interrupt => ExitCode::Interrupted,
            Self::Terminate => ExitCode::Terminated,
        }
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Tells whether the run was asked to stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<Option<Signal>>);

impl Stop {
    /// Starts listening. Inside a tokio runtime.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let mut interrupts = signal(SignalKind::interrupt())?;
        let mut terminates = signal(SignalKind::terminate())?;
        let (tell, told) = watch::channel(None);
        tokio::spawn(async move {
            let first = tokio::select! {
                _ = interrupts.recv() => Signal::Interrupt,
                _ = terminates.recv() => Signal::Terminate,
            };
            tell.send_replace(Some(first));
            tokio::select! {
                _ = interrupts.recv() => (),
                _ = terminates.recv() => (),
                () = tokio::time::sleep(GRACE) => (),
            }
            write::remove_own();
            std::process::exit(first.exit().code().into());
        });
        Ok(Self(told))
    }

    /// The signal that came, if one did.
    pub(crate) fn raised(&self) -> Option<Signal> {
        *self.0.borrow()
    }

    /// Waits for a signal.
    pub(crate) async fn wait(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.raised() {
                return signal;
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// How long the run may take to stop by itself. With what the system needs to end the process this
/// keeps within the two seconds that are promised.
const GRACE: Duration = Duration::from_millis(1200);
