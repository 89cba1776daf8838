//! A peer that has the key and no manners.

use crate::mesh::{LONG, SHORT};
use crate::raw::{Answer, Claim, bare, hello, message};
use dg_comm::{BlockShape, Call, Class, CommError, Communicator, Gone, Tag};
use dg_net::plane::{EpochKey, Listener, Member, Options, Rendezvous, Sockets};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
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

/// A peer may send what it has room for, and no more: a flood ends at the window.
#[test]
fn a_flood_beyond_the_credit_is_cut() {
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
fn thousands_of_mutated_frames_do_no_harm() {
    let mut state = 42u64;
    let mut random = move |end: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    };
    drop(pair(options()));
    let before = resident();
    let (mut frames, mut connections) = (0, 0);
    while frames < 5000 {
        let (comm, mut stream) = pair(options());
        connections += 1;
        for _ in 0..50 {
            let payload = vec![7; 4 * random(30) as usize];
            let mut frame = match random(6) {
                0 => bare(&[2]),
                1 => bare(&[3, 1]),
                2 => bare(&[4 + (random(2) as u8)]),
                _ => message(random(3) as u32, &payload),
            };
            for _ in 0..random(4) {
                let at = if random(2) == 0 {
                    random(48.min(frame.len() as u64))
                } else {
                    random(frame.len() as u64)
                };
                match random(3) {
                    0 => frame[at as usize] ^= 1 << random(8),
                    1 => frame[at as usize] = random(256) as u8,
                    _ => frame.truncate(at as usize + 1),
                }
            }
            frames += 1;
            if stream.write_all(&frame).is_err() {
                break;
            }
        }
        drop(stream);
        let begin = Instant::now();
        // A message, or an error: both are fine, a hang is not.
        let _ = comm.recv(1, &call(LONG), BlockShape::f32(1));
        assert!(begin.elapsed() < LONG / 2, "hung");
        drop(comm);
    }
    let grown = resident().saturating_sub(before);
    eprintln!("{frames} frames over {connections} connections, resident memory +{} KiB", grown >> 10);
    assert!(grown < 16 << 20, "{grown} bytes more after {frames} frames");
}
