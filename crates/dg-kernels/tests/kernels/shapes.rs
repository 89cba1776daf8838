//! Kernels against their twins, shapes drawn at random.

use crate::support::{BOTH, check, input, random};
use burn::tensor::{DType, Tensor};
use dg_kernels::{self as k, Activation, Precision, reference as r};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn layers(b in 1..3usize, s in 1..70usize, n in 1..90usize, first in 1..600usize, second in 1..90usize, i in 0..6usize) {
        let (p, kind) = (BOTH[i % 2], [DType::F32, DType::BF16, DType::F16][i % 3]);
        let parts = || vec![input(1, [b, s, first], p), input(2, [b, s, second], p)];
        let x: Tensor<3> = Tensor::cat(parts(), 2);
        let (w, bias) = (random(3, [n, first + second]).cast(kind), random(4, [n]));
        let what = format!("[{b}, {s}, {first} + {second}] -> {n}, {kind:?}");
        // a sum of up to 690 products of values up to 4
        let close = 2e-3;
        check(k::linear(x.clone(), &w, Some(&bias), p), r::linear(x.clone(), &w, Some(&bias), p), close, p, &what);
        let then = Activation::GeluTanh;
        let twin = r::linear_then(x.clone(), &w, None, then, p);
        // in bf16 GELU makes up to three steps of one where its result is just below a power of two and its input above
        let allowed = if p == Precision::Bf16 { 0.025 } else { close };
        check(k::linear_then(x, &w, None, then, p), twin, allowed, p, &what);
        let (residual, gate) = (input(5, [b, s, n], p), input(6, [b, n], p));
        // in bf16 the layer is rounded before the gate (up to 2) and the residual, which may leave little of it
        let top = k::to_vec(r::linear(Tensor::cat(parts(), 2), &w, Some(&bias), p)).into_iter().fold(0f32, |top, y| top.max(y.abs()));
        let allowed = if p == Precision::Bf16 { 2.0 * top / 128.0 } else { 2.0 * close };
        let twin = r::linear_gated(residual.clone(), Some(gate.clone()), parts(), &w, Some(&bias), p);
        check(k::linear_gated(residual, gate, parts(), &w, Some(&bias), p), twin, allowed, p, &what);
    }

    #[test]
    fn attentions(b in 1..3usize, h in 1..4usize, d in 1..70usize, sq in 1..130usize, sk in 1..300usize, more in 0..40usize) {
        let part = |seed, n| input(seed, [b, n, h, d], Precision::F32);
        let (q, keys, values) = (vec![part(1, sq)], vec![part(2, sk), part(3, more)], vec![part(4, sk), part(5, more)]);
        let scale = (d as f32).powf(-0.5);
        let a = k::attention_segments(q.clone(), keys.clone(), values.clone(), scale, Precision::F32).remove(0);
        let twin = r::attention_segments(q, keys, values, scale, Precision::F32).remove(0);
        check(a.0, twin.0, 2e-5, Precision::F32, "output");
        check(a.1, twin.1, 2e-5, Precision::F32, "logarithms");
    }

    #[test]
    fn convolutions(b in 1..3usize, c in 1..70usize, o in 1..20usize, h in 2..20usize, w in 2..70usize, i in 0..6usize) {
        let (p, kind) = (BOTH[i % 2], [DType::F32, DType::BF16, DType::F16][i % 3]);
        let (x, k3, bias) = (input(1, [b, c, h, w], p), random(2, [o, c, 3, 3]).cast(kind), random(3, [o]));
        let what = format!("[{b}, {c}, {h}, {w}] -> {o}, {kind:?}");
        check(k::conv3x3(x.clone(), &k3, &bias, p), r::conv3x3(x.clone(), &k3, &bias, p), 1e-3, p, &what);
        let twin = r::conv3x3_upsampled(x.clone(), &k3, &bias, p);
        check(k::conv3x3_upsampled(x.clone(), &k3, &bias, p), twin, 1e-3, p, &what);
        check(k::conv3x3_stride2(x.clone(), &k3, &bias, p), r::conv3x3_stride2(x, &k3, &bias, p), 1e-3, p, &what);
    }
}
