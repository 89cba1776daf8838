//! Joining over loopback: once, with the right token, for the right name.

use std::time::{Duration, SystemTime};

use dg_net::endpoint::{Endpoint, Options};
use dg_net::identity::{Admitted, Identity, Name};
use dg_net::join::{JoinError, JoinToken, Refusal, TOKEN_LIFE, join};

use crate::support::{Rig, ask, forget, loopback, name, warnings};

fn token(rig: &Rig, bound: Option<&str>) -> JoinToken {
    token_at(rig, bound, SystemTime::now())
}

fn token_at(rig: &Rig, bound: Option<&str>, now: SystemTime) -> JoinToken {
    let (host, port) = (rig.address.ip().to_string(), rig.address.port());
    let token = rig.desk.create_token(&host, port, bound.map(name), TOKEN_LIFE, now).unwrap();
    // As it comes out of a terminal.
    token.to_string().parse().unwrap()
}

async fn try_join(token: &JoinToken, who: &str) -> Result<Identity, JoinError> {
    join(token, &name(who), &Options::default()).await
}

async fn refused(token: &JoinToken, who: &str, expected: Refusal) {
    match try_join(token, who).await {
        Err(JoinError::Refused(refusal)) => assert_eq!(refusal, expected),
        other => panic!("{other:?}"),
    }
}

/// The warnings of the head that a join was refused, for all addresses that this test's head saw.
fn refusals(reason: &str) -> usize {
    let text = String::from_utf8(crate::support::logs().lock().unwrap().clone()).unwrap();
    text.lines().filter(|line| line.contains("join refused") && line.contains(reason)).count()
}

#[tokio::test]
async fn a_node_joins_and_is_a_peer() {
    let rig = Rig::with(Admitted::only([]), Options::default());
    let token = token(&rig, None);
    let identity = try_join(&token, "node-1").await.unwrap();
    assert_eq!(identity.passport().name(), &name("node-1"));
    assert_eq!(identity.ca(), rig.forge.ca.certificate());
    assert_eq!(rig.admitted.of(&name("node-1")), [identity.passport().fingerprint()]);
    let dialer = Endpoint::dialer(loopback(), &identity, Admitted::everyone(), Options::default()).unwrap();
    let peer = dialer.connect(rig.address, &Name::head()).await.unwrap();
    assert_eq!(ask(peer.connection()).await.unwrap().number, 42);
}

#[tokio::test]
async fn a_token_works_once() {
    let rig = Rig::new();
    let first = token(&rig, None);
    let _second = token(&rig, None);
    try_join(&first, "node-1").await.unwrap();
    refused(&first, "node-1", Refusal::Used).await;
    refused(&first, "node-2", Refusal::Used).await;
    assert!(refusals("the token was used") >= 2);
}

#[tokio::test]
async fn many_at_once_get_one_certificate() {
    let rig = Rig::with(Admitted::only([]), Options::default());
    let first = token(&rig, None);
    let _second = token(&rig, None);
    let attempts: Vec<_> = (0..4)
        .map(|number| {
            let token = first.clone();
            tokio::spawn(async move { try_join(&token, &format!("node-{number}")).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for attempt in attempts {
        joined += usize::from(attempt.await.unwrap());
    }
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn the_ca_is_compared_before_the_secret_is_sent() {
    let rig = Rig::new();
    let good = token(&rig, None);
    let wrong = good.to_string().replace(&good.ca().to_string(), &"ab".repeat(32));
    let error = try_join(&wrong.parse().unwrap(), "node-1").await.unwrap_err().to_string();
    assert!(error.contains("the head's CA is not that of the join token"), "{error}");
    // Nothing was used up, and nothing counted as a guess.
    try_join(&good, "node-1").await.unwrap();
}

#[tokio::test]
async fn the_name_must_be_right_and_a_wrong_one_uses_nothing_up() {
    let rig = Rig::with(Admitted::only([]), Options::default());
    let bound = token(&rig, Some("node-1"));
    refused(&bound, "node-2", Refusal::Name).await;
    refused(&bound, "head", Refusal::Name).await;
    try_join(&bound, "node-1").await.unwrap();
    // A token for any name gives none that somebody has; one for that name does, so that a lost node can come back.
    let any = token(&rig, None);
    refused(&any, "node-1", Refusal::Name).await;
    try_join(&any, "node-2").await.unwrap();
    try_join(&token(&rig, Some("node-1")), "node-1").await.unwrap();
    assert_eq!(rig.admitted.of(&name("node-1")).len(), 2);
    assert!(refusals("the name cannot be had with this token") >= 3);
}

#[tokio::test]
async fn old_tokens_do_not_work() {
    let rig = Rig::new();
    let yesterday = SystemTime::now() - TOKEN_LIFE - Duration::from_secs(1);
    let old = token_at(&rig, None, yesterday);
    // No token can be used, so the head does not speak of joining.
    let error = try_join(&old, "node-1").await.unwrap_err().to_string();
    assert!(error.contains("any known protocol") && error.contains("token"), "{error}");
    let _other = token(&rig, None);
    refused(&old, "node-1", Refusal::Expired).await;
    assert!(refusals("the token is too old") >= 1);
}

#[tokio::test]
async fn guessing_is_slow() {
    let rig = Rig::new();
    let good = token(&rig, None);
    let text = good.to_string();
    let (rest, secret) = text.rsplit_once(':').unwrap();
    let last = if secret.ends_with('0') { "1" } else { "0" };
    let wrong: JoinToken = format!("{rest}:{}{last}", &secret[..31]).parse().unwrap();
    for _ in 0..5 {
        refused(&wrong, "node-1", Refusal::UnknownToken).await;
    }
    refused(&wrong, "node-1", Refusal::TooManyAttempts).await;
    // From this address not even the good one is heard for a minute.
    refused(&good, "node-1", Refusal::TooManyAttempts).await;
    assert!(refusals("the token is not known") >= 5);
    assert!(refusals("too many wrong tokens") >= 2);
    rig.serves().await;
}

#[tokio::test]
async fn nonsense_from_strangers_is_logged_and_harmless() {
    let rig = Rig::new();
    let good = token(&rig, None);
    let config = quinn::ClientConfig::new(std::sync::Arc::new(rig.forge.client(None, b"dg-join/1")));
    for bytes in
        [&b"\xff\xff\xff\xff"[..], b"\x00\x00\x00\x00", b"\x00\x00\x00\x03\x01\xff\xff", b"\x00\x00\x00"]
    {
        let socket = quinn::Endpoint::client(loopback()).unwrap();
        let from = socket.local_addr().unwrap();
        forget(from);
        let connecting = socket.connect_with(config.clone(), rig.address, "head.dg-cluster").unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        assert!(receive.read_to_end(1000).await.map_or(true, |answer| answer.is_empty()));
        let lines = warnings(from).await;
        assert!(lines.len() == 1 && lines[0].contains("join refused"), "{lines:#?}");
    }
    try_join(&good, "node-1").await.unwrap();
}

#[test]
fn tokens_as_text() {
    let (ca, secret) = ("0a".repeat(32), "0b".repeat(16));
    for (host, port) in [("head.example", "7000"), ("10.0.0.1", "1"), ("[fd00::1]", "65535")] {
        let text = format!("dgjoin1:{host}:{port}:{ca}:{secret}");
        let token: JoinToken = text.parse().unwrap();
        assert_eq!(token.to_string(), text);
        assert_eq!(token.address(), format!("{host}:{port}"));
        assert!(!format!("{token:?}").contains(&secret));
        // Cut anywhere, it is not a token, and the error does not repeat it.
        for end in 0..text.len() {
            let error = text[..end].parse::<JoinToken>().unwrap_err().to_string();
            assert!(!error.contains("0b0b"), "{error}");
        }
    }
    for bad in ["fd00::1:7000", "a b:7000", ":7000", "h:0", "h:70000", "h:-1", "[x]:1", "h\u{e9}:1", "a/b:1"]
    {
        assert!(format!("dgjoin1:{bad}:{ca}:{secret}").parse::<JoinToken>().is_err(), "{bad}");
    }
}
