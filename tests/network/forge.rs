//! Certificates of a rig's authority, good ones and those that `dg-cluster` would not sign.

use crate::rig::Rig;
use dg_net::endpoint::ALPN_CLUSTER;
use dg_net::identity::{Ca, Name, Role, State};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// An authority and its key.
pub(crate) struct Forge {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, whatever is wrong with them.
pub(crate) struct Shown {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Forge {
    /// That of a rig.
    pub(crate) fn of(rig: &Rig) -> Self {
        Self::from_pem(&std::fs::read_to_string(rig.state().join("ca.key")).expect("the authority"))
    }

    /// Another one.
    pub(crate) fn other() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::create(folder.path().join("state")).expect("a state folder");
        state.init_ca(false, SystemTime::now()).expect("an authority");
        Self::from_pem(&std::fs::read_to_string(state.folder().join("ca.key")).expect("the authority"))
    }

    fn from_pem(pem: &str) -> Self {
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let key = &pem[pem.find("-----BEGIN PRIVATE KEY").expect("a key")..];
        let key = KeyPair::from_pem(key).expect("a key");
        let issuer = Issuer::from_ca_cert_der(&root, key).expect("an authority");
        Self { root, issuer }
    }

    /// A good certificate of the node `holder`, made worse by `edit`.
    pub(crate) fn shown(&self, holder: &str, edit: impl FnOnce(&mut CertificateParams)) -> Shown {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![format!("{holder}.dg-cluster")]).expect("a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Shown {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        }
    }

    /// TLS of a client that trusts this authority and shows what it is told to.
    pub(crate) fn tls(&self, shown: Option<Shown>) -> QuicClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut config = match shown {
            Some(Shown { certificate, key }) => {
                builder.with_client_auth_cert(vec![certificate], key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_CLUSTER.to_vec()];
        QuicClientConfig::try_from(config).expect("for QUIC")
    }
}

/// Issues a good certificate into the rig's state folder, and waits until the head has heard of it.
pub(crate) fn issue(rig: &Rig, name: &str, role: Role) {
    let state = State::open(rig.state()).expect("the state folder");
    let ca: Ca = state.ca().expect("the authority");
    let name = Name::parse(name).expect("a name");
    state.issue(&ca, &name, role, true, SystemTime::now()).expect("a certificate");
    std::thread::sleep(LOOKS_AGAIN);
}

/// How a connection ended that was made by hand.
pub(crate) struct Attempt {
    pub(crate) from: SocketAddr,
    pub(crate) error: String,
}

/// Dials without our own checks, says something at once, and waits for the end.
pub(crate) async fn attempt(config: quinn::ClientConfig, to: SocketAddr, first: &[u8]) -> Attempt {
    let socket = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
    let from = socket.local_addr().expect("an address");
    let connected = socket.connect_with(config, to, "head.dg-cluster").expect("a configuration").await;
    let error = match connected {
        Err(error) => error.to_string(),
        Ok(connection) => {
            let answer = async {
                let (mut send, mut receive) = connection.open_bi().await.ok()?;
                send.write_all(first).await.ok()?;
                receive.read_to_end(1 << 20).await.ok().filter(|answer| !answer.is_empty())
            };
            let answer = tokio::time::timeout(WITHIN, answer).await.ok().flatten();
            assert!(answer.is_none(), "it was answered: {answer:?}");
            let closed = tokio::time::timeout(WITHIN, connection.closed()).await;
            closed.map_or_else(|_| "it is still open".into(), |reason| reason.to_string())
        }
    };
    socket.close(0u32.into(), b"");
    Attempt { from, error }
}

const WITHIN: Duration = Duration::from_secs(10);
/// The head reads its list each second.
pub(crate) const LOOKS_AGAIN: Duration = Duration::from_millis(1300);
