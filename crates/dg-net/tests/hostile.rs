//! Bytes of all kinds: no panic, no memory, and those who behave are served.

#[allow(dead_code, reason = "the other suite uses the rest")]
mod support;

use std::net::UdpSocket;
use std::sync::Mutex;
use std::time::Duration;

use dg_net::identity::{Name, Role};
use dg_net::wire::{BYTES_MAX, Message, WireError, decode, encode, read_frame, write_frame};
use serde::{Deserialize, Serialize};
use support::{Hello, Random, Rig, WITHIN, hello};

/// Memory is that of the process, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// `VmHWM` (resident) or `VmPeak` (virtual), in bytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// `task` may not take more than 16 MiB, nor ask the system for a tenth of what a lying length says.
fn within_memory(task: impl FnOnce()) {
    let before = (memory("VmHWM"), memory("VmPeak"));
    task();
    within_memory_since(before);
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run(task: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task);
}

/// A message of every shape that messages have.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shapes {
    Empty,
    Many { lists: Vec<Vec<u32>>, map: std::collections::BTreeMap<String, u64>, small: [u8; 4] },
    Text(String, Option<Box<str>>, f64, i64, u128, char, bool),
}

impl Message for Shapes {}

fn shapes() -> [Shapes; 3] {
    let map = [("a", 1), ("b", u64::MAX)].map(|(key, value)| (key.to_owned(), value)).into();
    [
        Shapes::Empty,
        Shapes::Many { lists: vec![vec![], vec![1, 2, 300_000]], map, small: [1, 2, 3, 4] },
        Shapes::Text("text".to_owned(), Some("more".into()), 0.5, -7, 1 << 100, 'x', true),
    ]
}

/// Changes, cuts, repeats or lengthens.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            // The markers of lengths in 2, 4, 8 and 16 bytes.
            1 if at < bytes.len() => bytes[at] = 251 + random.below(4) as u8,
            2 => bytes.truncate(at),
            3 => {
                let count = random.below(40);
                bytes.extend(random.bytes(count));
            }
            _ => bytes.insert(at.min(bytes.len()), 0xff),
        }
    }
}

#[test]
fn messages_come_back_as_they_were() {
    let _alone = alone();
    for shape in shapes() {
        assert_eq!(decode::<Shapes>(&encode(&shape).unwrap()).unwrap(), shape);
    }
    let good = encode(&hello("node-1")).unwrap();
    assert_eq!(decode::<Hello>(&good).unwrap(), hello("node-1"));
    let check = |bytes: &[u8], expected: &str| {
        let error = decode::<Hello>(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[], "0 bytes");
    check(&[2], "format 2");
    check(&[&good[..], &[0]].concat(), "1 bytes follow");
    check(&good[..good.len() - 1], "not a ");
    check(&vec![1; BYTES_MAX + 1], "65536 bytes");
    let long = Hello { name: "x".repeat(BYTES_MAX), ..hello("") };
    assert!(matches!(encode(&long), Err(WireError::Size { .. })));
    // The longest that can be.
    let mut most = Hello { name: "x".repeat(BYTES_MAX - 40), ..hello("") };
    while encode(&most).is_ok() {
        most.name.push('x');
    }
    most.name.pop();
    assert_eq!(encode(&most).unwrap().len(), BYTES_MAX);
    assert_eq!(decode::<Hello>(&encode(&most).unwrap()).unwrap(), most);
}

#[test]
fn changed_messages_are_values_or_errors() {
    let _alone = alone();
    let mut random = Random(0x5eed);
    let frames: Vec<_> = shapes().iter().map(|shape| encode(shape).unwrap()).collect();
    let (mut values, mut errors) = (0, 0);
    within_memory(|| {
        for number in 0..10_000 {
            let mut bytes = frames[number % frames.len()].clone();
            mutate(&mut random, &mut bytes);
            match decode::<Shapes>(&bytes) {
                Ok(_) => values += 1,
                Err(error) => {
                    assert!(error.to_string().len() < 300, "{error}");
                    errors += 1;
                }
            }
            // And all random, of the right version.
            let mut bytes = random.bytes(number % 300);
            bytes.insert(0, 1);
            let _ = (decode::<Shapes>(&bytes), decode::<Hello>(&bytes));
        }
    });
    assert!(errors > 5_000, "{values} values, {errors} errors");
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let _alone = alone();
    run(async {
        let check = async |bytes: &[u8], expected: &str| {
            let error = read_frame::<Hello>(&mut &bytes[..], WITHIN).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        within_memory_of(async {
            for length in [0, BYTES_MAX as u32 + 1, 1 << 24, 1 << 31, u32::MAX] {
                for _ in 0..1000 {
                    check(&[&length.to_be_bytes()[..], b"xxxx"].concat(), "1 to 65535 are possible").await;
                }
            }
        })
        .await;
        check(b"", "the stream has ended").await;
        check(b"\0\0", "ended within a message").await;
        check(b"\0\0\0\x05\x01", "ended within a message").await;
        // A length within a message.
        let mut inner = vec![1];
        inner.extend([253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        let error = decode::<Hello>(&inner).unwrap_err().to_string();
        assert!(error.contains("not a "), "{error}");
        // Whoever says nothing, or stops half-way, is not waited for.
        let (mut here, _there) = tokio::io::duplex(1000);
        let short = Duration::from_millis(20);
        let late = read_frame::<Hello>(&mut here, short).await;
        assert!(matches!(late, Err(WireError::Deadline { .. })), "{late:?}");
        let (mut here, _full) = tokio::io::duplex(4);
        let late = write_frame(&mut here, &hello("x"), short).await;
        assert!(matches!(late, Err(WireError::Deadline { .. })), "{late:?}");
    });
}

async fn within_memory_of(task: impl Future<Output = ()>) {
    let before = (memory("VmHWM"), memory("VmPeak"));
    task.await;
    within_memory_since(before);
}

fn within_memory_since(before: (u64, u64)) {
    let (resident, asked) = (memory("VmHWM") - before.0, memory("VmPeak") - before.1);
    assert!(resident <= 16 << 20 && asked <= 400 << 20, "{resident} bytes resident, {asked} bytes asked for");
}

#[test]
fn a_peer_that_sends_nonsense_disturbs_nobody() {
    let _alone = alone();
    run(async {
        let rig = Rig::new();
        rig.serves().await;
        let peer = rig.dialer("node-bad", Role::Node).connect(rig.address, &Name::head()).await.unwrap();
        let good = encode(&hello("node-bad")).unwrap();
        let mut random = Random(0xbad);
        within_memory_of(async {
            for number in 0..2_000 {
                let mut body = good.clone();
                mutate(&mut random, &mut body);
                let length = match number % 4 {
                    0 => random.next() as u32,
                    _ => body.len() as u32,
                };
                let opened = tokio::time::timeout(WITHIN, peer.connection().open_bi()).await.unwrap();
                let (mut send, mut receive) = opened.unwrap();
                // The listener may have given up on the stream already.
                let _ = send.write_all(&[&length.to_be_bytes()[..], &body].concat()).await;
                let _ = send.finish();
                let _ = tokio::time::timeout(WITHIN, receive.read_to_end(BYTES_MAX + 4)).await.unwrap();
            }
        })
        .await;
        rig.serves().await;
    });
}

#[test]
fn random_datagrams_leave_a_listener_serving() {
    let _alone = alone();
    run(async {
        let rig = Rig::new();
        rig.serves().await;
        let (address, before) = (rig.address, (memory("VmHWM"), memory("VmPeak")));
        let flood = tokio::task::spawn_blocking(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut random = Random(0xda7a);
            for number in 0..20_000 {
                let count = 1 + random.below(1400);
                let mut bytes = random.bytes(count);
                if number % 2 == 0 {
                    // The head of a first packet of QUIC version 1, so that it is looked at more closely.
                    bytes.resize(1200, 0);
                    bytes[..6].copy_from_slice(&[0xc0 | (number % 4) as u8, 0, 0, 0, 1, 8]);
                }
                socket.send_to(&bytes, address).unwrap();
                if number % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        // Meanwhile, too.
        rig.serves().await;
        flood.await.unwrap();
        rig.serves().await;
        within_memory_since(before);
    });
}
