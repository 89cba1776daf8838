//! Peers with good certificates that say what they like.

use crate::rig::Rig;
use dg_net::bus::{self, Bus, Link};
use dg_net::endpoint::{Endpoint, Options, Peer};
use dg_net::identity::{Admitted, Name, State};
use dg_net::wire::{self, Message};
use dg_runtime::fleet::protocol::AgentFacts;
use serde::de::{Error as _, IgnoredAny};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Connects to the rig's head with a certificate of its state folder.
pub(crate) async fn connect(rig: &Rig, name: &str) -> Peer {
    let name = Name::parse(name).expect("a name");
    let identity = State::open(rig.state()).expect("a folder").load(&name).expect("a certificate");
    let local = ([127, 0, 0, 1], 0).into();
    let options = Options { idle_timeout: Duration::from_secs(10), ..Options::default() };
    let dialer = Endpoint::dialer(local, &identity, Admitted::everyone(), options).expect("a socket");
    let peer = dialer.connect(rig.address, &Name::head()).await.expect("a head that listens");
    // The socket lives as long as its connections.
    drop(dialer);
    peer
}

/// Becomes the node `name`, as an agent does.
pub(crate) async fn join(rig: &Rig, name: &str) -> (Bus, Link) {
    let peer = connect(rig, name).await;
    let (bus, link, _) = bus::greet(peer, name, incarnation(), facts()).await.expect("the head takes it");
    (bus, link)
}

/// What an agent without ranks says of itself.
fn facts() -> Vec<u8> {
    let (memory_bytes, running) = (1 << 40, Vec::new());
    let facts = AgentFacts { pid: 1, memory_bytes, cores: 2, core_flops: 1e11, running, spec: None };
    wire::encode(&facts).expect("facts")
}

pub(crate) fn incarnation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("a number")
}

/// The first message of a node, written by hand.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    pub(crate) build: String,
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) facts: Vec<u8>,
}

impl Message for Hello {}

impl Hello {
    pub(crate) fn of(name: &str) -> Self {
        Self {
            protocol: bus::PROTOCOL,
            build: "test".into(),
            name: name.into(),
            incarnation: incarnation(),
            facts: facts(),
        }
    }
}

/// What the head answers to it, as far as the tests read it.
#[derive(Deserialize, Serialize)]
pub(crate) enum Answer {
    Taken { name: String, incarnation: u64, cookie: String, seal: [u8; 16], facts: Vec<u8> },
    Protocol { protocol: u32, build: String },
    Refused(String),
}

impl Message for Answer {}

/// A message that consists of these bytes, whatever they mean.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Message for Bytes {}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The elements of a tuple follow each other without a length.
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        let _ = IgnoredAny;
        Err(D::Error::custom("it is only sent"))
    }
}

/// A frame of a stream: a length, which may lie, and bytes.
pub(crate) fn frame(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], bytes].concat()
}

/// The bytes of a message without the version before them.
pub(crate) fn value(message: &impl Message) -> Vec<u8> {
    wire::encode(message).expect("a message")[1..].to_vec()
}
