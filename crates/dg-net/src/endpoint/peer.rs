//! A peer that has proved who it is.

use std::net::SocketAddr;

use quinn::Connection;

use super::EndpointError;
use super::error::Code;
use crate::identity::{Admitted, Fingerprint, Name, Passport, Role};

/// A peer that has proved who it is, and the connection to it.
///
/// Dropping it ends the connection, whoever else holds a clone of that, and so does the revocation of its certificate.
#[derive(Debug)]
pub struct Peer {
    connection: Connection,
    passport: Passport,
}

impl Peer {
    pub(super) fn new(connection: Connection, passport: Passport, admitted: &Admitted) -> Self {
        tokio::spawn(guard(connection.clone(), passport.clone(), admitted.clone()));
        Self { connection, passport }
    }

    /// The name in its certificate.
    pub const fn name(&self) -> &Name {
        self.passport.name()
    }

    /// What its certificate is for.
    pub const fn role(&self) -> Role {
        self.passport.role()
    }

    /// Of its certificate.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.passport.fingerprint()
    }

    /// Where its packets come from.
    pub fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// The connection.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Compares the name that the peer gives itself in a message with its certificate. If they differ the connection ends.
    pub fn claims(&self, claimed: &str) -> Result<(), EndpointError> {
        if claimed == self.name().as_str() {
            return Ok(());
        }
        Code::WrongName.close(&self.connection);
        let claimed = claimed.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let error = EndpointError::WrongPeer { claimed, proved: self.name().clone() };
        tracing::warn!(address = %self.address(), reason = %error, "connection refused");
        Err(error)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        Code::Bye.close(&self.connection);
    }
}

/// Ends the connection when its certificate does not count any more.
async fn guard(connection: Connection, passport: Passport, admitted: Admitted) {
    tokio::select! {
        _ = connection.closed() => {}
        () = admitted.refuses(passport.fingerprint()) => {
            Code::NotAdmitted.close(&connection);
            let error = EndpointError::not_admitted(&passport);
            tracing::warn!(address = %connection.remote_address(), reason = %error, "connection ended");
        }
    }
}
