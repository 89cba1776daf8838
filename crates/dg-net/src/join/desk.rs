//! The head's side.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use quinn::{Connection, VarInt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::rules::{Refusal, Rules};
use super::token::SECRET_BYTES;
use super::{Answer, Ask, JoinToken};
use crate::endpoint::tls::provider;
use crate::identity::{Admitted, Ca, IdentityError, Name, Passport};
use crate::quiet::Quiet;
use crate::wire::{WireError, read_frame, write_frame};

/// Gives certificates to those who bring a token. The tokens are in memory: a head that is started again knows none.
#[derive(Debug)]
pub struct JoinDesk {
    admitted: Admitted,
    ca: Ca,
    quiet: Quiet,
    rules: Mutex<Rules>,
}

impl JoinDesk {
    /// `admitted` is the list on which new certificates go.
    pub fn new(ca: Ca, admitted: Admitted) -> Arc<Self> {
        Arc::new(Self { admitted, ca, quiet: Quiet::default(), rules: Mutex::default() })
    }

    /// Makes a token for the node `name`, or for any name that is free. `host` and `port` are where nodes reach the head.
    pub fn create_token(
        &self,
        host: &str,
        port: u16,
        name: Option<Name>,
        life: Duration,
        now: SystemTime,
    ) -> Result<JoinToken, IdentityError> {
        let failed = |reason: &dyn ToString| IdentityError::Crypto {
            what: "making a join token",
            reason: reason.to_string(),
        };
        let mut secret = [0; SECRET_BYTES];
        provider().secure_random.fill(&mut secret).map_err(|_| failed(&"no random bytes"))?;
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = JoinToken::new(host, port, self.ca.fingerprint(), secret).map_err(|e| failed(&e))?;
        if !self.rules().add(&token.secret, name, now + life, now) {
            return Err(failed(&"too many tokens are out"));
        }
        Ok(token)
    }

    /// Whether there is a token that can be used. If not, the endpoint does not speak of joining at all.
    pub fn is_open(&self, now: SystemTime) -> bool {
        self.rules().is_open(now)
    }

    /// One question, one answer.
    pub(crate) async fn serve(self: &Arc<Self>, connection: &Connection, within: Duration) {
        let address = connection.remote_address();
        if let Err(error) = self.try_serve(connection, within).await
            && self.quiet.allows(Instant::now())
        {
            tracing::warn!(%address, reason = %error, "join refused");
        }
        connection.close(VarInt::from_u32(0), b"end");
    }

    async fn try_serve(self: &Arc<Self>, connection: &Connection, within: Duration) -> Result<(), WireError> {
        let address = connection.remote_address();
        let exchange = async {
            let streams = connection.accept_bi().await;
            let (mut send, mut receive) = streams.map_err(|e| WireError::Io(e.to_string()))?;
            let ask: Ask = read_frame(&mut receive, within).await?;
            let desk = self.clone();
            // Signing takes a moment, and saving the list waits for the disk.
            let decide = move || desk.decide(&ask, address.ip(), SystemTime::now());
            let answer = tokio::task::spawn_blocking(decide).await;
            let answer = answer.unwrap_or(Answer::Refused(Refusal::Failed));
            if let Answer::Refused(reason) = answer
                && self.quiet.allows(Instant::now())
            {
                tracing::warn!(%address, %reason, "join refused");
            }
            write_frame(&mut send, &answer, within).await?;
            let _ = send.finish();
            let _ = send.stopped().await;
            Ok(())
        };
        tokio::time::timeout(within, exchange).await.map_err(|_| WireError::Deadline { within })?
    }

    /// Under one lock from the first look at the token to its end, so that it gives one certificate.
    fn decide(&self, ask: &Ask, from: IpAddr, now: SystemTime) -> Answer {
        let mut rules = self.rules();
        let matched = match rules.check(&ask.secret, &ask.name, from, now) {
            Ok(matched) => matched,
            Err(refusal) => return Answer::Refused(refusal),
        };
        // A token for any name gives none that somebody has.
        if !matched.bound && !self.admitted.of(&matched.name).is_empty() {
            rules.note_failure(from, now);
            return Answer::Refused(Refusal::Name);
        }
        let signed = self.ca.sign_request(&ask.request, &matched.name, now);
        let Ok(certificate) = signed.inspect_err(|error| tracing::warn!(%error, "join request")) else {
            rules.note_failure(from, now);
            return Answer::Refused(Refusal::BadRequest);
        };
        if let Err(error) = self.admit(&certificate) {
            tracing::warn!(%error, name = %matched.name, "a new certificate could not be saved");
            return Answer::Refused(Refusal::Failed);
        }
        rules.burn(&matched);
        tracing::info!(name = %matched.name, %from, "joined");
        Answer::Granted { certificate, ca: self.ca.certificate_pem().to_owned() }
    }

    fn admit(&self, certificate: &str) -> Result<(), IdentityError> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        let certificate = certificate.map_err(|e| IdentityError::Crypto {
            what: "reading the new certificate",
            reason: e.to_string(),
        })?;
        self.admitted.add(&Passport::read(&certificate)?)
    }

    /// The rules are sound after a panic: every change of them is one statement.
    fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
