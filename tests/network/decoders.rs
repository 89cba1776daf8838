//! The functions of the fuzz targets on changed messages: no panic, no memory to speak of.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a library for the fuzz targets")]
mod targets;

use crate::mutate::{Random, mutate, mutate_json};
use crate::raw::Hello;
use crate::rig::{alone, flag};
use dg_net::plane::EpochKey;
use dg_net::wire::{self, Message};
use dg_runtime::fleet::client::{Ask, Tell};
use dg_runtime::fleet::job::RankDone;
use dg_runtime::fleet::protocol::{AgentFacts, Down, GpuUse, RankOrder, RankOut, RankSay, RankUse, Up};
use dg_runtime::logic::cluster::Stamp;
use std::time::{Duration, Instant};

const STAMP: Stamp = Stamp { term: 3, number: 70_000 };

fn bytes(message: &impl Message) -> Vec<u8> {
    wire::encode(message).expect("a message")
}

type Target = (&'static str, fn(&[u8]), Vec<Vec<u8>>);

/// Every target with good messages.
fn all() -> Vec<Target> {
    let order = |order| Down::Order(1, STAMP, STAMP, order);
    let facts = AgentFacts {
        pid: 7,
        memory_bytes: 1 << 40,
        cores: 2,
        core_flops: 1e11,
        running: vec![(1, STAMP); 3],
        spec: None,
    };
    let wire = vec![
        bytes(&Hello::of("left")),
        bytes(&facts),
        bytes(&Down::Granted { seq: 1, ttl: Duration::from_secs(5) }),
        bytes(&order(RankOrder::InitGroup { key: EpochKey::new([7; 32]), members: Vec::new() })),
        bytes(&order(RankOrder::Run { from_step: 3, is_again: false })),
        bytes(&RankOut::Said(STAMP, RankSay::Event("{}".into()))),
        bytes(&Tell::Failed { message: "no".into(), hint: None, exit: 1 }),
    ];
    let gpu = GpuUse { busy_percent: Some(97), used_bytes: 3 << 30, total_bytes: 80 << 30 };
    let used = |slot, gpu| RankUse { slot, memory: 1 << 30, gpu };
    let up = vec![
        bytes(&Up::Renew(9, vec![used(0, None), used(1, Some(gpu))])),
        bytes(&Up::Exited(0, STAMP, "signal 9".into(), vec!["last words".into(); 3])),
        bytes(&Up::Said(1, STAMP, STAMP, RankSay::Checkpoint(2))),
        bytes(&Up::Model("demo".into(), Ok("{\"id\":{\"id\":\"demo\",\"hash\":\"\"}}".into()))),
    ];
    let ask = vec![
        bytes(&Ask::Submit),
        bytes(&Ask::Model(Some("demo".into()))),
        bytes(&Ask::Logs(1, 300)),
        bytes(&Ask::Drain("left".into(), true)),
    ];
    let part = b"{\"step\":1,\"rows\":[[0,0,8],[1,3,5]]}";
    let part = [&(part.len() as u32).to_le_bytes()[..], part, &[0; 160]].concat();
    let bulk =
        vec![crate::hostile::job().into_bytes(), RankDone::pack(Default::default(), &[]).to_vec(), part];
    let token = format!("dgjoin1:[::1]:7443:{}:{}", "0a".repeat(32), "00".repeat(16)).into_bytes();
    let toml = include_bytes!("../../configs/laptop-two-nodes.toml").to_vec();
    vec![
        ("wire", targets::wire, wire),
        ("up", targets::up, up),
        ("ask", targets::ask, ask),
        ("bulk_job", targets::bulk_job, bulk),
        ("token", targets::token, vec![token]),
        ("cluster_toml", targets::cluster_toml, vec![toml]),
    ]
}

#[test]
fn decoders_give_a_value_or_an_error() {
    let _alone = alone();
    let each = Duration::from_secs(flag("DG_FUZZ_SECONDS", 1) as u64);
    for (name, target, corpus) in all() {
        let mut random = Random(0x5eed);
        let (begin, mut count) = (Instant::now(), 0_u64);
        corpus.iter().for_each(|good| target(good));
        while begin.elapsed() < each {
            let good = &corpus[random.below(corpus.len())];
            let mut bytes = match std::str::from_utf8(good) {
                Ok(text) if name == "bulk_job" => mutate_json(&mut random, text),
                _ => good.clone(),
            };
            mutate(&mut random, &mut bytes);
            if random.below(16) == 0 {
                let length = random.below(300);
                bytes = random.bytes(length);
                bytes.insert(0, wire::VERSION);
            }
            target(&bytes);
            count += 1;
        }
        println!("{name}: {count} inputs in {each:?}");
    }
}
