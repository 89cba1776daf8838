//! Bytes that a rank holds.

use crate::support::{dev, layout, plan};
use dg_core::DType;
use dg_plan::{Ask, Balance, Pipeline, Plan, Work};

#[test]
fn one_rank_holds_what_a_serial_run_needs() {
    let work = Work { dtype: DType::Float32, ..dev(1024) };
    let need = plan(&work, [1, 1, 1, 1, 1]).memory(0);
    let shape = &work.shape;
    let denoise = shape.transformer.activation_bytes(1, 4608);
    let decode = shape.vae.decode_bytes(1024 * 1024);
    assert_eq!((need.activations, need.encoding), (denoise.max(decode), shape.t5.activation_bytes(512)));
    assert_eq!(need.transformer, 11_901_408_320 * 4);
    let banded = shape.vae.banded_decode_bytes(1024 * 1024);
    assert_eq!(need.activations_least, denoise.max(banded));
    // two maps of 128 channels and a picture, and four bands of 64 MiB
    assert_eq!((decode >> 20, banded >> 20), (2560, 2 * 512 + 12 + 256));
    assert_eq!(shape.vae.banded_decode_bytes(64 * 64), shape.vae.decode_bytes(64 * 64), "one band is a map");
    assert_eq!(need.kv_buffers, 0);
    let alone = plan(&dev(1024), [1, 1, 1, 1, 1]).memory(0);
    // 23.8 GB of transformer, 9.5 of T5, 0.25 of CLIP, 0.1 of decoder
    assert_eq!((alone.transformer + alone.encoders + alone.decoder) / 100_000_000, 336);
    // without T5 and CLIP, once they have done their work
    assert_eq!(alone.total() - alone.resident_least(), alone.activations - alone.activations_least);
    assert_eq!(alone.resident_least() - alone.least(), alone.encoders);
}

#[test]
fn more_ranks_hold_less() {
    let work = dev(2048);
    let need = |degrees| plan(&work, degrees).largest_memory().1;
    let serial = need([1, 1, 1, 1, 1]);
    let last = |degrees: [u32; 5]| {
        let plan = plan(&work, degrees);
        plan.memory(plan.ranks() - 1)
    };
    assert!(last([1, 1, 1, 1, 4]).activations < serial.activations / 2);
    assert!(last([1, 1, 1, 4, 1]).activations < serial.activations / 2);
    assert!(need([1, 1, 4, 1, 1]).transformer < serial.transformer / 2);
}

#[test]
fn stale_pipelines_keep_keys_and_values() {
    let work = dev(1024);
    let per_block = 2 * 4608 * 3072 * 2;
    let need = |degrees| plan(&work, degrees).memory(0).kv_buffers;
    assert_eq!(need([1, 1, 3, 1, 1]), 19 * per_block);
    assert_eq!(need([1, 1, 3, 1, 2]), 19 * per_block / 2);
    assert_eq!(need([1, 1, 3, 2, 1]), 19 * per_block, "every place of a ring keeps all of it");
    let many = Work { images: 3, request_images: 3, batch: 3, ..work };
    let exact = Ask { pipeline: Pipeline::Exact, ..Ask::layout(layout([1, 1, 3, 1, 1])) };
    assert_eq!(Plan::new(&many, &exact).unwrap().memory(0).kv_buffers, 0);
}

#[test]
fn balancing_memory_lowers_the_heaviest_stage() {
    let work = dev(1024);
    let heaviest = |balance: Balance| {
        let ask = Ask { balance, ..Ask::layout(layout([1, 1, 4, 1, 1])) };
        let plan = Plan::new(&work, &ask).unwrap();
        (0..4).map(|rank| plan.memory(rank).transformer).max().unwrap()
    };
    let (by_time, by_memory) = (heaviest(Balance::Time), heaviest(Balance::Memory));
    assert!(by_memory < by_time * 3 / 4, "{by_memory} {by_time}");
    // an even share and the embeddings that each stage has
    assert!((by_memory as f64) < 23.8e9 / 4.0 * 1.1, "{by_memory}");
}
