//! A peer that speaks the protocol by hand, written from its description and not from its code.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use dg_net::plane::Address;

/// What a rank says about itself, true or not.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) magic: [u8; 8],
    pub(crate) version: u16,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) ranks: u32,
    pub(crate) epoch: u64,
    pub(crate) in_flight_max: u32,
    pub(crate) key: [u8; 32],
}

impl Claim {
    pub(crate) fn good(from: u32, ranks: u32, epoch: u64, key: [u8; 32]) -> Self {
        Self { magic: *b"dgplane\n", version: 1, from, to: 0, ranks, epoch, in_flight_max: 64, key }
    }
}

/// What came of a hello.
#[derive(Debug)]
pub(crate) enum Answer {
    Accepted(UnixStream),
    Refused(u8),
    Closed,
}

pub(crate) fn dial(address: &Address) -> UnixStream {
    let stream = match address {
        Address::Abstract(name) => {
            UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
        }
        Address::Unix(path) => UnixStream::connect(path).unwrap(),
        other => panic!("{other}"),
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Says hello to rank `to` at `address`.
pub(crate) fn hello(address: &Address, claim: &Claim) -> Answer {
    let mut stream = dial(address);
    let mut open = claim.magic.to_vec();
    open.extend(claim.version.to_le_bytes());
    open.extend([0; 2]);
    for part in [claim.from, claim.to, claim.ranks] {
        open.extend(part.to_le_bytes());
    }
    open.extend(claim.epoch.to_le_bytes());
    open.extend(claim.in_flight_max.to_le_bytes());
    open.extend([0; 4]);
    open.extend((1u64 << 20).to_le_bytes());
    open.extend((1u64 << 20).to_le_bytes());
    open.extend([9; 32]);
    let _ = stream.write_all(&open);
    let mut challenge = [0; 96];
    if stream.read_exact(&mut challenge).is_err() {
        return Answer::Closed;
    }
    if challenge[0] != 0 {
        return Answer::Refused(challenge[0]);
    }
    let mac = |side: &[u8], challenge: &[u8]| {
        let mut mac = blake3::Hasher::new_keyed(&claim.key);
        mac.update(side).update(&open).update(challenge).update(&[0; 32]);
        mac.finalize()
    };
    // A rank would notice here that the keys differ; this one goes on.
    let _ = stream.write_all(mac(b"connector", &challenge).as_bytes());
    let mut verdict = [0; 8];
    if stream.read_exact(&mut verdict).is_err() {
        return Answer::Closed;
    }
    if verdict[0] == 0 { Answer::Accepted(stream) } else { Answer::Refused(verdict[0]) }
}

/// A message of f32 values, as a frame.
pub(crate) fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, 0, 1, 0];
    for part in [0u32, 0, 0, kind, 0] {
        frame.extend(part.to_le_bytes());
    }
    for part in [0u64, 1, payload.len() as u64] {
        frame.extend(part.to_le_bytes());
    }
    frame.extend(payload);
    frame
}

/// A frame without payload: its first bytes, and zeros.
pub(crate) fn bare(first: &[u8]) -> Vec<u8> {
    let mut frame = first.to_vec();
    frame.resize(48, 0);
    frame
}
