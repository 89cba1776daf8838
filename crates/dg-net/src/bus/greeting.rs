//! What two processes say before their actors join: who they are, in which version, and whether the head wants the node.

use super::gateway::Seal;
use super::link::Link;
use super::node::{Bus, full_name};
use super::{BusError, GREETING_MAX};
use crate::endpoint::Peer;
use crate::plane::random;
use crate::wire::{Message, read_frame, write_frame};
use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};

/// Version of what is said over links. Ends of different versions refuse each other.
pub const PROTOCOL: u32 = 2;

/// What a node says first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    protocol: u32,
    build: String,
    /// As in its certificate.
    pub name: String,
    /// Larger after each start of it.
    pub incarnation: u64,
    /// What it says of itself: an encoded message.
    pub facts: Vec<u8>,
}

impl Message for Hello {}

/// What the head answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Taken { name: String, incarnation: u64, cookie: String, seal: Seal, facts: Vec<u8> },
    Protocol { protocol: u32, build: String },
    Refused(String),
}

impl Message for Answer {}

/// A node at the head's door.
pub struct Guest {
    peer: Peer,
    hello: Hello,
    stream: (SendStream, RecvStream),
}

impl Guest {
    /// Hears what a peer says first. A peer of another version, or that says to be somebody else than its certificate
    /// does, is refused here.
    ///
    /// # Errors
    /// [`BusError`]; the connection is over then.
    pub async fn hear(peer: Peer) -> Result<Self, BusError> {
        let name = || peer.name().to_string();
        let stream = tokio::time::timeout(GREETING_MAX, peer.connection().accept_bi()).await;
        let stream = stream.map_err(|_| BusError::Deadline { peer: name(), within: GREETING_MAX })?;
        let mut stream = stream.map_err(|e| BusError::Closed { peer: name(), reason: e.to_string() })?;
        let hello: Hello = read_frame(&mut stream.1, GREETING_MAX).await?;
        peer.claims(&hello.name)?;
        if hello.protocol != PROTOCOL {
            let error =
                BusError::Protocol { peer: name(), theirs: hello.protocol, build: printable(&hello.build) };
            let answer = Answer::Protocol { protocol: PROTOCOL, build: BUILD.into() };
            say_last(&mut stream.0, &answer).await;
            return Err(error);
        }
        Ok(Self { peer, hello, stream })
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What it said.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Tells it why it is not taken, and ends the connection.
    pub async fn refuse(mut self, why: &str) {
        tracing::warn!(node = %self.peer.name(), address = %self.peer.address(), why, "node refused");
        say_last(&mut self.stream.0, &Answer::Refused(why.into())).await;
    }

    /// Takes it; `facts` is an encoded message that it gets.
    ///
    /// # Errors
    /// [`BusError`] if the connection ends before the actors have joined.
    pub async fn take(mut self, bus: &Bus, incarnation: u64, facts: Vec<u8>) -> Result<Link, BusError> {
        let seal: Seal = random();
        let name =
            bus.name().strip_suffix(&format!("-{incarnation}")).unwrap_or_else(|| bus.name()).to_owned();
        let answer = Answer::Taken { name, incarnation, cookie: bus.cookie().into(), seal, facts };
        write_frame(&mut self.stream.0, &answer, GREETING_MAX).await?;
        let full = full_name(&self.hello.name, self.hello.incarnation);
        Link::join(bus, self.peer, self.stream, seal, &full, true).await
    }
}

/// Says hello to a head that this process has connected to. `incarnation` is larger after each start of this process.
/// The bus is made with the first head's cookie; a later head has another, and gets another bus.
///
/// # Errors
/// [`BusError`]: refused, of another version, silent.
pub async fn greet(
    peer: Peer,
    name: &str,
    incarnation: u64,
    facts: Vec<u8>,
) -> Result<(Bus, Link, Vec<u8>), BusError> {
    let head = peer.name().to_string();
    let closed = |reason: String| BusError::Closed { peer: head.clone(), reason };
    let mut stream = peer.connection().open_bi().await.map_err(|e| closed(e.to_string()))?;
    let hello = Hello { protocol: PROTOCOL, build: BUILD.into(), name: name.into(), incarnation, facts };
    write_frame(&mut stream.0, &hello, GREETING_MAX).await?;
    match read_frame::<Answer>(&mut stream.1, GREETING_MAX).await? {
        Answer::Protocol { protocol, build } => {
            Err(BusError::Protocol { peer: head, theirs: protocol, build: printable(&build) })
        }
        Answer::Refused(why) => Err(BusError::Refused { peer: head, why: printable(&why) }),
        Answer::Taken { name: theirs, incarnation: term, cookie, seal, facts } => {
            peer.claims(&theirs)?;
            let bus = Bus::start(name, incarnation, Some(cookie)).await?.of_head(term);
            let link = Link::join(&bus, peer, stream, seal, &full_name(&theirs, term), false).await?;
            Ok((bus, link, facts))
        }
    }
}

/// Says why there will be nothing more, and gives the peer a moment to read it.
async fn say_last(stream: &mut SendStream, answer: &Answer) {
    if write_frame(stream, answer, GREETING_MAX).await.is_ok() && stream.finish().is_ok() {
        let _ = tokio::time::timeout(GREETING_MAX, stream.stopped()).await;
    }
}

/// Of what a peer said, what may go into a log.
fn printable(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const BUILD: &str = env!("CARGO_PKG_VERSION");
