//! What `ractor_cluster` reads of a peer, looked at on its way.
//!
//! It makes an actor here for each that a peer announces, without a bound. A peer of ours has one or two; more than
//! [`ANNOUNCED_BYTES_MAX`] of announcements end the stream, and so does what a peer of ours never sends. Only the first
//! bytes of a frame are looked at: what the frame is. A frame that holds more than one thing could be taken for another
//! than it is, so there may be one.

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// A reader of frames: eight bytes of length, and a message of `meta.proto`.
pub(super) struct Guard<R> {
    inner: R,
    scan: Scan,
}

/// Where in the frames it is.
#[derive(Default)]
struct Scan {
    /// The length of the present frame, as far as it is read.
    prefix: Vec<u8>,
    /// Its first bytes, as far as they are read.
    head: Vec<u8>,
    length: u64,
    /// Bytes of it that are still to come.
    left: u64,
    /// Bytes of announcements so far.
    announced: u64,
}

impl<R> Guard<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, scan: Scan::default() }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Guard<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let Self { inner, scan } = &mut *self;
        std::task::ready!(Pin::new(inner).poll_read(context, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        let Err(why) = scan.pass(new) else { return Poll::Ready(Ok(())) };
        buffer.set_filled(before);
        tracing::warn!(why, "the session of a peer's actors is ended");
        Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why)))
    }
}

impl Scan {
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            if self.left == 0 {
                bytes = move_to(&mut self.prefix, PREFIX_BYTES, bytes);
                if let Ok(length) = self.prefix.as_slice().try_into() {
                    self.length = u64::from_be_bytes(length);
                    self.left = self.length;
                    self.prefix.clear();
                    self.head.clear();
                }
                continue;
            }
            let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, then) = bytes.split_at(here);
            let want = usize::try_from(self.length).unwrap_or(usize::MAX).min(HEAD_BYTES);
            if self.head.len() < want {
                move_to(&mut self.head, want, now);
                if self.head.len() == want {
                    self.judge()?;
                }
            }
            self.left -= here as u64;
            bytes = then;
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<(), &'static str> {
        let (kind, length, rest) = field(&self.head, self.length)?;
        match kind {
            AUTH | NODE => return Ok(()),
            CONTROL if length > 0 => {}
            _ => return Err("a frame of no known kind"),
        }
        match field(rest, length)?.0 {
            TERMINATE | PING | PONG | READY => Ok(()),
            SPAWN | PG_JOIN | PG_LEAVE => {
                self.announced += self.length;
                let is_too_much = self.announced > ANNOUNCED_BYTES_MAX;
                if is_too_much { Err("it announces too many actors") } else { Ok(()) }
            }
            _ => Err("it asks for what nodes never ask"),
        }
    }
}

/// Fills `to` up to `want` bytes, and gives what is left.
fn move_to<'a>(to: &mut Vec<u8>, want: usize, from: &'a [u8]) -> &'a [u8] {
    let (now, then) = from.split_at(from.len().min(want.saturating_sub(to.len())));
    to.extend_from_slice(now);
    then
}

/// The number of the only field of a message of `length` bytes, the length of what is in it, and the first bytes of that.
fn field(bytes: &[u8], length: u64) -> Result<(u8, u64, &[u8]), &'static str> {
    const CUT: &str = "a frame without a message";
    let (tag, mut rest) = bytes.split_first().ok_or(CUT)?;
    if tag & 7 != LENGTH_DELIMITED || *tag >= 0x80 {
        return Err("a frame that is no message");
    }
    let (mut inner, mut used) = (0_u64, 1_u64);
    loop {
        let (byte, then) = rest.split_first().ok_or(CUT)?;
        if used > LENGTH_BYTES_MAX {
            return Err("a length that is too long");
        }
        inner |= u64::from(byte & 0x7f) << (7 * (used - 1));
        (rest, used) = (then, used + 1);
        if byte & 0x80 == 0 {
            break;
        }
    }
    if used + inner == length { Ok((tag >> 3, inner, rest)) } else { Err("more than one thing in a frame") }
}

/// Bytes of announcements that a peer may send: some dozens of actors with their groups.
const ANNOUNCED_BYTES_MAX: u64 = 4 << 10;
const PREFIX_BYTES: usize = 8;
/// Two tags and two lengths.
const HEAD_BYTES: usize = 12;
/// Bytes of a length.
const LENGTH_BYTES_MAX: u64 = 5;
const LENGTH_DELIMITED: u8 = 2;

// Fields of `meta.NetworkMessage`, and of `control.ControlMessage`.
const AUTH: u8 = 1;
const NODE: u8 = 2;
const CONTROL: u8 = 3;
const SPAWN: u8 = 1;
const TERMINATE: u8 = 2;
const PING: u8 = 3;
const PONG: u8 = 4;
const PG_JOIN: u8 = 5;
const PG_LEAVE: u8 = 6;
const READY: u8 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8, inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | LENGTH_DELIMITED];
        let mut length = inner.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        [bytes, inner.to_vec()].concat()
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u64).to_be_bytes(), message].concat()
    }

    fn control(kind: u8, inner: &[u8]) -> Vec<u8> {
        frame(&message(CONTROL, &message(kind, inner)))
    }

    /// What comes of bytes that arrive in pieces of this size.
    fn pass(bytes: &[u8], piece: usize) -> Result<(), &'static str> {
        let mut scan = Scan::default();
        bytes.chunks(piece).try_for_each(|piece| scan.pass(piece))
    }

    #[test]
    fn what_nodes_say_passes_in_whatever_pieces() {
        let actor = message(1, &[8, 5]);
        let all = [
            frame(&message(AUTH, &[0; 40])),
            control(SPAWN, &actor),
            control(
                PG_JOIN,
                &[message(1, b"dg-gateways"), message(2, &[8, 5]), message(3, b"scope")].concat(),
            ),
            control(READY, &[]),
            frame(&message(NODE, &[7; 60_000])),
            control(PING, &message(1, &[8, 1])),
            control(TERMINATE, &[10, 1, 5]),
            frame(&[]),
            frame(&message(NODE, &[])),
        ];
        let all = all.concat();
        for piece in [1, 2, 3, 7, 13, 1000, all.len()] {
            assert_eq!(pass(&all, piece), Ok(()), "in pieces of {piece}");
        }
    }

    #[test]
    fn announcements_have_a_bound_however_they_are_packed() {
        let few = control(SPAWN, &message(1, &[8, 5]));
        assert!(pass(&few.repeat(100), 9).is_ok());
        assert!(pass(&few.repeat(1000), 9).is_err());
        for kind in [SPAWN, PG_JOIN, PG_LEAVE] {
            let many = control(kind, &message(1, &[8, 5]).repeat(2000));
            for piece in [1, 50, many.len()] {
                assert_eq!(pass(&many, piece), Err("it announces too many actors"), "{kind}");
            }
        }
        let spawn = message(CONTROL, &message(SPAWN, &message(1, &[8, 5]).repeat(2000)));
        let hidden = [
            frame(&[message(NODE, &[1, 2]), spawn.clone()].concat()),
            frame(&[message(CONTROL, &message(PING, &[])), spawn].concat()),
            frame(&message(CONTROL, &[message(PING, &[]), message(SPAWN, &[0; 99])].concat())),
            control(7, b"who else?"),
            control(8, &[]),
            frame(&[8, 1, 8, 1]),
            frame(&[0x1a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 1, 1]),
            frame(&message(9, b"unknown")),
            frame(&[0x1a]),
        ];
        for (number, bytes) in hidden.iter().enumerate() {
            assert!(pass(bytes, 5).is_err(), "{number}");
        }
    }
}
