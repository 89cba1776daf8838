//! The first words on a connection: both ends prove that they have the key of the epoch, each over numbers that the
//! other has just chosen.
//!
//! The rank with the higher number connects. Numbers are little-endian, `MAC` is blake3 keyed with the key of the epoch:
//! ```text
//! → open       magic (8) | version (u16) | 0 (u16) | from | to | ranks (u32) | epoch (u64) | limits (24) | nonce (32)
//! ← challenge  code (u8) | 0 (7) | limits (24) | nonce (32) | MAC("listener", open, challenge so far, binding)
//! → proof      MAC("connector", open, challenge, binding)
//! ← verdict    code (u8) | 0 (7)
//! limits       unread messages (u32) | 0 (u32) | unread bytes (u64) | bytes of a message (u64)
//! ```
//! A code other than 0 says why the other is not let in. The binding ties the hello to its TLS session, so that nobody
//! in the middle can pass it on; it is zero where there is no TLS.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::as_conversions)]

use super::EpochKey;
use super::error::Refusal;
use super::frame::Decoder;
use super::tls;
use dg_comm::IN_FLIGHT_MIN;
use std::io::{ErrorKind, Read, Write};

/// Version of hello and frames together.
pub(super) const VERSION: u16 = 1;

/// Bytes of a random number that is used once.
pub(super) const NONCE_BYTES: usize = 32;

/// What a rank lets be on its way to it, from each of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) in_flight_max: u32,
    pub(super) unread_bytes_max: u64,
    pub(super) message_bytes_max: u64,
}

/// One end of a connection, for one epoch.
pub(super) struct Hello<'a> {
    pub(super) key: &'a EpochKey,
    pub(super) epoch: u64,
    pub(super) ranks: u32,
    pub(super) me: u32,
    pub(super) limits: Limits,
    /// Of the TLS session.
    pub(super) binding: [u8; 32],
}

/// Somebody was not let in.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) rank: Option<u32>,
    pub(super) why: Refusal,
    /// Whether the other end said so.
    pub(super) told: bool,
}

impl Hello<'_> {
    /// The end that connects to rank `to`.
    ///
    /// # Errors
    /// The refusal of the other end, or what is wrong with it.
    pub(super) fn connect<S: Read + Write>(&self, stream: &mut S, to: u32) -> Result<Limits, Stranger> {
        let open = self.open(to);
        let failed = |why| Stranger { rank: Some(to), why, told: false };
        write(stream, &open).map_err(failed)?;
        let mut challenge = [0; CHALLENGE_BYTES];
        read(stream, &mut challenge).map_err(failed)?;
        let mut decoder = Decoder(&challenge);
        told(decoder.take(), to)?;
        let limits = Limits::decode(&mut decoder).ok_or_else(|| failed(Refusal::Limits))?;
        let _nonce: [u8; NONCE_BYTES] = decoder.take();
        let begin = challenge.first_chunk::<{ CHALLENGE_BYTES - MAC_BYTES }>().unwrap_or(&[0; _]);
        if self.mac("listener", &open, begin) != blake3::Hash::from_bytes(decoder.take()) {
            return Err(failed(Refusal::Key));
        }
        write(stream, self.mac("connector", &open, &challenge).as_bytes()).map_err(failed)?;
        let mut verdict = [0; VERDICT_BYTES];
        read(stream, &mut verdict).map_err(failed)?;
        told(verdict, to)?;
        Ok(limits)
    }

    /// The end that listens. `claim` decides about a rank that has proved the key.
    ///
    /// # Errors
    /// What is wrong with the other end, which has been told.
    pub(super) fn accept<S: Read + Write>(
        &self,
        stream: &mut S,
        claim: impl FnOnce(u32) -> Result<(), Refusal>,
    ) -> Result<(u32, Limits), Stranger> {
        let mut rank = None;
        let checked = self.check(stream, &mut rank, claim);
        checked.map_err(|why| {
            if let Some(code) = CODES.iter().position(|code| *code == why) {
                let code = u8::try_from(code + 1).unwrap_or(u8::MAX);
                // Long enough for either answer; it may be gone, then it need not know.
                let mut answer = [0; CHALLENGE_BYTES];
                answer.iter_mut().take(1).for_each(|byte| *byte = code);
                let _ = stream.write_all(&answer).and_then(|()| stream.flush());
            }
            Stranger { rank, why, told: false }
        })
    }

    fn check<S: Read + Write>(
        &self,
        stream: &mut S,
        rank: &mut Option<u32>,
        claim: impl FnOnce(u32) -> Result<(), Refusal>,
    ) -> Result<(u32, Limits), Refusal> {
        let mut begin = [0; BEGIN_BYTES];
        read(stream, &mut begin)?;
        let mut decoder = Decoder(&begin);
        if decoder.take() != MAGIC {
            return Err(Refusal::Garbage);
        }
        if u16::from_le_bytes(decoder.take()) != VERSION {
            return Err(Refusal::Version);
        }
        let mut rest = [0; OPEN_BYTES - BEGIN_BYTES];
        read(stream, &mut rest)?;
        let open: Vec<u8> = begin.iter().chain(&rest).copied().collect();
        let mut decoder = Decoder(&rest);
        let (from, to, ranks, epoch) = (decoder.u32(), decoder.u32(), decoder.u32(), decoder.u64());
        *rank = Some(from);
        if epoch != self.epoch {
            return Err(Refusal::Epoch);
        }
        if ranks != self.ranks {
            return Err(Refusal::Size);
        }
        if to != self.me || from <= self.me || from >= self.ranks {
            return Err(Refusal::Rank);
        }
        let limits = Limits::decode(&mut decoder).ok_or(Refusal::Limits)?;

        let nonce: [u8; NONCE_BYTES] = tls::random();
        let mut challenge = [&[0; VERDICT_BYTES], self.limits.encode().as_slice(), &nonce].concat();
        let mac = self.mac("listener", &open, &challenge);
        challenge.extend_from_slice(mac.as_bytes());
        write(stream, &challenge)?;
        let mut proof = [0; MAC_BYTES];
        read(stream, &mut proof)?;
        // Compared in constant time.
        if self.mac("connector", &open, &challenge) != blake3::Hash::from_bytes(proof) {
            return Err(Refusal::Key);
        }
        claim(from)?;
        write(stream, &[0; VERDICT_BYTES])?;
        Ok((from, limits))
    }

    fn open(&self, to: u32) -> Vec<u8> {
        let mut open = Vec::with_capacity(OPEN_BYTES);
        open.extend_from_slice(&MAGIC);
        open.extend_from_slice(&VERSION.to_le_bytes());
        open.extend_from_slice(&[0; 2]);
        for part in [self.me, to, self.ranks] {
            open.extend_from_slice(&part.to_le_bytes());
        }
        open.extend_from_slice(&self.epoch.to_le_bytes());
        open.extend_from_slice(&self.limits.encode());
        open.extend_from_slice(&tls::random::<NONCE_BYTES>());
        open
    }

    fn mac(&self, side: &str, open: &[u8], challenge: &[u8]) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(self.key.bytes());
        // All parts but the first have fixed lengths, and the first is one of two.
        for part in [side.as_bytes(), open, challenge, &self.binding] {
            mac.update(part);
        }
        mac.finalize()
    }
}

impl Limits {
    fn encode(self) -> [u8; LIMITS_BYTES] {
        let mut bytes = [0; LIMITS_BYTES];
        let parts = self.in_flight_max.to_le_bytes().into_iter().chain([0; 4]);
        let parts = parts.chain(self.unread_bytes_max.to_le_bytes());
        let parts = parts.chain(self.message_bytes_max.to_le_bytes());
        bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        bytes
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Self> {
        let (in_flight_max, _, unread_bytes_max, message_bytes_max) =
            (decoder.u32(), decoder.u32(), decoder.u64(), decoder.u64());
        let few = usize::try_from(in_flight_max).is_ok_and(|max| max < IN_FLIGHT_MIN);
        (!few).then_some(Self { in_flight_max, unread_bytes_max, message_bytes_max })
    }
}

/// The other end's answer, if it is a refusal.
fn told([code, ..]: [u8; VERDICT_BYTES], to: u32) -> Result<(), Stranger> {
    let Some(code) = code.checked_sub(1) else { return Ok(()) };
    let why = CODES.get(usize::from(code)).cloned().unwrap_or(Refusal::Garbage);
    Err(Stranger { rank: Some(to), why, told: true })
}

fn read(stream: &mut impl Read, bytes: &mut [u8]) -> Result<(), Refusal> {
    stream.read_exact(bytes).map_err(|error| refusal(&error))
}

fn write(stream: &mut impl Write, bytes: &[u8]) -> Result<(), Refusal> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|error| refusal(&error))
}

/// What an error of the stream means for the hello.
pub(super) fn refusal(error: &std::io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Refusal::Silent,
        ErrorKind::InvalidData => Refusal::Certificate(error.to_string()),
        _ => Refusal::Closed(error.to_string()),
    }
}

const MAGIC: [u8; 8] = *b"dgplane\n";
const BEGIN_BYTES: usize = 12;
const OPEN_BYTES: usize = BEGIN_BYTES + 3 * 4 + 8 + LIMITS_BYTES + NONCE_BYTES;
const LIMITS_BYTES: usize = 24;
const MAC_BYTES: usize = 32;
const CHALLENGE_BYTES: usize = VERDICT_BYTES + LIMITS_BYTES + NONCE_BYTES + MAC_BYTES;
const VERDICT_BYTES: usize = 8;

/// Refusals that the other end is told, by code - 1.
const CODES: [Refusal; 7] = [
    Refusal::Version,
    Refusal::Epoch,
    Refusal::Size,
    Refusal::Rank,
    Refusal::Limits,
    Refusal::Key,
    Refusal::Taken,
];

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::as_conversions)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const LIMITS: Limits =
        Limits { in_flight_max: 64, unread_bytes_max: 1 << 20, message_bytes_max: 1 << 30 };

    fn hello(key: &EpochKey, me: u32, epoch: u64, binding: u8) -> Hello<'_> {
        Hello { key, epoch, ranks: 3, me, limits: LIMITS, binding: [binding; 32] }
    }

    /// What both ends say; rank 2 connects.
    fn meet(
        listener: &Hello<'_>,
        connector: &Hello<'_>,
        claim: Result<(), Refusal>,
    ) -> (Result<(u32, Limits), Stranger>, Result<Limits, Stranger>) {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let accept = scope.spawn(move || listener.accept(&mut a, |_| claim));
            let connected = connector.connect(&mut b, 0);
            drop(b);
            (accept.join().unwrap(), connected)
        })
    }

    #[test]
    fn ranks_with_the_same_key_agree() {
        let key = EpochKey::new([7; 32]);
        let (accepted, connected) = meet(&hello(&key, 0, 5, 1), &hello(&key, 2, 5, 1), Ok(()));
        assert_eq!(accepted.unwrap(), (2, LIMITS));
        assert_eq!(connected.unwrap(), LIMITS);
    }

    #[test]
    fn both_ends_know_why_they_do_not_agree() {
        let (key, other) = (EpochKey::new([7; 32]), EpochKey::new([8; 32]));
        let (accepted, connected) = meet(&hello(&key, 0, 5, 1), &hello(&key, 2, 6, 1), Ok(()));
        assert_eq!(accepted.unwrap_err().why, Refusal::Epoch);
        assert!(matches!(connected, Err(Stranger { why: Refusal::Epoch, told: true, .. })));
        let (accepted, connected) = meet(&hello(&key, 0, 5, 1), &hello(&key, 2, 5, 1), Err(Refusal::Taken));
        assert_eq!(accepted.unwrap_err().why, Refusal::Taken);
        assert!(matches!(connected, Err(Stranger { why: Refusal::Taken, told: true, .. })));
        // The one that connects notices first: it does not give its proof away.
        let (accepted, connected) = meet(&hello(&key, 0, 5, 1), &hello(&other, 2, 5, 1), Ok(()));
        assert!(matches!(accepted.unwrap_err().why, Refusal::Closed(_)));
        assert!(matches!(connected, Err(Stranger { why: Refusal::Key, told: false, .. })));
        let (_, connected) = meet(&hello(&key, 0, 5, 1), &hello(&key, 2, 5, 2), Ok(()));
        assert!(matches!(connected, Err(Stranger { why: Refusal::Key, .. })), "another TLS session");
        let (accepted, _) = meet(&hello(&key, 2, 5, 1), &hello(&key, 2, 5, 1), Ok(()));
        assert_eq!(accepted.unwrap_err().why, Refusal::Rank);
    }
}
