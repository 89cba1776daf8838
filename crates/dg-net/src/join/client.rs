//! The node's side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use quinn::{ClientConfig, VarInt};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::{Answer, Ask, JoinError, JoinToken};
use crate::endpoint::tls::{provider, roots};
use crate::endpoint::{ALPN_JOIN, EndpointError, Options, bind, client_config, dial};
use crate::identity::{Fingerprint, Identity, IdentityError, Name, Role, new_key, request};
use crate::wire::{read_frame, write_frame};

/// Asks the head of `token` for a certificate for the node `name`. The key is made here and stays here. The caller saves
/// the identity ([`State::save`](crate::identity::State::save)) before anything else: the token is used up.
pub async fn join(token: &JoinToken, name: &Name, options: &Options) -> Result<Identity, JoinError> {
    let resolved =
        tokio::time::timeout(options.handshake_timeout, tokio::net::lookup_host(token.address())).await;
    let unresolved = |reason: String| JoinError::Resolve { host: token.address(), reason };
    let addresses: Vec<SocketAddr> = resolved
        .map_err(|_| unresolved("no answer in time".to_owned()))?
        .map_err(|e| unresolved(e.to_string()))?
        .take(ADDRESSES_MAX)
        .collect();
    let mut last = unresolved("the list of its addresses is empty".to_owned());
    for address in addresses {
        match join_at(address, token, name, options).await {
            // Somebody is there, or not: only if not, the next address may do better.
            Err(
                error @ JoinError::Connection(
                    EndpointError::Refused { .. } | EndpointError::Unreachable { .. },
                ),
            ) => {
                last = error;
            }
            done => return done,
        }
    }
    Err(last)
}

async fn join_at(
    address: SocketAddr,
    token: &JoinToken,
    name: &Name,
    options: &Options,
) -> Result<Identity, JoinError> {
    let local: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = bind(local, options)?;
    let within = options.handshake_timeout;
    let connection = dial(&socket, &config(token, options)?, address, &Name::head(), within).await?;
    let key = new_key()?;
    let ask = Ask { name: name.to_string(), request: request(&key)?, secret: token.secret.clone() };
    let exchange = async {
        let streams = connection.open_bi().await;
        let (mut send, mut receive) = streams.map_err(|e| EndpointError::connection(address, e))?;
        write_frame(&mut send, &ask, within).await?;
        Ok::<Answer, JoinError>(read_frame(&mut receive, within).await?)
    };
    let answer = tokio::time::timeout(within, exchange).await;
    let answer = answer.map_err(|_| EndpointError::Unreachable { address, within })?;
    connection.close(VarInt::from_u32(0), b"end");
    let _ = tokio::time::timeout(within, socket.wait_idle()).await;
    match answer? {
        Answer::Granted { certificate, ca } => {
            let pem = format!("{certificate}{ca}{}", key.serialize_pem());
            accept(&pem, token, name).map_err(JoinError::Answer)
        }
        Answer::Refused(refusal) => Err(JoinError::Refused(refusal)),
    }
}

/// The answer is what was asked for: the pinned CA, our key, our name, valid now.
fn accept(pem: &str, token: &JoinToken, name: &Name) -> Result<Identity, IdentityError> {
    let identity = Identity::from_pem(pem)?;
    let passport = identity.passport();
    let pinned = Fingerprint::of(identity.ca()) == token.ca;
    if !pinned || passport.name() != name || passport.role() != Role::Node {
        return Err(IdentityError::Certificate {
            what: format!("is that of {} `{}`, or of another CA", passport.role(), passport.name()),
            hint: "do not trust this head",
        });
    }
    identity.check(SystemTime::now())?;
    Ok(identity)
}

fn config(token: &JoinToken, options: &Options) -> Result<ClientConfig, EndpointError> {
    let failed = |e: Error| EndpointError::Setup { what: "TLS", reason: e.to_string() };
    let builder = rustls::ClientConfig::builder_with_provider(provider());
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa(token.ca)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    client_config(config, &Arc::new(options.transport()?))
}

/// Trusts a server whose chain ends in one CA, known by its hash, exactly as if that CA had been configured.
#[derive(Debug)]
struct PinnedCa(Fingerprint);

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = chain.last().ok_or_else(|| Error::General("the head shows no CA".to_owned()))?;
        if Fingerprint::of(ca) != self.0 {
            return Err(Error::General("the head's CA is not that of the join token".to_owned()));
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots(&ca.clone().into_owned())?, provider()).build();
        let verifier = verifier.map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

const ADDRESSES_MAX: usize = 8;
