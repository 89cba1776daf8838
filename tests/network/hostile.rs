//! Peers that send what nobody understands, while a job runs: the head lives, small as it was, and the picture is right.

use crate::forge::issue;
use crate::mutate::{Random, mutate, mutate_json};
use crate::raw::{self, Hello, frame, value};
use crate::rig::{Rig, TIMEOUT, alone, flag, run};
use dg_core::{DType, GenerateRequest, ImageSize, Seed, TimeDtype};
use dg_net::bus::{Link, Received};
use dg_net::endpoint::Peer;
use dg_net::identity::Role;
use dg_net::plane::{Address, Member};
use dg_net::wire;
use dg_plan::{Ask as Layouts, Layout};
use dg_runtime::fleet::client::{Ask, CLIENT, HeadClient, Options};
use dg_runtime::fleet::job::JobBody;
use dg_runtime::fleet::protocol::{Down, GpuUse, RankSay, RankUse, Up};
use dg_runtime::logic::cluster::Stamp;
use dg_runtime::logic::cluster::epoch::Trouble;
use dg_testkit::program::finish;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// A job that lasts a while.
const LONG: &[&str] = &[
    "--prompt",
    "red apple",
    "--seed",
    "7",
    "--height",
    "128",
    "--width",
    "128",
    "--num_inference_steps",
    "40",
];

/// Does harm while jobs run one after the other, and looks at the head before and after.
pub(crate) fn under_attack(rig: &Rig, what: &str, harm: impl FnOnce(&Rig)) {
    let serial = rig.serial(LONG);
    // What a first job and first peers need is there before it is measured.
    assert!(rig.pictures(&format!("{what}-before"), LONG) == serial);
    let (before, files) = (rig.memory(), rig.files());
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let (ended, ends) = std::sync::mpsc::channel::<()>();
        let jobs = scope.spawn(move || {
            let mut count = 0;
            while ends.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) || count == 0 {
                let folder = format!("{what}-{count}");
                finish(rig.start(&folder, LONG), TIMEOUT).expect_success();
                assert!(rig.tree(&folder) == serial, "{what}: another picture");
                count += 1;
            }
            count
        });
        harm(rig);
        drop(ended);
        let count = jobs.join().expect("the jobs went on");
        let took = begin.elapsed();
        // Connections that were left behind time out first, and questions that nobody answers after 30 s.
        let until = Instant::now() + Duration::from_secs(40);
        let (grown, files_after) = loop {
            let (grown, files_after) = (rig.memory().0.saturating_sub(before.0) >> 10, rig.files());
            if (grown <= GROWTH_KIB && files_after <= files) || Instant::now() > until {
                break (grown, files_after);
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        println!(
            "{what}: {took:.1?}, {count} jobs meanwhile; head {} KiB before, +{grown} KiB after {:.1?} more, peak +{} KiB; \
             files {files} and {files_after}",
            before.0 >> 10,
            begin.elapsed() - took,
            rig.memory().1.saturating_sub(before.1) >> 10
        );
        assert!(grown <= GROWTH_KIB, "{what}: {grown} KiB more");
        assert!(files_after <= files, "{what}: {files} files became {files_after}");
        assert_eq!(rig.status()["head"]["pid"], rig.head, "the same head");
        let log = rig.head_log();
        assert!(!log.contains("panicked"), "{log}");
    });
}

#[test]
fn random_datagrams_are_nothing() {
    let _alone = alone();
    let rig = Rig::local();
    let count = flag("DG_DATAGRAMS", 1_000_000);
    under_attack(&rig, "datagrams", |rig| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut random = Random(0xda7a);
        for number in 0..count {
            let length = 1 + random.below(1400);
            let mut bytes = random.bytes(length);
            if number % 2 == 0 {
                // The head of a first packet of QUIC version 1, so that it is looked at more closely.
                bytes.resize(1200, 0);
                bytes[..6].copy_from_slice(&[0xc0 | (number % 4) as u8, 0, 0, 0, 1, 8]);
            }
            // A full buffer is the kernel's answer.
            let _ = socket.send_to(&bytes, rig.address);
            if number % 64 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn a_node_that_sends_nonsense_disturbs_no_other() {
    let _alone = alone();
    // The job takes the ranks of `left`; `evil` has a place in the file, and what sits there is the test.
    let rig = Rig::up(
        "[[node]]\nname = \"left\"\nlocal = true\nranks = 2\ncpu_threads = 1\n\
         [[node]]\nname = \"evil\"\nlocal = true\nlaunch = \"manual\"\nranks = 2\ncpu_threads = 1\n\
         [parallel]\nulysses_degree = 2\ndata_parallel_degree = 2\n",
        None,
        false,
    );
    rig.await_status("left is up", Duration::from_secs(30), |status| {
        status["ranks"].as_array().expect("a list").iter().take(2).all(|rank| rank["state"] == "idle")
    });
    let count = flag("DG_FRAMES", 10_000);
    under_attack(&rig, "node", |rig| {
        run(async {
            hellos(rig, count / 20).await;
            let (bus, link) = raw::join(rig, "evil").await;
            let stamps = settle(rig, &link).await;
            ups(&link, count, stamps).await;
            bulk(link.peer(), count / 4).await;
            drop(link);
            bus.stop();
        });
    });
}

/// Greetings, each on a connection of its own.
async fn hellos(rig: &Rig, count: usize) {
    let mut random = Random(0x4e11);
    for number in 0..count {
        let peer = raw::connect(rig, "evil").await;
        let mut bytes = wire::encode(&Hello::of("evil")).expect("a message");
        mutate(&mut random, &mut bytes);
        let length = if number % 4 == 0 { random.next() as u32 } else { bytes.len() as u32 };
        let (mut send, mut receive) = peer.connection().open_bi().await.expect("a stream");
        let _ = send.write_all(&frame(length, &bytes)).await;
        let _ = send.finish();
        let _ = tokio::time::timeout(Duration::from_millis(20), receive.read_to_end(70_000)).await;
    }
}

/// The node says that it has the model, and so is in. The start of its first rank and the epoch of the job that others
/// work at come back.
async fn settle(rig: &Rig, link: &Link) -> [Stamp; 2] {
    let client = HeadClient::of_state(&rig.state(), CLIENT, Options::default()).await.expect("a head");
    let card = client.model(None).await.expect("left has it");
    let card = serde_json::to_string(&card).expect("JSON");
    link.cast(&Up::Model("demo".into(), Ok(card))).expect("a connection");
    let start = loop {
        let Some(Received::Cast(bytes)) = link.receive().await else { panic!("a cast") };
        if let Ok(Down::Spawn(0, start)) = wire::decode(&bytes) {
            break start;
        }
    };
    let until = Instant::now() + Duration::from_secs(20);
    let epoch = loop {
        let status = client.status().await.expect("a head");
        if let Some(epoch) = status.ranks[0].epoch.clone() {
            break epoch;
        }
        assert!(Instant::now() < until, "no job began");
    };
    let (term, number) = epoch.split_once('-').expect("two numbers");
    let epoch = Stamp { term: term.parse().expect("a number"), number: number.parse().expect("a number") };
    [start, epoch]
}

/// What a node says, of all kinds, good and spoilt.
async fn ups(link: &Link, count: usize, [start, epoch]: [Stamp; 2]) {
    let mut random = Random(0x0b5);
    let good: Vec<Vec<u8>> = says(start, epoch).iter().map(value).collect();
    for number in 0..count {
        let mut bytes = good[number % good.len()].clone();
        if number % 8 != 0 {
            mutate(&mut random, &mut bytes);
        }
        bytes.truncate(wire::BYTES_MAX - 1);
        link.cast(&raw::Bytes(bytes)).unwrap_or_else(|e| panic!("after {number} messages: {e}"));
        if number % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // And as long as they may be.
    for number in 0..200_u64 {
        let long = "x".repeat(60_000);
        let says = [
            Up::Model(format!("{number}{long}"), Err("no".into())),
            Up::Model(format!("model {number}"), Err(long.clone())),
            Up::Exited(0, start, long.clone(), vec![]),
            Up::Renew(number, vec![RankUse { slot: 1, memory: 2, gpu: None }; 15_000]),
            Up::Said(0, start, epoch, RankSay::Event(long)),
        ];
        for up in says {
            link.cast(&up).unwrap_or_else(|e| panic!("after {number} long messages: {e}"));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const STAMP: Stamp = Stamp { term: 1, number: 1 };
/// More than there is, and more than all of it in use.
const LYING_GPU: GpuUse = GpuUse { busy_percent: Some(u32::MAX), used_bytes: u64::MAX, total_bytes: 0 };

/// All that a node can say, for slots, starts and epochs that there are and that there are not.
fn says(start: Stamp, epoch: Stamp) -> Vec<Up> {
    let never = Stamp { term: u64::MAX, number: u64::MAX };
    let member = Member::at(Address::Tcp(([10, 0, 0, 1], 1).into()));
    let says = || {
        [
            RankSay::Prepared { member: member.clone(), mapped_bytes: u64::MAX },
            RankSay::Grouped,
            RankSay::Progress(u32::MAX),
            RankSay::Checkpoint(u32::MAX),
            RankSay::Event("{\"step\":-1}".into()),
            RankSay::Done,
            RankSay::Stopped,
            RankSay::Failed(Trouble::Oom { need: u64::MAX, free: None }),
            RankSay::Failed(Trouble::Error("\u{1b}[2J".into())),
        ]
    };
    let places = [
        (0, start, epoch),
        (1, start, epoch),
        (0, start, never),
        (7, never, epoch),
        (u16::MAX, never, never),
    ];
    let said =
        places.into_iter().flat_map(|(slot, start, epoch)| says().map(|s| Up::Said(slot, start, epoch, s)));
    let mut all: Vec<Up> = said.collect();
    all.extend([
        Up::Renew(u64::MAX, vec![RankUse { slot: u16::MAX, memory: u64::MAX, gpu: None }]),
        Up::Renew(1, vec![RankUse { slot: 0, memory: u64::MAX, gpu: Some(LYING_GPU) }]),
        Up::Renew(0, Vec::new()),
        Up::Spawned(9, never, u32::MAX),
        Up::Exited(0, start, "gone".into(), vec!["last words".into(); 50]),
        Up::Exited(1, never, String::new(), Vec::new()),
        Up::Model("demo".into(), Ok("{\"id\":1}".into())),
        Up::Model(String::new(), Ok("[".repeat(10_000))),
    ]);
    all
}

/// Messages with bodies that lie about their length, or are no latents of anything.
async fn bulk(peer: &Peer, count: usize) {
    let mut random = Random(0xb01c);
    let says = [
        Up::Said(0, STAMP, STAMP, RankSay::Checkpoint(1)),
        Up::Said(1, STAMP, STAMP, RankSay::Done),
        Up::Renew(1, Vec::new()),
    ];
    for number in 0..count {
        let mut message = wire::encode(&says[number % says.len()]).expect("a message");
        let card =
            ["{\"step\":1,\"rows\":[[0,0,18446744073709551615]]}", "{\"step\":1,\"rows\":[[9,7,3]]}", "[[[["];
        let card = card[random.below(3)];
        let mut body = [&(card.len() as u32).to_le_bytes()[..], card.as_bytes(), &random.bytes(400)].concat();
        if random.below(2) == 0 {
            mutate(&mut random, &mut body);
        }
        if random.below(3) == 0 {
            mutate(&mut random, &mut message);
        }
        let told = match random.below(5) {
            0 => 1 << 62,
            1 => 500 << 20,
            2 => random.next() >> 40,
            _ => body.len() as u64,
        };
        let stream = tokio::time::timeout(Duration::from_secs(10), peer.connection().open_uni()).await;
        let mut stream = stream.expect("streams are taken").expect("the connection lives");
        let bytes = [frame(message.len() as u32, &message), told.to_be_bytes().to_vec(), body].concat();
        let _ = stream.write_all(&bytes).await;
        if number % 7 == 0 {
            let _ = stream.reset(9u32.into());
        } else {
            let _ = stream.finish();
        }
    }
}

#[test]
fn a_client_that_asks_nonsense_disturbs_no_other() {
    let _alone = alone();
    let rig = Rig::local();
    issue(&rig, "stranger", Role::Client);
    let count = flag("DG_FRAMES", 10_000);
    under_attack(&rig, "client", |rig| {
        run(async {
            let peer = raw::connect(rig, "stranger").await;
            // Streams that say a little and then nothing.
            let mut idle = Vec::new();
            for number in 0..1000_usize {
                let (mut send, receive) = peer.connection().open_bi().await.expect("a stream");
                let half = [&frame(2, &[1, 0]), &[0; 4][..number % 4]].concat();
                send.write_all(&half[..1 + number % half.len()]).await.expect("it is heard");
                idle.push((send, receive));
            }
            asks(&peer, count).await;
            submits(&peer, count / 10).await;
            drop(idle);
        });
    });
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for() {
    let _alone = alone();
    let rig = Rig::local();
    issue(&rig, "stranger", Role::Client);
    under_attack(&rig, "unread", |rig| {
        run(async {
            let watcher =
                HeadClient::of_state(&rig.state(), CLIENT, Options::default()).await.expect("a head");
            // So that an answer is long.
            for number in 0..300 {
                let name = format!("{number}{}", "x".repeat(3000));
                assert!(watcher.model(Some(&name)).await.is_err(), "no node has it");
            }
            let before = rig.memory().1;
            let peer = raw::connect(rig, "stranger").await;
            let mut unread = Vec::new();
            for number in 0..flag("DG_UNREAD", 4000) {
                let what = if number % 2 == 0 { Ask::Events } else { Ask::Jobs };
                let ask = wire::encode(&what).expect("a message");
                let (mut send, receive) = peer.connection().open_bi().await.expect("a stream");
                let bytes = [frame(ask.len() as u32, &ask), vec![0; 8]].concat();
                send.write_all(&bytes).await.expect("it is heard");
                unread.push((send, receive));
            }
            let mut took = Vec::new();
            for _ in 0..100 {
                let begin = Instant::now();
                watcher.status().await.expect("an answer to who reads");
                took.push(begin.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            took.sort();
            let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
            let peak = rig.memory().1.saturating_sub(before) >> 20;
            println!("unread: status after {median:.1?}, at worst {slowest:.1?}, peak +{peak} MiB");
            // Ranks have all of a small machine meanwhile.
            assert!(
                median < Duration::from_millis(5 * 100) && slowest < Duration::from_secs(5),
                "{slowest:?}"
            );
            assert!(peak < 128, "{peak} MiB");
        });
    });
}

async fn asks(peer: &Peer, count: usize) {
    let mut random = Random(0xa5c);
    let asks = [
        Ask::Submit,
        Ask::Status,
        Ask::Jobs,
        Ask::Events,
        Ask::Model(None),
        Ask::Model(Some("../../../../dev/zero".into())),
        Ask::Cancel("1-1".into()),
        Ask::Cancel("x".repeat(60_000)),
        Ask::Drain("nobody".into(), true),
        Ask::Logs(u32::MAX, u64::MAX),
    ];
    let good: Vec<Vec<u8>> = asks.iter().map(|ask| wire::encode(ask).expect("a message")).collect();
    for number in 0..count {
        let mut bytes = good[number % good.len()].clone();
        // Nothing here ends the cluster: that would be heard.
        let down = wire::encode(&Ask::Down).expect("a message");
        if number % 10 != 0 {
            mutate(&mut random, &mut bytes);
        }
        if wire::decode::<Ask>(&bytes).is_ok_and(|ask| matches!(ask, Ask::Down | Ask::Drain(..)))
            || bytes == down
        {
            continue;
        }
        if number % 20 == 5 {
            bytes = wire::encode(&Ask::Model(Some(format!("model {number}")))).expect("a message");
        }
        let told = if random.below(4) == 0 { random.next() } else { 0 };
        ask(peer, &bytes, told, &[]).await;
    }
}

async fn submits(peer: &Peer, count: usize) {
    let mut random = Random(0x5b);
    let submit = wire::encode(&Ask::Submit).expect("a message");
    let good = job();
    for number in 0..count {
        let mut body = mutate_json(&mut random, &good);
        match number % 50 {
            // 10^9 pictures of one request, a size beyond all limits, a ring around the world.
            0 => body = good.replace("\"request_images\":1", "\"request_images\":1000000000").into_bytes(),
            1 => body = good.replace("\"width\":64", "\"width\":65535").into_bytes(),
            2 => body = good.replace("\"ring\":1", "\"ring\":4294967295").into_bytes(),
            3 => body = good.replace("\"guidance_scale\":3.5", "\"guidance_scale\":NaN").into_bytes(),
            4 => body = [b"[".repeat(100_000), b"]".repeat(100_000)].concat(),
            _ => {}
        }
        ask(peer, &submit, body.len() as u64, &body).await;
    }
}

/// Asks, waits a little for an answer and goes away.
async fn ask(peer: &Peer, message: &[u8], told: u64, body: &[u8]) {
    let stream = tokio::time::timeout(Duration::from_secs(20), peer.connection().open_bi()).await;
    let (mut send, mut receive) = stream.expect("streams are given back").expect("the connection lives");
    let bytes = [frame(message.len() as u32, message), told.to_be_bytes().to_vec(), body.to_vec()].concat();
    let _ = send.write_all(&bytes).await;
    let mut first = [0; 4];
    let _ = tokio::time::timeout(Duration::from_millis(2), receive.read_exact(&mut first)).await;
    let _ = send.finish();
}

/// A job that would work.
pub(crate) fn job() -> String {
    let (size, _) = ImageSize::fit(64, 64).expect("a size");
    let body = JobBody {
        batch: vec![GenerateRequest::new("x", size, Seed(1))],
        model: None,
        model_hash: None,
        ask: Layouts::layout(Layout::SERIAL),
        request_images: 1,
        dtype: DType::Float32,
        time_dtype: TimeDtype::Model,
        tf32: false,
        vae_tiling: None,
        ranks_on: None,
        priority: 0,
    };
    let text = serde_json::to_string(&body).expect("JSON");
    for part in ["\"request_images\":1", "\"width\":64", "\"ring\":1", "\"guidance_scale\":3.5"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    text
}

/// So much more may the head have afterwards.
const GROWTH_KIB: u64 = 16 << 10;
