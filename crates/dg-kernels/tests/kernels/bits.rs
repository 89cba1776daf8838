//! Bits that must not depend on how the work is divided.

use crate::support::{BOTH, bits, input, random};
use burn::tensor::{DType, Tensor};
use dg_kernels::{self as k, Precision};

const F32: Precision = Precision::F32;

#[test]
fn linear_rows_do_not_depend_on_their_number() {
    let shapes = [
        (768, 768),
        (3072, 64),
        (64, 512),
        (256, 1024),
        (128, 512),
        (48, 192),
        (768, 48),
        (1500, 16),
        (515, 24),
        (16, 3),
    ];
    for (p, (inner, n)) in BOTH.into_iter().flat_map(|p| shapes.map(|shape| (p, shape))) {
        let (x, w, b) =
            (input(1, [200, inner], p), random(2, [n, inner]).cast(DType::BF16), input(3, [n], p));
        for bias in [None, Some(&b)] {
            let whole = bits(k::linear(x.clone(), &w, bias, p));
            for m in 1..100 {
                let start = [0, 7, 99][m % 3];
                let part = bits(k::linear(x.clone().narrow(0, start, m), &w, bias, p));
                assert!(
                    part[..] == whole[start * n..(start + m) * n],
                    "{inner} -> {n}, {m} rows from {start}, {p:?}"
                );
            }
        }
    }
}

/// Ulysses and PipeFusion depend on this: splitting queries or heads changes no bit.
#[test]
fn attention_rows_do_not_depend_on_the_split() {
    for (p, d) in BOTH.into_iter().flat_map(|p| [(p, 40), (p, 13)]) {
        let part = |seed| input(seed, [1, 311, 2, d], p);
        let (q, kk, v) = (part(1), part(2), part(3));
        let (whole, lse) = k::attention(q.clone(), kk.clone(), v.clone(), 0.125, p);
        for (start, len) in [(0, 1), (0, 96), (50, 97), (5, 6), (100, 211)] {
            let part = k::attention(q.clone().narrow(1, start, len), kk.clone(), v.clone(), 0.125, p);
            assert!(
                bits(part.0) == bits(whole.clone().narrow(1, start, len)),
                "{len} queries from {start}, {p:?}"
            );
            assert!(bits(part.1) == bits(lse.clone().narrow(2, start, len)));
        }
        for head in 0..2 {
            let of = |t: &Tensor<4>| t.clone().narrow(2, head, 1);
            let part = k::attention(of(&q), of(&kk), of(&v), 0.125, p);
            assert!(bits(part.0) == bits(of(&whole)) && bits(part.1) == bits(lse.clone().narrow(1, head, 1)));
        }
        // where the keys' segments begin changes nothing either, also inside of a pair
        for cut in [1, 64, 255, 300] {
            let two = |t: &Tensor<4>| vec![t.clone().narrow(1, 0, cut), t.clone().narrow(1, cut, 311 - cut)];
            let cut = k::attention_segments(vec![q.clone()], two(&kk), two(&v), 0.125, p).remove(0);
            assert!(bits(cut.0) == bits(whole.clone()) && bits(cut.1) == bits(lse.clone()), "{p:?}");
        }
    }
}

/// All operations on a batch of `b` images out of three, as bits per image.
fn batch(first: usize, b: usize, p: Precision) -> Vec<Vec<u32>> {
    let cut3 = |t: Tensor<3>| t.narrow(0, first, b);
    let cut4 = |t: Tensor<4>| t.narrow(0, first, b);
    let x = || cut3(input(1, [3, 19, 48], p));
    let y = || cut3(input(2, [3, 19, 48], p));
    let v = |seed| input(seed, [3, 48], p).narrow(0, first, b);
    let heads = |seed| cut4(input(seed, [3, 19, 3, 16], p));
    let image = || cut4(input(3, [3, 8, 17, 19], p));
    let (w, c) = (random(4, [48]), random(5, [8]));
    let (k3, k1, bias) = (random(6, [5, 8, 3, 3]), random(7, [5, 8, 1, 1]), random(8, [5]));
    let (angles, scores) = (random(9, [19, 8]), random(10, [3, 19, 19]));
    let (o, lse) = k::attention(heads(11), heads(12), heads(13), 0.25, p);
    vec![
        bits(k::linear(x(), &random(14, [7, 48]), None, p)),
        bits(o.clone()),
        bits(lse.clone()),
        bits(k::merge_partials((o, lse.clone()), (heads(15), lse)).0),
        bits(k::attention_with_bias(heads(11), heads(12), heads(13), &scores, 1.0, p)),
        bits(k::gelu_tanh(x(), p)),
        bits(k::gelu_new(x(), p)),
        bits(k::quick_gelu(x(), p)),
        bits(k::silu(x(), p)),
        bits(k::add(x(), y(), p)),
        bits(k::mul(x(), y(), p)),
        bits(k::layer_norm(x(), &w, &w, 1e-5, p)),
        bits(k::layer_norm_modulate(x(), v(16), v(17), 1e-6, p)),
        bits(k::gated_residual(x(), v(16), y(), p)),
        bits(k::rms_norm(x(), &w, 1e-6, p)),
        bits(k::t5_norm(x(), &w, 1e-6, p)),
        bits(k::rms_norm_rope(heads(18), &random(19, [16]), &angles.clone().cos(), &angles.sin(), 1e-6, p)),
        bits(k::group_norm(image(), &c, &c, 4, 1e-6, true, p)),
        bits(k::conv3x3(image(), &k3, &bias, p)),
        bits(k::conv3x3_upsampled(image(), &k3, &bias, p)),
        bits(k::conv3x3_stride2(image(), &k3, &bias, p)),
        bits(k::conv1x1(image(), &k1, &bias, p)),
        bits(k::cat_tokens(x(), y())),
        bits(k::cat_channels(x(), y())),
    ]
}

#[test]
fn images_do_not_depend_on_their_batch() {
    for p in BOTH {
        let whole = batch(0, 3, p);
        for (first, b) in [(0, 1), (1, 1), (2, 1), (1, 2)] {
            for (op, (part, whole)) in batch(first, b, p).iter().zip(&whole).enumerate() {
                let n = whole.len() / 3;
                assert!(
                    part[..] == whole[first * n..(first + b) * n],
                    "operation {op}, image {first}, {p:?}"
                );
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |threads, p| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let mut all = batch(0, 3, p);
            let image = input(1, [1, 16, 70, 80], p);
            let (w, b) = (random(2, [16]), random(3, [32]));
            all.push(bits(k::group_norm(image.clone(), &w, &w, 2, 1e-6, true, p)));
            all.push(bits(k::conv3x3(image.clone(), &random(4, [32, 16, 3, 3]), &b, p)));
            all.push(bits(k::conv1x1(image, &random(4, [32, 16, 1, 1]), &b, p)));
            for kind in [DType::F32, DType::BF16] {
                let weight = random(6, [500, 700]).cast(kind);
                all.push(bits(k::linear(input(5, [300, 700], p), &weight, None, p)));
                let (residual, gate) = (input(10, [1, 300, 500], p), input(11, [1, 500], p));
                let parts = vec![input(12, [1, 300, 600], p), input(13, [1, 300, 100], p)];
                all.push(bits(k::linear_gated(residual, gate, parts, &weight, None, p)));
            }
            let part = |seed| input(seed, [1, 300, 2, 64], p);
            all.push(bits(k::attention(part(7), part(8), part(9), 0.125, p).0));
            all
        })
    };
    for p in BOTH {
        let one = run(1, p);
        assert!(run(2, p) == one && run(3, p) == one, "{p:?}");
    }
}

#[test]
fn shared_memory_is_not_overwritten() {
    let (x, y, gate) = (random(12, [2, 5, 20]), random(13, [2, 5, 20]), random(14, [2, 20]));
    let before = bits(x.clone());
    let _ = k::silu(x.clone(), F32);
    let _ = k::gelu_tanh(x.clone(), Precision::Bf16);
    let _ = k::add(x.clone(), y.clone(), F32);
    let _ = k::mul(x.clone(), y.clone(), F32);
    let _ = k::gated_residual(x.clone(), gate, y, F32);
    let part: Tensor<3> = x.clone().narrow(1, 0, 2);
    let _ = k::silu(part, F32);
    assert!(bits(x) == before);
    let image = random(1, [1, 4, 3, 3]);
    let (before, w) = (bits(image.clone()), random(2, [4]));
    let _ = k::group_norm(image.clone(), &w, &w, 2, 1e-6, true, F32);
    assert!(bits(image) == before);
    let partial = || (random(1, [1, 5, 2, 8]), random(2, [1, 2, 5]));
    let a = partial();
    let _ = k::merge_partials(a.clone(), partial());
    assert!(bits(a.0) == bits(partial().0) && bits(a.1) == bits(partial().1));
}

/// The banded decoder depends on this: rows of a map, normed by the sums of all its bands.
#[test]
fn bands_change_no_bit_of_group_norm() {
    if k::path() == "portable" {
        return;
    }
    let (weight, bias) = (random(2, [12]), random(3, [12]));
    for (h, w) in [(23, 37), (40, 700), (9, 1)] {
        let x = random(1, [2, 12, h, w]) + random(4, [2, 12, 1, 1]).expand([2, 12, h, w]) * 30.0;
        let norm = || k::group_norm(x.clone(), &weight, &bias, 3, 1e-6, true, F32);
        let whole = bits(norm());
        for step in [1, 2, 7, 8, 100] {
            let bands = (0..h).step_by(step).map(|y| x.clone().narrow(2, y, step.min(h - y)));
            let bands: Vec<Tensor<4>> = bands.collect();
            let moments = k::GroupMoments::of(bands.iter().map(|band| k::group_sums(band, 3)).collect());
            let normed =
                bands.into_iter().map(|b| k::group_norm_by(b, &moments, &weight, &bias, 1e-6, true, F32));
            assert!(bits(k::cat_rows(normed.collect())) == whole, "bands of {step} rows of {h} x {w}");
        }
    }
}

/// The address of a dense tensor's memory survives an operation in place.
#[test]
fn unique_memory_is_reused() {
    if k::path() == "portable" {
        return;
    }
    let vec = |seed| k::to_vec(random::<1>(seed, [40]));
    let data = vec(1);
    let at = data.as_ptr();
    let device = burn::tensor::Device::flex();
    let x = k::silu(k::from_vec(data, [2, 1, 20], &device), F32);
    let x = k::add(x, k::from_vec(vec(2), [2, 1, 20], &device), F32);
    let x = k::gated_residual(x, random(3, [2, 20]), random(4, [2, 1, 20]), F32);
    let data = k::to_vec(x);
    assert_eq!(data.as_ptr(), at);
}
