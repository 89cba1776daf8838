//! A peer that has the key and no manners.

use crate::mesh::{LONG, SHORT};
use crate::raw::{Answer, Claim, bare, hello, message};
use dg_comm::{BlockShape, Call, Class, CommError, Communicator, Gone, Tag};
use dg_net::plane::{EpochKey, Listener, Member, Options, Rendezvous, Sockets};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

const KEY: [u8; 32] = [5; 32];

/// Rank 0, and a connection to it as rank 1.
fn pair(options: Options) -> (Sockets, UnixStream) {
    let listener = Listener::abstract_unix().unwrap();
    let address = listener.address().clone();
    let members = vec![Member::at(address.clone()); 2];
    let rendezvous = Rendezvous { epoch: 1, key: EpochKey::new(KEY), members, me: 0 };
    std::thread::scope(|scope| {
        let rank = scope.spawn(move || rendezvous.connect(vec![listener], options).unwrap());
        let answer = hello(&address, &Claim::good(1, 2, 1, KEY));
        let Answer::Accepted(stream) = answer else { panic!("{answer:?}") };
        stream.set_write_timeout(Some(LONG)).unwrap();
        (rank.join().unwrap(), stream)
    })
}

fn options() -> Options {
    Options { unread_bytes_max: 1 << 20, message_bytes_max: 1 << 20, flush_max: SHORT, ..Options::default() }
}

fn call(patience: Duration) -> Call {
    Call::within(patience, Class::Control, Tag::new(1))
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn expect_gone(comm: &Sockets, what: &str) {
    let error = comm.recv(1, &call(LONG), BlockShape::f32(1000)).expect_err(what);
    let named = matches!(&error, CommError::PeerGone { rank, how: Gone::Lost, .. } if rank.rank == 1);
    assert!(named, "{what}: {error}");
}

#[test]
fn frames_by_hand_are_understood() {
    let (comm, mut stream) = pair(options());
    stream.write_all(&message(0, &1.5f32.to_le_bytes())).unwrap();
    let got = comm.recv(1, &call(LONG), BlockShape::f32(1)).unwrap();
    assert_eq!(got.as_f32().unwrap(), [1.5]);
    comm.send(1, &call(LONG), got).unwrap();
    let mut frame = [0; 52];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!(frame[..], message(0, &1.5f32.to_le_bytes()));
    stream.write_all(&bare(&[4])).unwrap();
    let error = comm.recv(1, &call(LONG), BlockShape::f32(1)).unwrap_err();
    assert!(matches!(error, CommError::PeerGone { how: Gone::Finished, .. }), "{error}");
    stream.read_exact(&mut frame[..48]).unwrap();
    assert_eq!(frame[..48], bare(&[5]));
    // It has not said that it has everything: nobody waits for ever.
    let error = comm.finish().unwrap_err();
    assert!(matches!(error, CommError::Deadline { .. }), "{error}");
}

#[test]
fn what_no_rank_sends_is_the_end_of_the_peer() {
    let mut long = message(0, &[0; 4]);
    long[40..48].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let mut failure = bare(&[3, 1]);
    failure[4..8].copy_from_slice(&9u32.to_le_bytes());
    let mut cause = bare(&[3, 0]);
    cause[8..16].copy_from_slice(&2000u64.to_le_bytes());
    let mut credit = bare(&[2]);
    credit[4..12].copy_from_slice(&1u64.to_le_bytes());
    let cases = [
        ("a length beyond the limit", long),
        ("half a value", message(0, &[0; 5])),
        ("a kind that does not exist", bare(&[6])),
        ("an operation without messages", {
            let mut frame = message(0, &[]);
            frame[1] = 6;
            frame
        }),
        ("a failure of rank 9", failure),
        ("a cause without end", cause),
        ("credit for nothing", credit),
        ("an answer to nothing", bare(&[5])),
        ("a message after the end", [bare(&[4]), message(0, &[])].concat()),
        ("half a header", vec![1, 0, 1]),
    ];
    for (what, bytes) in cases {
        let (comm, mut stream) = pair(options());
        stream.write_all(&bytes).unwrap();
        if what == "half a header" {
            drop(stream);
        } else {
            // It is hung up on.
            let ended = stream.read_to_end(&mut Vec::new());
            let timed_out = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            assert!(!ended.as_ref().is_err_and(timed_out), "{what}: {ended:?}");
        }
        match what {
            // A rank that has finished cannot die.
            "a message after the end" => comm.check().unwrap(),
            _ => expect_gone(&comm, what),
        }
    }
}

/// Runs a test as a process of its own, so that its memory is that of nobody else.
fn alone(test: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    print!("{text}");
}

#[test]
fn a_flood_beyond_the_credit_is_cut() {
    alone("hostile::flood");
}

#[test]
fn thousands_of_mutated_frames_do_no_harm() {
    alone("hostile::mutated");
}

/// A peer may send what it has room for, and no more: a flood ends at the window.
#[test]
#[ignore = "run by thousands_of_mutated_frames_do_no_harm"]
fn flood() {
    for payload in [0, 4096] {
        let before = resident();
        let (comm, mut stream) = pair(options());
        let frame = message(0, &vec![0; payload]);
        let begin = Instant::now();
        let mut sent = 0;
        while stream.write_all(&frame).is_ok() && begin.elapsed() < LONG {
            sent += 1;
        }
        assert!(sent < 100_000, "{sent} messages");
        expect_gone(&comm, "a flood");
        assert!(resident().saturating_sub(before) < 16 << 20, "{} bytes more", resident() - before);
    }
}

/// Whatever comes: an answer or an end, in time, and no memory to speak of.
#[test]
#[ignore = "run by thousands_of_mutated_frames_do_no_harm"]
fn mutated() {
    let mut random = Random(42);
    drop(pair(options()));
    let before = resident();
    let (mut ends, mut messages) = (0, 0);
    for i in 0..5000 {
        let (comm, mut stream) = pair(options());
        // One to each connection: what comes after a bad one is not read.
        stream.write_all(&message(0, &[0; 8])).unwrap();
        messages += usize::from(comm.recv(1, &call(LONG), BlockShape::f32(2)).is_ok());
        let _ = stream.write_all(&random.frame());
        // Half of them keep the connection open, so that only the frame can be the reason for its end.
        let kept = (i % 2 == 0).then_some(stream);
        let begin = Instant::now();
        let _ = comm.recv(1, &call(Duration::from_millis(1)), BlockShape::f32(1));
        assert!(begin.elapsed() < LONG / 2, "hung");
        ends += usize::from(comm.check().is_err());
        drop((comm, kept));
    }
    let grown = resident().saturating_sub(before);
    println!("5000 frames, {messages} messages before them, {ends} ends, resident +{} KiB", grown >> 10);
    assert!(ends > 1000 && messages == 5000, "{ends} ends, {messages} messages");
    assert!(grown < 16 << 20, "{grown} bytes more");
}

/// Splitmix.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }

    /// A frame with up to four mistakes, most of them in its header.
    fn frame(&mut self) -> Vec<u8> {
        let payload = vec![7; 4 * self.below(30) as usize];
        let mut frame = match self.below(6) {
            0 => bare(&[2]),
            1 => bare(&[3, 1]),
            2 => bare(&[4 + (self.below(2) as u8)]),
            _ => message(self.below(3) as u32, &payload),
        };
        for _ in 0..1 + self.below(4) {
            let len = frame.len() as u64;
            let at = if self.below(4) == 0 { self.below(len) } else { self.below(len.min(48)) } as usize;
            match self.below(5) {
                0 | 1 => frame[at] ^= 1 << self.below(8),
                2 | 3 => frame[at] = self.below(256) as u8,
                _ => frame.truncate(at + 1),
            }
        }
        frame
    }
}
