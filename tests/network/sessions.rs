//! A node with a good certificate that speaks `ractor_cluster` by hand: below our own messages, in the sessions of actors.

use crate::hostile::under_attack;
use crate::mutate::{Random, mutate};
use crate::raw::{self, Answer, Hello};
use crate::rig::{Rig, alone, flag, run};
use dg_net::endpoint::Peer;
use dg_net::wire;
use quinn::{RecvStream, SendStream};
use ractor::{Actor, ActorRef};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeServer, NodeServerMessage};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

#[test]
fn nonsense_in_a_session_disturbs_nobody() {
    let _alone = alone();
    let rig = crate::guests::rig();
    under_attack(&rig, "sessions", |rig| {
        run(async {
            strangers(rig, flag("DG_SESSIONS", 200)).await;
            for kind in [Flood::Spawn, Flood::Join, Flood::Bit] {
                let told = || rig.head_log().matches("it announces too many actors").count();
                let (before, mut tries) = (told(), 0..TRIES);
                while told() == before {
                    assert!(tries.next().is_some(), "{kind:?} is not told: {}", rig.head_log());
                    flood(rig, kind).await;
                }
            }
        });
    });
}

/// On a machine with other work the head's deadline for greetings may end a flood before the count of its actors does.
const TRIES: usize = 3;

/// The head takes it so far: what comes next on this stream are its actors'.
async fn taken(rig: &Rig) -> (Peer, SendStream, RecvStream, String, String) {
    let peer = raw::connect(rig, "evil").await;
    let hello = Hello::of("evil");
    let (mut send, mut receive) = peer.connection().open_bi().await.expect("a stream");
    wire::write_frame(&mut send, &hello, Duration::from_secs(5)).await.expect("it is heard");
    let answer: Answer = wire::read_frame(&mut receive, Duration::from_secs(5)).await.expect("an answer");
    let Answer::Taken { cookie, .. } = answer else { panic!("it is taken so far") };
    (peer, send, receive, cookie, format!("evil-{}", hello.incarnation))
}

/// A frame of a session: a length, which may lie, and bytes.
fn frame(length: u64, bytes: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], bytes].concat()
}

/// Sessions that begin with anything but who they are.
async fn strangers(rig: &Rig, count: usize) {
    let mut random = Random(0x5e55);
    for number in 0..count {
        let (peer, mut send, _receive, _, name) = taken(rig).await;
        let mut bytes = match number % 4 {
            0 => {
                let length = 1 + random.below(2000);
                random.bytes(length)
            }
            1 => flooding(Flood::Spawn, 3),
            _ => field(1, &field(1, &field(1, name.as_bytes()))),
        };
        if number % 4 != 1 {
            mutate(&mut random, &mut bytes);
        }
        let told = match random.below(4) {
            0 => random.next(),
            1 => 100 << 10,
            _ => bytes.len() as u64,
        };
        let _ = send.write_all(&frame(told, &bytes)).await;
        if number % 3 == 0 {
            let _ = send.finish();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(peer);
    }
}

/// What a peer that has proved to know the cookie sends too much of.
#[derive(Clone, Copy, Debug)]
enum Flood {
    /// Actors.
    Spawn,
    /// Members of groups.
    Join,
    /// Actors, a few at a time.
    Bit,
}

/// A session that is in order, into which a flood comes: it ends, and at once.
async fn flood(rig: &Rig, kind: Flood) {
    let (peer, send, receive, cookie, name) = taken(rig).await;
    let server = NodeServer::new(0, cookie, name.clone(), name, None, Some(NodeConnectionMode::Isolated));
    let (server, _) = Actor::spawn(None, server, ()).await.expect("a server");
    let (near, far) = tokio::io::duplex(1 << 16);
    open(&server, receive, near);
    let pump = tokio::spawn(pump(far, send, kind));
    let begin = Instant::now();
    let closed = tokio::time::timeout(Duration::from_secs(20), peer.connection().closed()).await;
    let reason = closed.expect("the head ends it").to_string();
    let sent = pump.await.expect("no panic");
    println!("{kind:?}: {sent} actors, then after {:.1?}: {reason}", begin.elapsed());
    assert!(sent > 0, "it came so far");
    server.stop(None);
}

fn open(server: &ActorRef<NodeServerMessage>, receive: RecvStream, near: DuplexStream) {
    let stream = Box::new(Stream { receive, near });
    let opened = NodeServerMessage::ConnectionOpenedExternal { stream, is_server: false };
    server.cast(opened).expect("it lives");
}

/// Hands on what a good session says, and when that is through, the flood; how many actors were announced.
async fn pump(mut far: DuplexStream, mut send: SendStream, kind: Flood) -> usize {
    let good = async {
        loop {
            let length = far.read_u64().await.ok()?;
            let mut bytes = vec![0; usize::try_from(length).ok()?];
            far.read_exact(&mut bytes).await.ok()?;
            send.write_all(&frame(length, &bytes)).await.ok()?;
        }
    };
    let _: Result<Option<()>, _> = tokio::time::timeout(Duration::from_millis(500), good).await;
    let (all, each) = (1_000_000, if matches!(kind, Flood::Bit) { 5 } else { 10_000 });
    for sent in (0..all).step_by(each) {
        let bytes = flooding(kind, sent as u64 + each as u64);
        let bytes = frame(bytes.len() as u64, &bytes);
        let written = tokio::time::timeout(Duration::from_secs(2), send.write_all(&bytes)).await;
        if !written.is_ok_and(|written| written.is_ok()) || send.flush().await.is_err() {
            return sent.max(each);
        }
    }
    all
}

/// A message that announces actors up to this number.
fn flooding(kind: Flood, end: u64) -> Vec<u8> {
    let count = if matches!(kind, Flood::Bit) { 5 } else { 10_000 };
    let actor = |number: u64| [vec![8], varint(1000 + number)].concat();
    let actors = |place: u8| -> Vec<u8> {
        (end.saturating_sub(count)..end).flat_map(|number| field(place, &actor(number))).collect()
    };
    let control = match kind {
        Flood::Spawn | Flood::Bit => field(1, &actors(1)),
        Flood::Join => {
            field(5, &[field(1, b"dg-gateways"), actors(2), field(3, b"__default_scope__")].concat())
        }
    };
    field(3, &control)
}

/// A field of a message of protobuf.
fn field(number: u8, inner: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(inner.len() as u64), inner.to_vec()].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

struct Stream {
    receive: RecvStream,
    near: DuplexStream,
}

impl ClusterBidiStream for Stream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(self.receive), Box::new(self.near))
    }

    fn peer_label(&self) -> Option<String> {
        Some("by-hand".into())
    }
}
