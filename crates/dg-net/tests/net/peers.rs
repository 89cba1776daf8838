//! What holds for those who are let in.

use std::time::{Duration, Instant};

use dg_net::endpoint::{Endpoint, EndpointError, Options};
use dg_net::identity::{Admitted, Name, Role};

use crate::support::{Rig, WITHIN, ask, attempt, forget, loopback, name, raw, warnings};

#[tokio::test]
async fn both_ends_know_each_other() {
    let forge = crate::support::Forge::new();
    let listen = |holder: &str, role| {
        let identity = forge.identity(holder, role);
        Endpoint::listener(loopback(), &identity, Admitted::everyone(), None, Options::default()).unwrap()
    };
    let (head, mut listener) = listen("head", Role::Head);
    for (holder, role) in [("node-1", Role::Node), ("laptop", Role::Client)] {
        let identity = forge.identity(holder, role);
        let dialer =
            Endpoint::dialer(loopback(), &identity, Admitted::everyone(), Options::default()).unwrap();
        let there = dialer.connect(head.local_addr().unwrap(), &Name::head()).await.unwrap();
        let here = listener.accept().await.unwrap();
        assert_eq!((here.name(), here.role()), (&name(holder), role));
        assert_eq!(here.fingerprint(), identity.passport().fingerprint());
        assert_eq!((there.name(), there.role()), (&Name::head(), Role::Head));
        here.claims(holder).unwrap();
        drop(there);
        let ended = tokio::time::timeout(WITHIN, here.connection().closed()).await.unwrap();
        assert!(ended.to_string().contains("end"), "{ended}");
    }
    // An endpoint that listens dials too.
    let (node, _listener) = listen("node-2", Role::Node);
    node.connect(head.local_addr().unwrap(), &Name::head()).await.unwrap();
    assert_eq!(listener.accept().await.unwrap().name().as_str(), "node-2");
    head.close("the test is over").await;
    assert!(listener.accept().await.is_none());
}

#[tokio::test]
async fn a_peer_is_the_name_in_its_certificate() {
    let forge = crate::support::Forge::new();
    crate::support::logs();
    let identity = forge.identity("head", Role::Head);
    let (head, mut listener) =
        Endpoint::listener(loopback(), &identity, Admitted::everyone(), None, Options::default()).unwrap();
    let node = forge.identity("node-1", Role::Node);
    let dialer = Endpoint::dialer(loopback(), &node, Admitted::everyone(), Options::default()).unwrap();
    forget(dialer.local_addr().unwrap());
    let there = dialer.connect(head.local_addr().unwrap(), &Name::head()).await.unwrap();
    let here = listener.accept().await.unwrap();
    let error = here.claims("node-2\n").unwrap_err();
    assert!(matches!(error, EndpointError::WrongPeer { .. }), "{error}");
    let ended = tokio::time::timeout(WITHIN, there.connection().closed()).await.unwrap();
    assert!(ended.to_string().contains("name is not that of the certificate"), "{ended}");
    let lines = warnings(dialer.local_addr().unwrap()).await;
    assert!(lines.len() == 1 && lines[0].contains("this is `node-1`, not `node-2 `"), "{lines:#?}");
}

#[tokio::test]
async fn revocation_ends_what_is_open() {
    let rig = Rig::with(Admitted::only([]), Options::default());
    let dialer = rig.dialer("node-1", Role::Node);
    forget(dialer.local_addr().unwrap());
    let peer = dialer.connect(rig.address, &Name::head()).await.unwrap();
    ask(peer.connection()).await.unwrap();
    let [fingerprint] = rig.admitted.of(&name("node-1"))[..] else { panic!("one was issued") };
    assert!(rig.admitted.revoke(fingerprint).unwrap());
    let ended = tokio::time::timeout(WITHIN, peer.connection().closed()).await.unwrap();
    assert!(ended.to_string().contains("not admitted"), "{ended}");
    let lines = warnings(dialer.local_addr().unwrap()).await;
    assert!(lines.len() == 1 && lines[0].contains("connection ended"), "{lines:#?}");
    rig.serves().await;
}

#[tokio::test]
async fn a_silent_client_holds_up_nobody() {
    let options =
        Options { handshakes_max: 4, handshake_timeout: Duration::from_millis(500), ..Options::default() };
    let rig = Rig::with(Admitted::everyone(), options);
    // Real first packets of handshakes that nobody goes on with.
    for _ in 0..20 {
        let socket = quinn::Endpoint::client(loopback()).unwrap();
        let config = raw(&rig.forge, None);
        let connecting = socket.connect_with(config, rig.address, "head.dg-cluster").unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(5), connecting).await;
        std::mem::forget(socket);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.serves().await;
}

#[tokio::test]
async fn nobody_there_is_told_soon() {
    crate::support::logs();
    let forge = crate::support::Forge::new();
    let node = forge.identity("node-1", Role::Node);
    let dialer = Endpoint::dialer(loopback(), &node, Admitted::everyone(), Options::default()).unwrap();
    // A socket that never answers.
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let address = silent.local_addr().unwrap();
    forget(address);
    let start = Instant::now();
    let error = dialer.connect(address, &Name::head()).await.unwrap_err();
    assert!(matches!(error, EndpointError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5 * 5), "after {:?}", start.elapsed());
    assert_eq!(warnings(address).await.len(), 1);
    // And one that ends says so.
    let rig = Rig::new();
    let peer = rig.dialer("node-1", Role::Node).connect(rig.address, &Name::head()).await.unwrap();
    rig.endpoint.close("over").await;
    let ended = tokio::time::timeout(WITHIN, peer.connection().closed()).await.unwrap();
    assert!(ended.to_string().contains("over"), "{ended}");
}

#[tokio::test]
async fn strangers_have_one_stream_and_peers_have_more() {
    let rig = Rig::new();
    let peer = rig.dialer("node-1", Role::Node).connect(rig.address, &Name::head()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let opened = tokio::time::timeout(WITHIN, peer.connection().open_bi()).await.unwrap();
        streams.push(opened.unwrap());
    }
    // Whoever is refused has seen nothing answered, however much it sends.
    let refused =
        attempt(raw(&rig.forge, Some(rig.forge.shown("x.y", |_| ()))), rig.address, "head.dg-cluster").await;
    assert!(refused.error.contains("not what it must be"), "{}", refused.error);
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let forge = crate::support::Forge::new();
    let node = forge.identity("node-1", Role::Node);
    let check = |options: Options, expected: &str| {
        let error =
            Endpoint::dialer(loopback(), &node, Admitted::everyone(), options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(Options { mtu_max: 6600, ..Options::default() }, "mtu_max");
    check(Options { keep_alive: Duration::from_secs(1), ..Options::default() }, "keep_alive");
    check(Options { keep_alive: Duration::ZERO, ..Options::default() }, "keep_alive");
    check(Options { uni_streams_max: 0, ..Options::default() }, "uni_streams_max");
    check(Options { idle_timeout: Duration::MAX, ..Options::default() }, "idle_timeout");
    assert_eq!(Options::beside_cpu_ranks().idle_timeout, Duration::from_secs(3));
}
