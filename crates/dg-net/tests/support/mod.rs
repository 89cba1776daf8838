//! Certificates good and bad, a listener that answers, and what it logged.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, SystemTime};

use dg_net::endpoint::{ALPN_CLUSTER, Endpoint, Listener, Options};
use dg_net::identity::{Admitted, Ca, Identity, Name, Role};
use dg_net::join::JoinDesk;
use dg_net::wire::{Message, WireError, read_frame, write_frame};
use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// What the application of the tests says; the listener answers with the number doubled.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) words: Vec<Option<String>>,
}

impl Message for Hello {}

pub(crate) fn hello(name: &str) -> Hello {
    Hello { name: name.to_owned(), number: 21, words: vec![None, Some("word".to_owned())] }
}

pub(crate) fn name(text: &str) -> Name {
    if text == "head" { Name::head() } else { Name::parse(text).unwrap() }
}

/// A CA of which the tests have the key too, so that they can sign what `dg-net` would not.
pub(crate) struct Forge {
    pub(crate) ca: Ca,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, whatever is wrong with them.
pub(crate) struct Shown {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) pem: String,
}

impl Forge {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "dg-cluster CA");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let ca = Ca::from_pem(&format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn identity(&self, holder: &str, role: Role) -> Identity {
        self.ca.issue(&name(holder), role, SystemTime::now()).unwrap()
    }

    /// A good certificate of the node `holder`, made worse by `edit`.
    pub(crate) fn shown(&self, holder: &str, edit: impl FnOnce(&mut CertificateParams)) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![format!("{holder}.dg-cluster")]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Shown {
            pem: format!("{}{}{}", certificate.pem(), self.ca.certificate_pem(), key.serialize_pem()),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    /// A client that trusts this CA and shows what it is told to.
    pub(crate) fn client(&self, shown: Option<Shown>, protocol: &[u8]) -> QuicClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            Some(Shown { certificate, key, .. }) => {
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        QuicClientConfig::try_from(config).unwrap()
    }
}

/// A head that answers every peer's first message.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) admitted: Admitted,
    pub(crate) answered: Arc<AtomicUsize>,
    pub(crate) desk: Arc<JoinDesk>,
    pub(crate) endpoint: Endpoint,
    pub(crate) forge: Forge,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Admitted::everyone(), Options::default())
    }

    pub(crate) fn with(admitted: Admitted, options: Options) -> Self {
        logs();
        let forge = Forge::new();
        let ca = forge.ca_again();
        let desk = JoinDesk::new(ca, admitted.clone());
        let head = forge.identity("head", Role::Head);
        let (endpoint, listener) =
            Endpoint::listener(loopback(), &head, admitted.clone(), Some(desk.clone()), options).unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        tokio::spawn(serve(listener, answered.clone()));
        Self { address: endpoint.local_addr().unwrap(), admitted, answered, desk, endpoint, forge }
    }

    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// A dialler with a good certificate.
    pub(crate) fn dialer(&self, holder: &str, role: Role) -> Endpoint {
        let identity = self.forge.identity(holder, role);
        self.admitted.add(identity.passport()).unwrap();
        Endpoint::dialer(loopback(), &identity, Admitted::everyone(), Options::default()).unwrap()
    }

    /// A good peer gets its answer.
    pub(crate) async fn serves(&self) {
        let before = self.answered();
        let dialer = self.dialer("node-good", Role::Node);
        let peer = dialer.connect(self.address, &Name::head()).await.unwrap();
        let answer = ask(peer.connection()).await.unwrap();
        assert_eq!(answer.number, 42);
        assert_eq!(self.answered(), before + 1);
    }
}

impl Forge {
    fn ca_again(&self) -> Ca {
        let pem = format!("{}{}", self.ca.certificate_pem(), self.issuer.key().serialize_pem());
        Ca::from_pem(&pem).unwrap()
    }
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Says hello and waits for the answer.
pub(crate) async fn ask(connection: &quinn::Connection) -> Result<Hello, WireError> {
    let io = |error: quinn::ConnectionError| WireError::Io(error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(io)?;
    write_frame(&mut send, &hello("anyone"), WITHIN).await?;
    read_frame(&mut receive, WITHIN).await
}

async fn serve(mut listener: Listener, answered: Arc<AtomicUsize>) {
    while let Some(peer) = listener.accept().await {
        let answered = answered.clone();
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = peer.connection().accept_bi().await {
                let answered = answered.clone();
                tokio::spawn(async move {
                    let Ok(mut hello) = read_frame::<Hello>(&mut receive, WITHIN).await else { return };
                    answered.fetch_add(1, Ordering::SeqCst);
                    hello.number = hello.number.wrapping_mul(2);
                    write_frame(&mut send, &hello, WITHIN).await.unwrap();
                });
            }
        });
    }
}

/// A connection made by hand: its own port, and how it ended.
pub(crate) struct Attempt {
    pub(crate) from: SocketAddr,
    pub(crate) error: String,
}

/// Dials without the checks of `Endpoint`, sends a message at once and waits for the end.
pub(crate) async fn attempt(config: ClientConfig, to: SocketAddr, server: &str) -> Attempt {
    let socket = quinn::Endpoint::client(loopback()).unwrap();
    let from = socket.local_addr().unwrap();
    forget(from);
    let connected = socket.connect_with(config, to, server).unwrap().await;
    let error = match connected {
        Err(error) => error.to_string(),
        Ok(connection) => {
            let answer = tokio::time::timeout(WITHIN, ask(&connection)).await.unwrap();
            assert!(answer.is_err(), "an answer came: {answer:?}");
            tokio::time::timeout(WITHIN, connection.closed()).await.unwrap().to_string()
        }
    };
    socket.close(0u32.into(), b"");
    Attempt { from, error }
}

/// Warnings of `dg-net` about an address, once there is one; a little later, so that a second one is seen too.
pub(crate) async fn warnings(about: SocketAddr) -> Vec<String> {
    let about = format!("address={about} ");
    let find = || -> Vec<String> {
        let text = String::from_utf8(logs().lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(" WARN dg_net") && line.contains(&about));
        lines.map(str::to_owned).collect()
    };
    for _ in 0..200 {
        if !find().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    find()
}

/// Takes an address out of the log: another test may have had the port before.
pub(crate) fn forget(address: SocketAddr) {
    let mut log = logs().lock().unwrap();
    let text = String::from_utf8(log.clone()).unwrap();
    *log = text.replace(&format!("address={address} "), "address=(before) ").into_bytes();
}

/// All that was logged so far.
pub(crate) fn logs() -> &'static Mutex<Vec<u8>> {
    static START: Once = Once::new();
    START.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Lines).init());
    &LOGS
}

static LOGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Lines;

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGS.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A raw client of the cluster's protocol.
pub(crate) fn raw(forge: &Forge, shown: Option<Shown>) -> ClientConfig {
    ClientConfig::new(Arc::new(forge.client(shown, ALPN_CLUSTER)))
}

/// Numbers that look random and are the same every time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
