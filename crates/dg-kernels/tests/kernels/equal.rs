//! Values: kernels against `dg_kernels::reference`.

use crate::support::{BOTH, bits, check, input, largest, random};
use burn::tensor::{DType, Device, Tensor};
use dg_kernels::{self as k, Activation, Precision, from_vec, reference as r, to_vec};

const F32: Precision = Precision::F32;

#[test]
fn linear_equals_its_twin() {
    let kinds = [DType::F32, DType::BF16, DType::F16];
    for (i, (m, n, inner)) in
        [(1, 1, 1), (1, 300, 64), (7, 13, 5), (65, 48, 700), (130, 96, 33)].into_iter().enumerate()
    {
        for p in BOTH {
            let x = input(1, [1, m, inner], p);
            let (w, b) = (random(2, [n, inner]).cast(kinds[i % 3]), random(3, [n]).cast(kinds[(i + 1) % 3]));
            for bias in [None, Some(&b)] {
                // bf16 keeps fewer digits of a sum near zero
                let expected = r::linear(x.clone(), &w, bias, p);
                check(k::linear(x.clone(), &w, bias, p), expected, 2e-4, p, &format!("{m} {n} {inner}"));
            }
        }
    }
}

/// Across the limits of blocks: inner steps, columns and rows.
#[test]
fn long_sums_equal_their_twin() {
    for (m, n, inner) in [(3, 5, 512), (100, 20, 513), (97, 300, 1025), (1, 17, 2048), (200, 1000, 40)] {
        let (x, w, b) = (random(1, [m, inner]), random(2, [n, inner]), random(3, [n]));
        let expected = r::linear(x.clone(), &w, Some(&b), F32);
        check(k::linear(x, &w, Some(&b), F32), expected, 1e-3, F32, &format!("{m} {n} {inner}"));
    }
}

#[test]
fn fused_layers_are_their_steps() {
    let layers = [Activation::GeluNew, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu];
    for p in BOTH {
        let (x, y) = (input(1, [2, 19, 50], p), input(2, [2, 19, 33], p));
        let (w, b) = (random(3, [21, 83]).cast(DType::BF16), random(4, [21]));
        let both = k::cat_channels(x.clone(), y.clone());
        let plain = k::linear(both.clone(), &w, Some(&b), p);
        let steps = [
            k::gelu_new(plain.clone(), p),
            k::gelu_tanh(plain.clone(), p),
            k::quick_gelu(plain.clone(), p),
            k::silu(plain.clone(), p),
        ];
        for (then, expected) in layers.into_iter().zip(steps) {
            assert!(bits(k::linear_then(both.clone(), &w, Some(&b), then, p)) == bits(expected), "{then:?}");
            let twin = r::linear_then(both.clone(), &w, Some(&b), then, p);
            check(k::linear_then(both.clone(), &w, Some(&b), then, p), twin, 2e-4, p, "activation");
        }
        let (residual, gate) = (input(5, [2, 19, 21], p), input(6, [2, 21], p));
        let parts = || vec![x.clone(), y.clone()];
        let expected = k::gated_residual(residual.clone(), gate.clone(), plain.clone(), p);
        let gated = k::linear_gated(residual.clone(), gate.clone(), parts(), &w, Some(&b), p);
        assert!(bits(gated.clone()) == bits(expected), "gate, {p:?}");
        let twin = r::linear_gated(residual.clone(), Some(gate), parts(), &w, Some(&b), p);
        check(gated, twin, 2e-4, p, "gate");
        let added = k::linear_add(residual.clone(), both, &w, Some(&b), p);
        assert!(bits(added) == bits(k::add(residual, plain, p)), "sum, {p:?}");
    }
}

/// The caller's residual must survive when it is held elsewhere.
#[test]
fn fused_layers_leave_shared_memory_alone() {
    let (residual, x, w) = (random(1, [1, 7, 9]), random(2, [1, 7, 5]), random(3, [9, 5]));
    let before = bits(residual.clone());
    let _ = k::linear_add(residual.clone(), x.clone(), &w, None, F32);
    let _ = k::linear_gated(residual.clone(), random(4, [1, 9]), vec![x], &w, None, F32);
    assert!(bits(residual) == before);
}

/// A block of keys that nobody looks at must not spoil the next one.
#[test]
fn scores_of_minus_infinity_hide_their_keys() {
    let (h, d, hidden, seen) = (1, 4, 300, 20);
    let q = from_vec(vec![1e30; d], [1, 1, h, d], &Device::flex());
    let keys = |x: f32, n: usize| from_vec(vec![x; n * d], [1, n, h, d], &Device::flex());
    let (far, near) = (keys(-3e38, hidden), keys(1e-31, seen));
    let values = [random(1, [1, hidden, h, d]), random(2, [1, seen, h, d])];
    let all = k::attention_segments(vec![q.clone()], vec![far, near.clone()], values.to_vec(), 1.0, F32);
    let some = k::attention(q, near, values[1].clone(), 1.0, F32);
    check(all[0].0.clone(), some.0, 1e-6, F32, "output");
    check(all[0].1.clone(), some.1, 1e-6, F32, "logarithm");
}

#[test]
fn segments_are_one_attention() {
    for p in BOTH {
        let part = |seed, n| input(seed, [2, n, 3, 24], p);
        let (q, kk, v) =
            ([part(1, 5), part(2, 130)], [part(3, 77), part(4, 200)], [part(5, 77), part(6, 200)]);
        let cat = |t: &[Tensor<4>; 2]| Tensor::cat(t.to_vec(), 1);
        let (out, lse) = k::attention(cat(&q), cat(&kk), cat(&v), 0.2, p);
        let parts = k::attention_segments(q.to_vec(), kk.to_vec(), v.to_vec(), 0.2, p);
        let mut at = 0;
        for (i, (part, part_lse)) in parts.into_iter().enumerate() {
            let n = q[i].dims()[1];
            assert!(bits(part) == bits(out.clone().narrow(1, at, n)), "segment {i}, {p:?}");
            assert!(bits(part_lse) == bits(lse.clone().narrow(2, at, n)), "segment {i}, {p:?}");
            at += n;
        }
        // an empty segment, of queries too, changes nothing
        let nobody = from_vec(Vec::new(), [2, 0, 3, 24], &Device::flex());
        let some = k::attention_segments(vec![nobody.clone(), cat(&q)], kk.to_vec(), v.to_vec(), 0.2, p);
        assert_eq!((some[0].0.dims(), some[0].1.dims()), ([2, 0, 3, 24], [2, 3, 0]));
        assert!(bits(some[1].0.clone()) == bits(out.clone()));
        let alone = k::attention_segments(vec![nobody], kk.to_vec(), v.to_vec(), 0.2, p);
        assert_eq!(alone[0].0.dims(), [2, 0, 3, 24]);
        assert!(k::attention_segments(Vec::new(), kk.to_vec(), v.to_vec(), 0.2, p).is_empty());
        let none = || from_vec(Vec::new(), [2, 0, 3, 24], &Device::flex());
        let keys = vec![kk[0].clone(), none(), kk[1].clone()];
        let values = vec![v[0].clone(), none(), v[1].clone()];
        let again = k::attention_segments(vec![cat(&q)], keys, values, 0.2, p).remove(0);
        assert!(bits(again.0) == bits(out));
    }
}

#[test]
fn attention_equals_its_twin() {
    let shapes = [
        (1, 2, 1, 1, 16),
        (2, 3, 97, 130, 64),
        (1, 1, 200, 77, 128),
        (1, 2, 6, 513, 33),
        (1, 1, 30, 40, 512),
        (2, 1, 5, 3, 7),
    ];
    for (b, h, sq, sk, d) in shapes {
        for p in BOTH {
            let (q, kk, v) =
                (input(1, [b, sq, h, d], p), input(2, [b, sk, h, d], p), input(3, [b, sk, h, d], p));
            let scale = (d as f32).powf(-0.5);
            let (o, l) = k::attention(q.clone(), kk.clone(), v.clone(), scale, p);
            let (ro, rl) = r::attention(q.clone(), kk.clone(), v.clone(), scale, p);
            check(l, rl, 2e-5, F32, "log-sum-exp");
            if p == F32 {
                check(o, ro, 2e-5, p, "output");
            } else {
                let weighed = to_vec(r::attention(q, kk, v.abs(), scale, F32).0);
                let (o, ro) = (to_vec(o), to_vec(ro));
                for ((a, twin), weighed) in o.into_iter().zip(ro).zip(weighed) {
                    assert!(a.to_bits() & 0xffff == 0, "not bf16");
                    // each probability is rounded by 2⁻⁹ of itself at most, and the result by one step more
                    let allowed = weighed / 256.0 + a.abs().max(twin.abs()) / 128.0;
                    assert!((a - twin).abs() <= allowed, "[{b}, {sq}, {sk}, {h}, {d}]: {a} for {twin}");
                }
            }
        }
    }
}

#[test]
fn attention_without_keys() {
    let (q, none) = (random(1, [1, 5, 2, 16]), || from_vec(Vec::new(), [1, 0, 2, 16], &Device::flex()));
    let empty = k::attention(q.clone(), none(), none(), 1.0, F32);
    assert!(to_vec(empty.0.clone()).iter().all(|x| *x == 0.0) && empty.0.dims() == [1, 5, 2, 16]);
    assert!(to_vec(empty.1.clone()).iter().all(|x| *x == f32::NEG_INFINITY) && empty.1.dims() == [1, 2, 5]);
    let some = k::attention(q, random(2, [1, 9, 2, 16]), random(3, [1, 9, 2, 16]), 0.25, F32);
    for merge in [k::merge_partials, r::merge_partials] {
        let both = merge(some.clone(), empty.clone());
        assert_eq!(to_vec(both.0), to_vec(some.0.clone()));
        assert_eq!(to_vec(both.1), to_vec(some.1.clone()));
        let nothing = merge(empty.clone(), empty.clone());
        assert!(to_vec(nothing.0).iter().all(|x| *x == 0.0));
        assert!(to_vec(nothing.1).iter().all(|x| *x == f32::NEG_INFINITY));
    }
}

#[test]
fn attention_reads_views() {
    let qkv = random(4, [1, 150, 3, 2, 64]);
    let part = |i| -> Tensor<4> { qkv.clone().narrow(2, i, 1).squeeze_dim::<4>(2) };
    let dense = |i| from_vec(to_vec(part(i)), [1, 150, 2, 64], &Device::flex());
    let a = k::attention(part(0), part(1), part(2), 0.125, F32);
    let b = k::attention(dense(0), dense(1), dense(2), 0.125, F32);
    assert!(bits(a.0) == bits(b.0) && bits(a.1) == bits(b.1));
    let bias = random(5, [1, 150, 150]);
    let a = k::attention_with_bias(part(0), part(1), part(2), &bias, 1.0, F32);
    let b = k::attention_with_bias(dense(0), dense(1), dense(2), &bias, 1.0, F32);
    assert!(bits(a) == bits(b));
}

#[test]
fn partial_results_merge() {
    let (q, kk, v) = (random(1, [1, 40, 2, 60]), random(2, [1, 300, 2, 60]), random(3, [1, 300, 2, 60]));
    let part =
        |s, n| k::attention(q.clone(), kk.clone().narrow(1, s, n), v.clone().narrow(1, s, n), 0.125, F32);
    let merged = k::merge_partials(part(0, 130), part(130, 170));
    let twin = r::merge_partials(part(0, 130), part(130, 170));
    let whole = part(0, 300);
    for other in [twin, whole] {
        check(merged.0.clone(), other.0, 1e-5, F32, "output");
        check(merged.1.clone(), other.1, 1e-5, F32, "log-sum-exp");
    }
}

#[test]
fn attention_with_bias_equals_its_twin() {
    for (b, h, sq, sk, d) in [(1, 2, 1, 1, 8), (2, 3, 77, 77, 16), (1, 4, 130, 260, 64), (1, 1, 5, 9, 7)] {
        for (p, shared) in BOTH.into_iter().flat_map(|p| [(p, true), (p, false)]) {
            let (q, kk, v) =
                (input(1, [b, sq, h, d], p), input(2, [b, sk, h, d], p), input(3, [b, sk, h, d], p));
            let bias = input(4, [if shared { 1 } else { h }, sq, sk], p);
            let a = k::attention_with_bias(q.clone(), kk.clone(), v.clone(), &bias, 0.3, p);
            // probabilities are rounded to 2⁻⁹ of their value before the last product
            check(
                a,
                r::attention_with_bias(q, kk, v, &bias, 0.3, p),
                if p == F32 { 2e-5 } else { 2e-2 },
                p,
                "bias",
            );
        }
    }
}

#[test]
fn a_causal_mask_hides_the_future() {
    let (s, d) = (37, 16);
    let mask = (0..s * s).map(|i| if i % s > i / s { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = from_vec(mask, [1, s, s], &Device::flex());
    let (q, kk, v) = (random(1, [1, s, 1, d]), random(2, [1, s, 1, d]), random(3, [1, s, 1, d]));
    let a = to_vec(k::attention_with_bias(q.clone(), kk.clone(), v.clone(), &mask, 0.25, F32));
    for row in [0, 1, 20, 36] {
        let upto = |t: &Tensor<4>| t.clone().narrow(1, 0, row + 1);
        let expected = k::attention(q.clone().narrow(1, row, 1), upto(&kk), upto(&v), 0.25, F32).0;
        assert!(largest(&a[row * d..][..d], &to_vec(expected)) < 1e-5);
    }
}

#[test]
fn activations_equal_their_twins() {
    type Op = fn(Tensor<3>, Precision) -> Tensor<3>;
    let pairs: [(&str, Op, Op); 5] = [
        ("round", k::round, r::round),
        ("silu", k::silu, r::silu),
        ("gelu_tanh", k::gelu_tanh, r::gelu_tanh),
        ("gelu_new", k::gelu_new, r::gelu_new),
        ("quick_gelu", k::quick_gelu, r::quick_gelu),
    ];
    for (what, a, b) in pairs {
        for p in BOTH {
            for x in [input(7, [3, 1001, 7], p) * 4.0, input(8, [1, 1, 1], p)] {
                check(a(x.clone(), p), b(x, p), 3e-6, p, what);
            }
        }
    }
    let edges = vec![0.0, -0.0, 200.0, -200.0, 3e38, -3e38, f32::NAN, 1e-30];
    let y = to_vec(k::silu(from_vec(edges, [8], &Device::flex()), F32));
    assert!(y[..2] == [0.0, 0.0] && y[2] == 200.0 && y[3].abs() < 1e-30 && y[4] == 3e38 && y[6].is_nan());
}

#[test]
fn rounding_is_to_nearest_even() {
    let edges = [
        0x3f80_8000u32,
        0x3f81_8000,
        0x3f80_8001,
        0x7f7f_ffff,
        0xff80_0000,
        0x7fff_ffff,
        0x7f80_0001,
        0x8000_8000,
        1,
    ];
    let x = from_vec(edges.map(f32::from_bits).to_vec(), [9], &Device::flex());
    let y = bits(k::round(x, Precision::Bf16));
    assert_eq!(y[..5], [0x3f80_0000, 0x3f82_0000, 0x3f81_0000, 0x7f80_0000, 0xff80_0000]);
    assert!(f32::from_bits(y[5]).is_nan() && f32::from_bits(y[6]).is_nan() && y[7..] == [0x8000_0000, 0]);
}

#[test]
fn arithmetic_equals_its_twin() {
    for p in BOTH {
        for n in [1, 8, 1003] {
            let (x, y) = (input(1, [2, 5, n], p), input(2, [2, 5, n], p));
            check(k::add(x.clone(), y.clone(), p), r::add(x.clone(), y.clone(), p), 0.0, p, "add");
            check(k::mul(x.clone(), y.clone(), p), r::mul(x.clone(), y.clone(), p), 0.0, p, "mul");
            let gate = input(3, [2, n], p);
            let a = k::gated_residual(x.clone(), gate.clone(), y.clone(), p);
            check(a, r::gated_residual(x, gate, y, p), 0.0, p, "gated residual");
        }
        let (x, row) = (input(1, [2, 5, 3], p), input(2, [1, 1, 3], p));
        check(k::add(x.clone(), row.clone(), p), r::add(x, row, p), 0.0, p, "broadcast");
    }
}

#[test]
fn norms_equal_their_twins() {
    for (p, c) in BOTH.into_iter().flat_map(|p| [1, 6, 8, 48, 99].map(|c| (p, c))) {
        let x = input(8, [2, 37, c], p) + if p == F32 { 3.0 } else { 0.0 };
        let (w, b) = (random(9, [c]).cast(DType::BF16), random(10, [c]).cast(DType::F16));
        let (shift, scale) = (input(11, [2, c], p), input(12, [2, c], p));
        let a = k::layer_norm(x.clone(), &w, &b, 1e-5, p);
        check(a, r::layer_norm(x.clone(), &w, &b, 1e-5, p), 1e-5, p, "layer norm");
        let a = k::layer_norm_modulate(x.clone(), shift.clone(), scale.clone(), 1e-6, p);
        // a value rounded the other way before a sum that cancels
        let steps = if p == F32 { 1e-5 } else { 3e-2 };
        check(a, r::layer_norm_modulate(x.clone(), shift, scale, 1e-6, p), steps, p, "modulate");
        check(k::rms_norm(x.clone(), &w, 1e-6, p), r::rms_norm(x.clone(), &w, 1e-6, p), 1e-5, p, "rms");
        check(k::t5_norm(x.clone(), &w, 1e-6, p), r::t5_norm(x, &w, 1e-6, p), 1e-5, p, "t5");
    }
}

#[test]
fn eps_is_passed_through() {
    let (x, one) = (random(1, [1, 3, 64]) * 1e-3, from_vec(vec![1.0; 64], [64], &Device::flex()));
    for eps in [1e-5, 1e-6] {
        check(
            k::rms_norm(x.clone(), &one, eps, F32),
            r::rms_norm(x.clone(), &one, eps, F32),
            1e-6,
            F32,
            "eps",
        );
    }
    let [a, b] = [1e-5, 1e-6].map(|eps| to_vec(k::rms_norm(x.clone(), &one, eps, F32)));
    assert!(largest(&a, &b) > 1e-2);
}

#[test]
fn norm_and_rotation_equal_their_twin() {
    for (p, (h, d)) in BOTH.into_iter().flat_map(|p| [(1, 2), (3, 16), (2, 12), (4, 128)].map(|s| (p, s))) {
        let qkv = input(13, [2, 5, 3, h, d], p);
        let x: Tensor<4> = qkv.narrow(2, 1, 1).squeeze_dim::<4>(2);
        let (w, angle) = (random(14, [d]).cast(DType::BF16), random(15, [5, d / 2]));
        let (cos, sin) = (angle.clone().cos(), angle.sin());
        let a = k::rms_norm_rope(x.clone(), &w, &cos, &sin, 1e-6, p);
        let steps = if p == F32 { 1e-5 } else { 3e-2 };
        check(a.clone(), r::rms_norm_rope(x.clone(), &w, &cos, &sin, 1e-6, p), steps, p, "rope");
        if p == F32 {
            let n = to_vec(k::rms_norm(x, &w, 1e-6, p));
            let (a, c, s) = (to_vec(a), to_vec(cos), to_vec(sin));
            for (i, y) in a.chunks(2).enumerate() {
                let at = i / (d / 2 * h) % 5 * (d / 2) + i % (d / 2);
                let (re, im) =
                    (n[2 * i] * c[at] - n[2 * i + 1] * s[at], n[2 * i + 1] * c[at] + n[2 * i] * s[at]);
                assert!((y[0] - re).abs() < 1e-5 && (y[1] - im).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn group_norm_equals_its_twin() {
    for (p, silu) in BOTH.into_iter().flat_map(|p| [(p, true), (p, false)]) {
        for (c, groups, h, w) in [(12, 4, 33, 31), (8, 8, 1, 1), (32, 2, 40, 41)] {
            let x = input(16, [2, c, h, w], p);
            let (weight, bias) = (random(17, [c]).cast(DType::F16), random(18, [c]));
            let a = k::group_norm(x.clone(), &weight, &bias, groups, 1e-6, silu, p);
            check(a, r::group_norm(x, &weight, &bias, groups, 1e-6, silu, p), 2e-5, p, "group norm");
        }
    }
}

/// On a device the moments of bands are joined in burn's operations.
#[test]
fn twins_join_the_moments_of_bands() {
    // far from zero, so that what is between the bands counts
    let slope = from_vec((0..19).map(|y| y as f32 * 5.0).collect(), [1, 1, 19, 1], &Device::flex());
    let x: Tensor<4> = random::<4>(1, [2, 12, 19, 7]) + slope;
    let (weight, bias) = (random(3, [12]), random(4, [12]));
    let parts = [(0, 1), (1, 11), (12, 7)].map(|(first, rows)| {
        let band = x.clone().narrow(2, first, rows);
        (r::group_moments(band, 4), 3 * rows * 7)
    });
    let moments = r::join_moments(parts.into());
    let by = r::group_norm_by(x.clone(), &moments, &weight, &bias, 1e-6, true, F32);
    check(by, r::group_norm(x, &weight, &bias, 4, 1e-6, true, F32), 2e-5, F32, "joined moments");
}

#[test]
fn convolutions_equal_their_twins() {
    let row = |h, w| (random(1, [2, 3, h, w]), random(2, [4, 3, 3, 3]), random(3, [4]));
    for (h, w) in [(1, 1), (1, 32), (5, 1), (3, 300)] {
        let (x, k3, bias) = row(h, w);
        let twin = r::conv3x3_upsampled(x.clone(), &k3, &bias, F32);
        check(k::conv3x3_upsampled(x, &k3, &bias, F32), twin, 2e-4, F32, &format!("{h} x {w}"));
    }
    let shapes = [
        (1, 3, 5, 2, 2),
        (2, 16, 8, 7, 9),
        (1, 8, 16, 3, 700),
        (1, 4, 4, 65, 33),
        (1, 1, 1, 2, 513),
        // rows of whole panels, more than one block of inner steps, more than one of channels
        (1, 130, 5, 6, 32),
        (2, 3, 100, 5, 48),
        (1, 60, 4, 20, 64),
        (1, 4, 3, 3, 272),
    ];
    for (i, (b, c, o, h, w)) in shapes.into_iter().enumerate() {
        for p in BOTH {
            let kind = [DType::F32, DType::BF16, DType::F16][i % 3];
            let x = input(19, [b, c, h, w], p);
            let (k3, bias) = (random(20, [o, c, 3, 3]).cast(kind), random(21, [o]).cast(kind));
            let k1: Tensor<4> = k3.clone().narrow(2, 1, 1).narrow(3, 1, 1);
            check(k::conv3x3(x.clone(), &k3, &bias, p), r::conv3x3(x.clone(), &k3, &bias, p), 2e-4, p, "3x3");
            let a = k::conv3x3_upsampled(x.clone(), &k3, &bias, p);
            check(a, r::conv3x3_upsampled(x.clone(), &k3, &bias, p), 2e-4, p, "upsampled");
            let residual = input(22, [b, o, h, w], p);
            let a = k::conv3x3_add(x.clone(), &k3, &bias, residual.clone(), p);
            assert!(bits(a) == bits(k::add(k::conv3x3(x.clone(), &k3, &bias, p), residual, p)), "{p:?}");
            let a = k::conv3x3_stride2(x.clone(), &k3, &bias, p);
            check(a, r::conv3x3_stride2(x.clone(), &k3, &bias, p), 2e-4, p, "stride 2");
            check(k::conv1x1(x.clone(), &k1, &bias, p), r::conv1x1(x, &k1, &bias, p), 2e-4, p, "1x1");
        }
    }
}

#[test]
fn rows_move() {
    for kind in [DType::F32, DType::BF16, DType::F16] {
        let table = random(15, [70, 33]).cast(kind);
        let (a, b) = (k::embedding(&table, &[3, 69, 0, 3]), r::embedding(&table, &[3, 69, 0, 3]));
        assert!(a.dims() == [4, 33] && bits(a) == bits(b));
        let part: Tensor<2> = table.clone().narrow(0, 20, 30);
        assert!(bits(k::embedding(&part, &[1])) == bits(k::embedding(&table, &[21])));
    }
    let (a, b) = (random(1, [2, 301, 48]), random(2, [2, 70, 48]));
    assert!(bits(k::cat_tokens(a.clone(), b.clone())) == bits(r::cat_tokens(a, b)));
    let (a, b) = (random(1, [2, 301, 48]), random(2, [2, 301, 7]));
    assert!(bits(k::cat_channels(a.clone(), b.clone())) == bits(r::cat_channels(a, b)));
}

#[test]
#[should_panic(expected = "id 70 is outside of a table of 70 rows")]
fn an_id_outside_of_the_table_panics() {
    k::embedding(&random(1, [70, 4]), &[0, 70]);
}

/// The identity as x gives back the weights.
#[test]
fn widening_is_exact() {
    let identity = |n: usize| (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
    for kind in [DType::BF16, DType::F16] {
        let w = random(15, [1001, 37]).cast(kind);
        let y = k::linear(from_vec(identity(37), [37, 37], &Device::flex()), &w, None, F32);
        assert_eq!(to_vec(y.transpose()), to_vec(w));
    }
}

/// Outputs alone have the bits of outputs with logarithms; burn's fused attention computes the same thing in bfloat16.
#[test]
fn outputs_alone_are_those_of_attention() {
    for (queries, keys) in [(vec![5, 0, 33], vec![7, 40]), (vec![1], vec![300]), (vec![0], vec![3])] {
        let of = |seed: u64, lens: &[usize]| -> Vec<Tensor<4>> {
            let one = |(i, len): (usize, &usize)| input(seed + i as u64, [2, *len, 3, 64], Precision::Bf16);
            lens.iter().enumerate().map(one).collect()
        };
        let (q, keys_of, v) = (of(1, &queries), of(10, &keys), of(20, &keys));
        let p = Precision::Bf16;
        let expected = k::attention_segments(q.clone(), keys_of.clone(), v.clone(), 0.125, p);
        let outputs = k::attention_outputs(q.clone(), keys_of.clone(), v.clone(), 0.125, p);
        let fused = r::fused_attention(q, keys_of, v);
        assert_eq!((outputs.len(), fused.len()), (expected.len(), expected.len()));
        for (((out, fused), (expected, _)), len) in outputs.into_iter().zip(fused).zip(expected).zip(&queries)
        {
            assert_eq!(out.dims(), [2, *len, 3, 64]);
            assert_eq!(bits(out), bits(expected.clone()));
            let worst = largest(&to_vec(fused), &to_vec(expected));
            assert!(worst <= 2e-2, "{queries:?} {keys:?}: {worst}");
        }
    }
}
