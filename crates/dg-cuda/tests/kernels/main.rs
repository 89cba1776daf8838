//! Own kernels against plain sums in f64, on a GPU or on the emulated one (`tests/gpu/emulator/with.sh`).
#![cfg(feature = "cuda")]

use burn::tensor::{DType, Device, Tensor, TensorData, bf16};
use dg_cuda::kernels;

#[cfg(feature = "kernel-cache")]
mod kept;

/// The device, or a loud word that there is none.
fn device() -> Option<Device> {
    match dg_cuda::device::first() {
        Ok(device) => Some(device),
        Err(reason) => {
            eprintln!(
                "SKIPPED: {reason}; run tests/gpu/emulator/with.sh cargo test -p dg-cuda --features cuda"
            );
            None
        }
    }
}

/// Numbers of −2 … 2 that bfloat16 has.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32(((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 4.0).to_f32()
    };
    (0..n).map(|_| next()).collect()
}

fn put<const D: usize>(values: &[f32], shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32)).cast(dtype)
}

fn get<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.cast(DType::F32).into_data().try_to_vec().expect("f32")
}

/// The largest difference.
fn apart(values: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(values.len(), expected.len());
    values.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max)
}

struct Heads {
    b: usize,
    sq: usize,
    sk: usize,
    h: usize,
    d: usize,
}

impl Heads {
    /// Output `[b, sq, h, d]` and logarithms `[b, h, sq]` of queries and keys `from..to`.
    fn attend(&self, q: &[f32], k: &[f32], v: &[f32], scale: f64) -> (Vec<f64>, Vec<f64>) {
        let Self { b, sq, sk, h, d } = *self;
        let (mut out, mut lse) = (vec![0.0; b * sq * h * d], vec![0.0; b * h * sq]);
        for (image, head, i) in (0..b).flat_map(|b| (0..h).flat_map(move |h| (0..sq).map(move |i| (b, h, i))))
        {
            let q_at = ((image * sq + i) * h + head) * d;
            let k_at = |j: usize| ((image * sk + j) * h + head) * d;
            let dot =
                |j: usize| (0..d).map(|x| f64::from(q[q_at + x]) * f64::from(k[k_at(j) + x])).sum::<f64>();
            let scores: Vec<f64> = (0..sk).map(|j| dot(j) * scale).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            lse[(image * h + head) * sq + i] = top + sum.ln();
            for x in 0..d {
                let weighted = |(j, s): (usize, &f64)| (s - top).exp() / sum * f64::from(v[k_at(j) + x]);
                out[q_at + x] = scores.iter().enumerate().map(weighted).sum();
            }
        }
        (out, lse)
    }
}

#[test]
fn attention_and_its_logarithms_are_those_of_the_definition() {
    let Some(device) = device() else { return };
    // whole and torn blocks of queries (128) and keys (64), one key, several images
    for (b, sq, sk, h, d) in
        [(1, 128, 64, 1, 128), (2, 130, 200, 2, 64), (1, 5, 1, 3, 48), (1, 100, 70, 2, 128)]
    {
        let heads = Heads { b, sq, sk, h, d };
        let (q, k, v) = (numbers(b * sq * h * d, 1), numbers(b * sk * h * d, 2), numbers(b * sk * h * d, 3));
        let scale = 1.0 / (d as f32).sqrt();
        let on = |x: &[f32], s| put(x, [b, s, h, d], DType::BF16, &device);
        let (out, lse) = kernels::attention(on(&q, sq), on(&k, sk), on(&v, sk), scale, false);
        let (want, want_lse) = heads.attend(&q, &k, &v, f64::from(scale));
        assert_eq!(out.dtype(), DType::BF16);
        let (worst, worst_lse) = (apart(&get(out), &want), apart(&get(lse), &want_lse));
        assert!(worst < 1e-2 && worst_lse < 1e-5, "{b} × {sq} × {sk} × {h} × {d}: {worst}, {worst_lse}");
    }
}

#[test]
fn attention_over_large_values_of_v_overflows_nowhere() {
    let Some(device) = device() else { return };
    // above 65504, the largest of f16
    let v = vec![1.0e5; 64 * 64];
    let on = |x: &[f32]| put(x, [1, 64, 1, 64], DType::BF16, &device);
    let (q, k) = (numbers(64 * 64, 1), numbers(64 * 64, 2));
    let (out, _) = kernels::attention(on(&q), on(&k), on(&v), 0.125, false);
    let out = get(out);
    assert!(out.iter().all(|x| (x / 1.0e5 - 1.0).abs() < 1e-2), "{:?}", &out[..4]);
}

#[test]
fn a_query_has_the_same_bits_whatever_is_beside_it() {
    let Some(device) = device() else { return };
    let (s, h, d) = (150, 2, 64);
    let all = [1, 2, 3].map(|seed| put(&numbers(s * h * d, seed), [1, s, h, d], DType::BF16, &device));
    let [q, k, v] = all;
    let (whole, lse) = kernels::attention(q.clone(), k.clone(), v.clone(), 0.125, true);
    let (part, part_lse) = kernels::attention(q.narrow(1, 37, 90), k, v, 0.125, true);
    assert_eq!(get(whole.narrow(1, 37, 90)), get(part));
    assert_eq!(get(lse.narrow(2, 37, 90)), get(part_lse));
}

#[test]
fn layer_norm_with_modulation_is_that_of_the_definition() {
    let Some(device) = device() else { return };
    for (b, s, c, dtype) in [(2, 3, 48, DType::F32), (1, 2, 3072, DType::F32), (1, 3, 1028, DType::BF16)] {
        let (x, shift, scale) = (numbers(b * s * c, 1), numbers(b * c, 2), numbers(b * c, 3));
        let vectors = |x: &[f32]| put(x, [b, c], DType::F32, &device);
        let on = put(&x, [b, s, c], dtype, &device);
        let y = kernels::layer_norm_modulate(on, vectors(&shift), vectors(&scale), 1e-6, false);
        let y = y.expect("rows that the kernel takes");
        assert_eq!(y.dtype(), dtype);
        let mut want = Vec::new();
        for (row, values) in x.chunks(c).enumerate() {
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / c as f64;
            let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / c as f64;
            for (i, x) in values.iter().enumerate() {
                let at = row / s * c + i;
                let normal = (f64::from(*x) - mean) / (variance + 1e-6).sqrt();
                want.push(normal * (1.0 + f64::from(scale[at])) + f64::from(shift[at]));
            }
        }
        let bound = if dtype == DType::F32 { 5e-6 } else { 0.05 };
        let worst = apart(&get(y), &want);
        assert!(worst < bound, "{b} × {s} × {c}: {worst}");
    }
}

#[test]
fn rms_norm_with_rotation_is_that_of_the_definition() {
    let Some(device) = device() else { return };
    for (b, s, h, d, dtype) in
        [(2, 3, 3, 16, DType::F32), (1, 7, 2, 128, DType::BF16), (1, 2, 1, 130, DType::F32)]
    {
        let (x, weight, angles) = (numbers(b * s * h * d, 1), numbers(d, 2), numbers(s * d / 2, 3));
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|a| f(*a)).collect();
            put(&values, [s, d / 2], DType::F32, &device)
        };
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let on = put(&x, [b, s, h, d], dtype, &device);
        let y = kernels::rms_norm_rope(on, put(&weight, [d], DType::F32, &device), cos, sin, 1e-6, false);
        let mut want = Vec::new();
        for (row, values) in x.chunks(d).enumerate() {
            let mean = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / d as f64;
            let normal = |i: usize| f64::from(values[i]) / (mean + 1e-6).sqrt() * f64::from(weight[i]);
            for i in 0..d / 2 {
                let (sin, cos) = f64::from(angles[row / h % s * d / 2 + i]).sin_cos();
                let (a, b) = (normal(2 * i), normal(2 * i + 1));
                want.extend([a * cos - b * sin, a * sin + b * cos]);
            }
        }
        let bound = if dtype == DType::F32 { 5e-6 } else { 0.05 };
        let worst = apart(&get(y.expect("heads that the kernel takes")), &want);
        assert!(worst < bound, "{b} × {s} × {h} × {d}: {worst}");
    }
}

#[test]
fn products_of_f32_are_not_those_of_tf32() {
    let Some(device) = device() else { return };
    let (m, k, n) = (70, 96, 80);
    // eleven bits and more: TF32 would be off by 1e-3
    let fine = |n, seed| numbers(n, seed).iter().map(|x| x * 1.000_123).collect::<Vec<f32>>();
    let (left, right) = (fine(m * k, 1), fine(n * k, 2));
    let rows = put(&right, [n, k], DType::F32, &device);
    let product = kernels::matmul_f32(put(&left, [m, k], DType::F32, &device), rows.transpose());
    let dot = |i: usize, j: usize| {
        (0..k).map(|x| f64::from(left[i * k + x]) * f64::from(right[j * k + x])).sum::<f64>()
    };
    let want: Vec<f64> = (0..m * n).map(|at| dot(at / n, at % n)).collect();
    let worst = apart(&get(product), &want);
    assert!(worst < 5e-5, "{worst}");
}
