//! Every way to be the wrong one, at a head that runs: refused before anything is answered, with a line in its log.

use crate::forge::{Forge, Shown, attempt, issue};
use crate::raw::{self, Answer, Hello};
use crate::rig::{Rig, SMALL, alone, run};
use dg_net::bus::{self, BusError};
use dg_net::identity::Role;
use dg_net::wire;
use quinn::ClientConfig;
use ractor::Actor;
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeServer, NodeServerMessage};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lines of the head's log after `seen` bytes that have this in them, once there is one and a moment later.
fn lines(rig: &Rig, seen: usize, part: &str) -> Vec<String> {
    let find = || -> Vec<String> {
        let log = rig.head_log();
        let new = log.get(seen..).unwrap_or_default();
        new.lines().filter(|line| line.contains("WARN") && line.contains(part)).map(str::to_owned).collect()
    };
    let until = Instant::now() + Duration::from_secs(10);
    while find().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(50));
    find()
}

/// A good greeting by a peer that is not what it must be: refused, and the head has one line about it.
async fn refused(rig: &Rig, case: &str, config: ClientConfig, seen_by_peer: &str, logged: &str) {
    let hello = wire::encode(&Hello::of("left")).expect("a message");
    let first = raw::frame(u32::try_from(hello.len()).expect("short"), &hello);
    let before = rig.head_log().len();
    let attempt = attempt(config, rig.address, &first).await;
    assert!(attempt.error.contains(seen_by_peer), "{case}: the peer sees `{}`", attempt.error);
    let lines = lines(rig, before, &format!("address={}", attempt.from));
    assert!(lines.len() == 1 && lines[0].contains(logged), "{case}: {lines:#?}");
    println!("{case}: {}", lines[0].trim());
}

#[test]
fn who_is_not_what_it_must_be_is_refused_with_a_line_in_the_log() {
    let _alone = alone();
    let rig = Rig::local();
    run(async {
        let forge = Forge::of(&rig);
        let client = |shown: Option<Shown>| ClientConfig::new(Arc::new(forge.tls(shown)));
        let shown = |edit: fn(&mut CertificateParams)| client(Some(forge.shown("left", edit)));
        refused(&rig, "no certificate", client(None), "no certificates", "no certificates").await;
        let other = client(Some(Forge::other().shown("left", |_| ())));
        refused(&rig, "other CA", other, "invalid peer certificate", "invalid peer certificate").await;
        let expired = shown(|params| params.not_after = date_time_ymd(2020, 1, 1));
        refused(&rig, "expired", expired, "expired", "expired").await;
        let early = shown(|params| params.not_before = date_time_ymd(2095, 1, 1));
        refused(&rig, "not yet valid", early, "not valid yet", "not valid yet").await;
        let san = shown(|params| {
            params.subject_alt_names =
                CertificateParams::new(vec!["left.example".into()]).expect("a name").subject_alt_names;
        });
        refused(&rig, "wrong SAN", san, "not what it must be", "is for `left.example`").await;
        let eku = shown(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        refused(&rig, "wrong EKU", eku, "extended key usage", "extended key usage").await;
        // Signed by the right authority, but the head has never heard of it, as after `certs revoke`.
        refused(&rig, "not on the list", shown(|_| ()), "not admitted", "is not admitted").await;
        let old = forge.shown("left", |_| ());
        let old = ClientConfig::new(Arc::new(crate::old_session::OldTls(Arc::new(forge.tls(Some(old))))));
        refused(&rig, "old TLS", old, "error 70", "must speak TLS 1.3").await;
        // A client's certificate cannot pass for a node: what it says is a question, and not understood as one.
        other_name(&rig).await;
        wrong_cookie(&rig).await;
    });
    assert!(rig.pictures("after", SMALL) == rig.serial(SMALL), "it works as before");
    rig.await_ready(Duration::from_secs(10));
}

/// Another node's name in the greeting.
async fn other_name(rig: &Rig) {
    issue(rig, "stray", Role::Node);
    for name in ["left", "head", "stray\nnode"] {
        let before = rig.head_log().len();
        let peer = raw::connect(rig, "stray").await;
        let from = peer.connection().local_ip();
        let error = bus::greet(peer, name, raw::incarnation(), Vec::new()).await.err().expect("refused");
        assert!(!matches!(error, BusError::Refused { .. }), "{name:?} at {from:?} was answered: {error}");
        let lines = lines(rig, before, "this is `stray`, not `");
        assert!(!lines.is_empty(), "{name:?}");
        println!("other name: {}", lines[0].trim());
    }
    // Its own name, which the cluster's file does not have, is answered by a refusal.
    let before = rig.head_log().len();
    let peer = raw::connect(rig, "stray").await;
    let facts = Hello::of("stray").facts;
    let error = bus::greet(peer, "stray", raw::incarnation(), facts).await.err().expect("refused");
    assert!(error.to_string().contains("no node `stray`"), "{error}");
    assert_eq!(lines(rig, before, "no node `stray`").len(), 1);
}

/// A node that the head takes, and whose actors then do not know the cookie.
async fn wrong_cookie(rig: &Rig) {
    // The agent of the node holds its place: this one is another start of it, with the same right.
    let before = rig.head_log().len();
    let peer = raw::connect(rig, "left").await;
    let hello = Hello::of("left");
    let (mut send, mut receive) = peer.connection().open_bi().await.expect("a stream");
    wire::write_frame(&mut send, &hello, Duration::from_secs(5)).await.expect("it is heard");
    let answer: Answer = wire::read_frame(&mut receive, Duration::from_secs(5)).await.expect("an answer");
    let Answer::Taken { cookie, .. } = answer else { panic!("it is taken so far") };
    let name = format!("left-{}", hello.incarnation);
    let wrong: String = cookie.chars().rev().collect();
    let server = NodeServer::new(0, wrong, name.clone(), name, None, Some(NodeConnectionMode::Isolated));
    let (server, _) = Actor::spawn(None, server, ()).await.expect("a server");
    let stream = Box::new(Stream { send, receive });
    let opened = NodeServerMessage::ConnectionOpenedExternal { stream, is_server: false };
    server.cast(opened).expect("it lives");
    let lines = lines(rig, before, "node lost while it joined");
    assert!(lines.len() == 1 && lines[0].contains("left"), "{lines:#?}");
    println!("wrong cookie: {}", lines[0].trim());
    server.stop(None);
    drop(peer);
}

struct Stream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

impl ClusterBidiStream for Stream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(self.receive), Box::new(self.send))
    }

    fn peer_label(&self) -> Option<String> {
        Some("by-hand".into())
    }
}

#[test]
fn a_certificate_that_is_revoked_beside_a_running_head_counts_no_more() {
    let _alone = alone();
    let mut rig = Rig::up(
        "[[node]]\nname = \"left\"\nlocal = true\nranks = 1\ncpu_threads = 1\n\
         [[node]]\nname = \"right\"\nlocal = true\nlaunch = \"manual\"\nranks = 1\ncpu_threads = 1\n",
        None,
        false,
    );
    rig.agent("right", &rig.state(), 0);
    rig.await_ready(Duration::from_secs(30));
    run(async {
        issue(&rig, "guest", Role::Client);
        let guest = raw::connect(&rig, "guest").await;
        let begin = Instant::now();
        rig.cluster(&["certs", "revoke", "--cluster", "rig.toml", "guest"]).expect_success();
        let ended = tokio::time::timeout(Duration::from_secs(10), guest.connection().closed()).await;
        let took = begin.elapsed();
        println!("a revoked client's connection ended after {took:.2?}");
        assert!(ended.expect("it ends").to_string().contains("not admitted"));
        assert!(took < Duration::from_secs(2 * 5), "{took:?}");
    });
    let (seen, begin) = (rig.events().len(), Instant::now());
    rig.cluster(&["certs", "revoke", "--cluster", "rig.toml", "right"]).expect_success();
    rig.await_event("node_lost", "right", seen, Duration::from_secs(10));
    println!("a revoked node was lost after {:.2?}", begin.elapsed());
    assert!(rig.head_log().contains("of node `right` is not admitted"), "{}", rig.head_log());
    // It tries again and again, and is not let in; then it is issued anew, and a new agent is.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(rig.status()["nodes"][1]["state"], "down");
}
