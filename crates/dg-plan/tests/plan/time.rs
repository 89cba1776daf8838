//! The time model against sums done by hand.

use crate::support::{dev, layout, on, plan};
use dg_plan::{Ask, Engine, Pipeline, Plan, Prediction, Work};

fn near(a: f64, b: f64, by: f64) -> bool {
    (a / b - 1.0).abs() <= by
}

fn predict(work: &Work, degrees: [u32; 5], links: &str) -> Prediction {
    plan(work, degrees).predict(&on("h100", links))
}

#[test]
fn one_rank_only_computes() {
    let p = predict(&dev(1024), [1, 1, 1, 1, 1], "nvlink");
    // 74.4 TFLOP at 484 TFLOP/s
    assert!(near(p.step_s, 0.1537, 0.001) && near(p.run_s, 28.0 * 0.1537, 0.001), "{p:?}");
    assert_eq!((p.exposed_s, p.warm_step_s), (0.0, p.step_s));
    let large = predict(&dev(2048), [1, 1, 1, 1, 1], "nvlink");
    assert!(near(large.step_s, 418.0 / 484.0, 0.002), "{large:?}");
}

#[test]
fn a_fast_ring_hides_and_a_slow_one_waits() {
    let work = dev(1024);
    let hidden = predict(&work, [1, 1, 1, 2, 1], "nvlink");
    assert!(near(hidden.exposed_s, 57.0 * Engine::THIS.hop_s, 1e-6), "{hidden:?}");
    // half of the attention of 14.87 TFLOP, spread over two hops, hides half of that; one hop of K and V on 10 Gbit/s
    let slow = predict(&work, [1, 1, 1, 2, 1], "eth10");
    let hop = 2.0 * 2304.0 * 3072.0 * 2.0 / 1.2e9 + 50e-6;
    let attention = 4.0 * 2304.0 * 4608.0 * 3072.0 / 484e12 / 2.0;
    assert!(near(slow.exposed_s, 57.0 * (hop - attention + Engine::THIS.hop_s), 1e-6), "{slow:?}");
}

#[test]
fn an_exchange_is_never_hidden() {
    let p = predict(&dev(1024), [1, 1, 1, 1, 4], "pcie4");
    let bytes = 1_210_318_848.0 / 20e9;
    let fixed = 57.0 * 2.0 * (Engine::THIS.exchange_s + 10e-6);
    assert!(near(p.exposed_s, bytes + fixed, 1e-6), "{p:?}");
    // of 24 heads the busiest of 16 members has two, as each of 12: its attention is no shorter
    let uneven = predict(&dev(1024), [1, 1, 1, 1, 16], "nvlink");
    let even = predict(&dev(1024), [1, 1, 1, 1, 12], "nvlink");
    assert!(uneven.compute_s > even.compute_s * 0.79, "{uneven:?} {even:?}");
}

#[test]
fn across_nodes_the_card_is_shared() {
    let work = dev(1024);
    let step = |links| predict(&work, [1, 1, 1, 1, 16], links);
    // of what each of eight ranks sends, 8/15 leaves the node through one card of 11.8 GB/s
    let bytes = 4.0 * 288.0 * 3072.0 * 2.0 / 16.0 * 8.0 * 57.0;
    let fixed = 57.0 * 2.0 * (Engine::THIS.exchange_s + 30e-6);
    assert!(near(step("nvlink:8,eth100:2").exposed_s, bytes * 8.0 / 11.8e9 + fixed, 1e-6));
    assert!(step("nvlink:16").exposed_s < step("nvlink:8,eth100:2").exposed_s / 4.0);
}

#[test]
fn stages_overlap_until_the_network_is_too_slow() {
    let work = dev(1024);
    let step = |patches, links| {
        let ask = Ask { patches: Some(patches), ..Ask::layout(layout([1, 1, 3, 1, 1])) };
        Plan::new(&work, &ask).unwrap().predict(&on("h100", links))
    };
    let serial = predict(&work, [1, 1, 1, 1, 1], "nvlink").step_s;
    let fast = step(3, "nvlink");
    assert!(near(fast.step_s, serial / 3.0, 0.01) && near(fast.warm_step_s, serial, 0.01), "{fast:?}");
    // a patch comes back to the first stage only after three edges
    let hop = 1365.0 * 3072.0 * 2.0 / 0.118e9;
    let slow = step(3, "eth1").step_s;
    assert!(slow > 3.0 * hop + 0.8 * serial / 3.0, "{slow} {hop}");
    // more and smaller patches hide the edges of a network that is less slow
    assert!(step(6, "eth100").step_s < step(3, "eth100").step_s);
}

#[test]
fn independent_streams_fill_a_pipeline() {
    let work = Work { images: 6, request_images: 6, batch: 6, ..dev(1024) };
    let ask = Ask { pipeline: Pipeline::Exact, ..Ask::layout(layout([1, 1, 3, 1, 1])) };
    let exact = Plan::new(&work, &ask).unwrap().predict(&on("h100", "nvlink"));
    let serial = predict(&work, [1, 1, 1, 1, 1], "nvlink");
    // two streams are still under way when the first is through the last step
    assert!(near(exact.run_s - 28.0 * exact.step_s, exact.step_s / 3.0, 0.02), "{exact:?}");
    assert!(near(exact.run_s, serial.run_s / 3.0, 0.02), "{exact:?} {serial:?}");
}

#[test]
fn branches_and_replicas_divide_the_time() {
    let cfg = Work { true_cfg: true, ..dev(1024) };
    let [one, two] = [[1, 1, 1, 1, 1], [1, 2, 1, 1, 1]].map(|d| predict(&cfg, d, "nvlink").run_s);
    assert!(near(one, 2.0 * two, 0.01));
    let many = Work { images: 7, batch: 4, ..dev(1024) };
    let [one, two, four] = [1, 2, 4].map(|dp| predict(&many, [dp, 1, 1, 1, 1], "nvlink").run_s);
    // 7 pictures: the busiest of two makes four, of four two
    assert!(near(one, 7.0 * two / 4.0, 1e-9) && near(two, 2.0 * four, 1e-9));
}
