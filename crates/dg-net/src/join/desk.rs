//! The head's side.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use quinn::{Connection, VarInt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::rules::{Refusal, Rules};
use super::tokens::Tokens;
use super::{Answer, Ask, JoinToken, TokenBook};
use crate::identity::{Admitted, Ca, Fingerprint, IdentityError, Name, Passport};
use crate::quiet::Quiet;
use crate::wire::{WireError, read_frame, write_frame};

/// Gives certificates to those who bring a token.
#[derive(Debug)]
pub struct JoinDesk {
    admitted: Admitted,
    book: TokenBook,
    ca: Ca,
    quiet: Quiet,
    rules: Mutex<Rules>,
}

impl JoinDesk {
    /// The list on which new certificates go: that of whoever has joined has to be known at the door at once.
    pub fn admitted(&self) -> Admitted {
        self.admitted.clone()
    }

    /// With tokens in memory. `admitted` is the list on which new certificates go.
    pub fn new(ca: Ca, admitted: Admitted) -> Arc<Self> {
        Self::with_tokens(ca, admitted, TokenBook::in_memory())
    }

    /// With the tokens of `book`, which may be a file that others write too.
    pub fn with_tokens(ca: Ca, admitted: Admitted, book: TokenBook) -> Arc<Self> {
        Arc::new(Self { admitted, book, ca, quiet: Quiet::default(), rules: Mutex::default() })
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
        self.book.create(self.ca.fingerprint(), (host, port), name, life, now)
    }

    /// Whether there is a token that can be used. If not, the endpoint does not speak of joining at all.
    pub fn is_open(&self, now: SystemTime) -> bool {
        let open = self.book.is_open(now);
        open.unwrap_or_else(|error| {
            if self.quiet.allows(Instant::now()) {
                tracing::warn!(%error, "nobody can join");
            }
            false
        })
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
        if let Err(refusal) = rules.check(from, now) {
            return Answer::Refused(refusal);
        }
        let mut admitted = None;
        let decided = self.book.change(|tokens| self.grant(tokens, ask, now, &mut admitted));
        match decided {
            Ok(Ok((name, certificate))) => {
                tracing::info!(%name, %from, "joined");
                Answer::Granted { certificate, ca: self.ca.certificate_pem().to_owned() }
            }
            Ok(Err(refusal)) => {
                if refusal != Refusal::Failed {
                    rules.note_failure(from, now);
                }
                Answer::Refused(refusal)
            }
            Err(error) => {
                tracing::warn!(%error, "the list of join tokens could not be read or saved");
                // A token that could not be used up gives nothing.
                if let Some(fingerprint) = admitted
                    && let Err(error) = self.admitted.revoke(fingerprint)
                {
                    tracing::warn!(%error, "a certificate that nobody got stays on the list");
                }
                Answer::Refused(Refusal::Failed)
            }
        }
    }

    /// The token is used up last, so that whatever fails before leaves it as it was.
    fn grant(
        &self,
        tokens: &mut Tokens,
        ask: &Ask,
        now: SystemTime,
        admitted: &mut Option<Fingerprint>,
    ) -> Result<(Name, String), Refusal> {
        let matched = tokens.find(&ask.secret, &ask.name, now)?;
        // Certificates that were issued beside a running head count too.
        if let Err(error) = self.admitted.reload() {
            tracing::warn!(%error, "the list of certificates could not be read");
            return Err(Refusal::Failed);
        }
        // A token for any name gives none that somebody has.
        if !matched.bound && !self.admitted.of(&matched.name).is_empty() {
            return Err(Refusal::Name);
        }
        let signed = self.ca.sign_request(&ask.request, &matched.name, now);
        let certificate = signed.map_err(|error| {
            tracing::warn!(%error, "join request");
            Refusal::BadRequest
        })?;
        *admitted = Some(self.admit(&certificate).map_err(|error| {
            tracing::warn!(%error, name = %matched.name, "a new certificate could not be saved");
            Refusal::Failed
        })?);
        tokens.burn(&matched);
        Ok((matched.name, certificate))
    }

    fn admit(&self, certificate: &str) -> Result<Fingerprint, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        let certificate = certificate.map_err(|e| IdentityError::Crypto {
            what: "reading the new certificate",
            reason: e.to_string(),
        })?;
        let passport = Passport::read(&certificate)?;
        self.admitted.add(&passport)?;
        Ok(passport.fingerprint())
    }

    /// The rules are sound after a panic: every change of them is one statement.
    fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
