//! The configurations of rustls: TLS 1.3, aws-lc-rs, certificates of one CA.

use std::sync::Arc;

use quinn::Connection;
use quinn::crypto::rustls::HandshakeData;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};

use crate::identity::Identity;

/// The provider, given to every configuration by hand: with two of them in a program the one of the process is not
/// defined, and asking for it panics.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Only the CA is trusted.
pub(crate) fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// Verifies those who connect. Not `mandatory`, it lets them through without a certificate, but none with a wrong one.
pub(crate) fn client_verifier(
    ca: &CertificateDer<'static>,
    mandatory: bool,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|e| Error::General(e.to_string()))
}

/// For those who listen: everybody needs a certificate.
pub(crate) fn server(identity: &Identity) -> Result<ServerConfig, Error> {
    let chain = vec![identity.certificate().clone()];
    server_with(identity, client_verifier(identity.ca(), true)?, chain, &[ALPN_CLUSTER])
}

/// For those who listen while join tokens are out. TLS learns the protocol after it has asked for a certificate, so
/// here it may be missing, and the gate turns away who has none and does not join. The CA is shown so that it can be
/// compared with the token.
pub(crate) fn server_with_joins(identity: &Identity) -> Result<ServerConfig, Error> {
    let chain = vec![identity.certificate().clone(), identity.ca().clone()];
    server_with(identity, client_verifier(identity.ca(), false)?, chain, &[ALPN_CLUSTER, ALPN_JOIN])
}

/// For those who dial.
pub(crate) fn client(identity: &Identity) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(identity.ca())?);
    let mut config = builder.with_client_auth_cert(vec![identity.certificate().clone()], identity.key())?;
    config.alpn_protocols = vec![ALPN_CLUSTER.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The certificate that the peer showed.
pub(super) fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// The protocol that both ends agreed on.
pub(super) fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn server_with(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    protocols: &[&[u8]],
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.key())?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // A resumed session would not look at the certificate again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What members of a cluster speak.
pub const ALPN_CLUSTER: &[u8] = b"dg-cluster/1";

/// What a node speaks that wants to become one.
pub const ALPN_JOIN: &[u8] = b"dg-join/1";
