//! Every way to be the wrong one, on both sides: refused before a message is answered, with the reason in the log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dg_net::endpoint::{ALPN_CLUSTER, Endpoint, EndpointError, Options};
use dg_net::identity::{Admitted, Fingerprint, Identity, Name, Role};
use quinn::ClientConfig;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};

use crate::support::{Forge, Rig, Shown, attempt, forget, loopback, name, raw, warnings};

/// The connection is refused: `seen` by the one who dials, `logged` by the listener in exactly one line.
async fn refused(rig: &Rig, case: &str, client: ClientConfig, seen: &str, logged: &str) {
    let attempt = attempt(client, rig.address, "head.dg-cluster").await;
    assert!(attempt.error.contains(seen), "{case}: the client sees `{}`", attempt.error);
    let lines = warnings(attempt.from).await;
    assert_eq!(lines.len(), 1, "{case}: {lines:#?}");
    assert!(lines[0].contains("connection refused") && lines[0].contains(logged), "{case}: {}", lines[0]);
    assert!(lines[0].contains("hint: "), "{case}: {}", lines[0]);
    assert_eq!(rig.answered(), 0, "{case}: a message was answered");
}

fn names(params: &mut CertificateParams, names: &[&str]) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    params.subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names;
}

#[tokio::test]
async fn no_certificate() {
    let rig = Rig::new();
    let client = raw(&rig.forge, None);
    refused(
        &rig,
        "no token is out",
        client.clone(),
        "peer sent no certificates",
        "peer sent no certificates",
    )
    .await;
    // While a token is out, TLS lets strangers in who want to join, and only those.
    rig.desk.create_token("localhost", 1, None, Duration::from_secs(60), SystemTime::now()).unwrap();
    refused(&rig, "a token is out", client, "no certificate", "has no certificate").await;
    rig.serves().await;
}

#[tokio::test]
async fn certificates_that_tls_refuses() {
    let rig = Rig::new();
    let shown = |edit: fn(&mut CertificateParams)| raw(&rig.forge, Some(rig.forge.shown("node-1", edit)));
    // The stranger trusts our CA, but shows a certificate of its own.
    let other = raw(&rig.forge, Some(Forge::new().shown("node-1", |_| ())));
    refused(&rig, "other CA", other, "invalid peer certificate", "BadSignature").await;
    let expired = shown(|params| params.not_after = date_time_ymd(2020, 1, 1));
    refused(&rig, "expired", expired, "expired", "expired").await;
    let early = shown(|params| params.not_before = date_time_ymd(2095, 1, 1));
    refused(&rig, "not yet valid", early, "not valid yet", "not valid yet").await;
    let server = shown(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    refused(&rig, "wrong EKU", server, "extended key usage", "extended key usage for client").await;
    rig.serves().await;
}

#[tokio::test]
async fn certificates_that_are_no_passport() {
    let rig = Rig::new();
    let shown = |edit: fn(&mut CertificateParams)| raw(&rig.forge, Some(rig.forge.shown("node-1", edit)));
    type Edit = fn(&mut CertificateParams);
    let cases: [(&str, Edit, &str); 7] = [
        ("wrong SAN", |params| names(params, &["node-1.example"]), "is for `node-1.example`"),
        ("no SAN", |params| names(params, &[]), "has not exactly one name"),
        ("two", |params| names(params, &["a.dg-cluster", "b.dg-cluster"]), "has not exactly one name"),
        ("address", |params| names(params, &["10.0.0.1"]), "has not exactly one name"),
        ("capitals", |params| names(params, &["Node.dg-cluster"]), "is for `Node.dg-cluster`"),
        ("deeper", |params| names(params, &["a.b.dg-cluster"]), "is for `a.b.dg-cluster`"),
        ("no EKU", |params| params.extended_key_usages = vec![], "purposes"),
    ];
    for (case, edit, logged) in cases {
        refused(&rig, case, shown(edit), "the certificate is not what it must be", logged).await;
    }
    // A client's certificate with the head's name.
    let head = rig.forge.shown("head", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let client = raw(&rig.forge, Some(head));
    refused(&rig, "head as client", client, "the certificate is not what it must be", "purposes").await;
    rig.serves().await;
}

#[tokio::test]
async fn certificates_that_are_not_admitted() {
    let rig = Rig::with(Admitted::only([]), Options::default());
    let node = rig.forge.shown("node-1", |_| ());
    let fingerprint = Fingerprint::of(&node.certificate);
    let again =
        || Shown { certificate: node.certificate.clone(), key: node.key.clone_key(), pem: String::new() };
    let client = raw(&rig.forge, Some(again()));
    let logged = format!("certificate {fingerprint} of node `node-1` is not admitted");
    refused(&rig, "never admitted", client.clone(), "the certificate is not admitted", &logged).await;
    let identity = Identity::from_pem(&node.pem).unwrap();
    rig.admitted.add(identity.passport()).unwrap();
    rig.admitted.revoke(fingerprint).unwrap();
    refused(&rig, "revoked", client, "the certificate is not admitted", &logged).await;
    // Our own dialler learns it from `connect`, because that waits for the welcome.
    let dialer = Endpoint::dialer(loopback(), &identity, Admitted::everyone(), Options::default()).unwrap();
    let error = dialer.connect(rig.address, &Name::head()).await.unwrap_err();
    assert!(
        matches!(&error, EndpointError::Refused { reason, .. } if reason.contains("not admitted")),
        "{error}"
    );
    rig.serves().await;
}

#[tokio::test]
async fn another_protocol() {
    let rig = Rig::new();
    let shown = || Some(rig.forge.shown("node-1", |_| ()));
    let client = |protocol: &[u8]| ClientConfig::new(Arc::new(rig.forge.client(shown(), protocol)));
    for (case, protocol) in [("web", &b"h3"[..]), ("next", b"dg-cluster/2"), ("join, no token", b"dg-join/1")]
    {
        refused(&rig, case, client(protocol), "any known protocol", "any known protocol").await;
    }
    rig.serves().await;
}

/// Dials `served`, which should be the head, and is refused by us.
async fn distrusted(case: &str, forge: &Forge, served: Shown, admitted: Admitted, expected: &str) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![served.certificate], served.key)
        .unwrap();
    config.alpn_protocols = vec![ALPN_CLUSTER.to_vec()];
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    let server =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(config)), loopback()).unwrap();
    let address = server.local_addr().unwrap();
    forget(address);
    let serving = tokio::spawn(async move {
        let Ok(connection) = server.accept().await.unwrap().await else { return };
        assert!(connection.accept_bi().await.is_err(), "the dialler said something");
    });
    let node = forge.identity("node-1", Role::Node);
    let dialer = Endpoint::dialer(loopback(), &node, admitted, Options::default()).unwrap();
    let error = dialer.connect(address, &Name::head()).await.unwrap_err().to_string();
    assert!(error.contains(expected), "{case}: {error}");
    serving.await.unwrap();
    let lines = warnings(address).await;
    assert!(lines.len() == 1 && lines[0].contains(expected), "{case}: {lines:#?}");
}

#[tokio::test]
async fn servers_that_are_not_the_head() {
    crate::support::logs();
    let forge = Forge::new();
    let everyone = Admitted::everyone;
    let other = Forge::new().shown("head", |_| ());
    distrusted("other CA", &forge, other, everyone(), "invalid peer certificate").await;
    distrusted("a node", &forge, forge.shown("node-2", |_| ()), everyone(), "not valid for name").await;
    let old = forge.shown("head", |params| params.not_after = date_time_ymd(2020, 1, 1));
    distrusted("expired", &forge, old, everyone(), "expired").await;
    let early = forge.shown("head", |params| params.not_before = date_time_ymd(2095, 1, 1));
    distrusted("not yet", &forge, early, everyone(), "not valid yet").await;
    let client = forge.shown("head", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    distrusted("client", &forge, client, everyone(), "invalid peer certificate").await;
    let two = forge.shown("head", |params| names(params, &["head.dg-cluster", "node-2.dg-cluster"]));
    distrusted("two names", &forge, two, everyone(), "has not exactly one name").await;
    distrusted("revoked", &forge, forge.shown("head", |_| ()), Admitted::only([]), "not admitted").await;
}

#[tokio::test]
async fn an_expired_certificate_is_not_even_used() {
    let forge = Forge::new();
    let long_ago = SystemTime::now() - Duration::from_secs(100 * 86_400);
    let old = forge.ca.issue(&name("node-1"), Role::Node, long_ago).unwrap();
    let error = Endpoint::dialer(loopback(), &old, Admitted::everyone(), Options::default()).unwrap_err();
    assert!(error.to_string().contains("certs renew"), "{error}");
    // A few minutes between clocks do no harm.
    let soon = SystemTime::now() + Duration::from_secs(4 * 60);
    forge.ca.issue(&name("node-1"), Role::Node, soon).unwrap().check(SystemTime::now()).unwrap();
}
