//! Every operation against its twin: the kernels of the CPU. On a CPU itself, those against burn's plain operations.

use super::Kind;
use super::part::{Part, Row};
use crate::Failure;
use burn::tensor::{DType, Device, Tensor};
use dg_flux::rng::Generator;
use dg_kernels::{Activation, Precision, SharedLayer, from_vec, reference, to_vec};
use serde_json::json;

/// Where an operation runs.
struct On<'a> {
    device: &'a Device,
    /// By burn's own operations rather than kernels.
    is_plain: bool,
    precision: Precision,
}

impl On<'_> {
    /// Standard normal values in the format of the run, the same for a seed on every device.
    fn values<const N: usize>(&self, seed: u64, shape: [usize; N]) -> Tensor<N> {
        let values = Generator::new(seed).randn(shape.iter().product());
        let values = to_vec(dg_kernels::round(from_vec(values, shape, &dg_flux::cpu()), self.precision));
        from_vec(values, shape, self.device)
    }

    /// A weight of `[out, in]` whose products are of the size of its inputs.
    fn weight(&self, seed: u64, [out, inp]: [usize; 2]) -> Tensor<2> {
        let weight = self.values(seed, [out, inp]) * (1.0 / (inp as f64).sqrt());
        match self.precision {
            Precision::Bf16 => weight.cast(DType::BF16),
            Precision::F32 => weight,
        }
    }
}

/// An operation, by the kernels that the device has or by plain burn.
macro_rules! op {
    ($on:ident, $name:ident($($argument:expr),* $(,)?)) => {
        if $on.is_plain { reference::$name($($argument),*) } else { dg_kernels::$name($($argument),*) }
    };
}

type Case = (&'static str, fn(&On<'_>) -> Vec<f32>);

/// At widths of FLUX.1, with few tokens.
const CASES: [Case; 16] = [
    ("linear 3072 to 3072", |on| linear(on, 77, 3072, 3072)),
    ("linear of one row", |on| linear(on, 1, 3072, 1536)),
    ("linear and GELU", |on| {
        let (x, w, b) = (on.values(1, [1, 64, 768]), on.weight(2, [3072, 768]), on.values(3, [3072]));
        to_vec(op!(on, linear_then(x, &w, Some(&b), Activation::GeluTanh, on.precision)))
    }),
    ("layers that share their input", |on| {
        let (x, w) = (on.values(1, [1, 65, 768]), on.weight(2, [768, 768]));
        let layer = SharedLayer { weight: &w, bias: None, then: Some(Activation::Silu) };
        if on.is_plain {
            return to_vec(reference::linear_shared(x, &layer, on.precision));
        }
        dg_kernels::linear_shared(x, &[layer, layer], on.precision)
            .into_iter()
            .flat_map(to_vec)
            .take(65 * 768)
            .collect()
    }),
    ("gated linear of two parts", |on| {
        let parts = vec![on.values(1, [1, 65, 768]), on.values(2, [1, 65, 3072])];
        let (residual, gate) = (on.values(3, [1, 65, 768]), on.values(4, [1, 768]));
        let (w, b) = (on.weight(5, [768, 3840]), on.values(6, [768]));
        if on.is_plain {
            return to_vec(reference::linear_gated(residual, Some(gate), parts, &w, Some(&b), on.precision));
        }
        to_vec(dg_kernels::linear_gated(residual, gate, parts, &w, Some(&b), on.precision))
    }),
    ("modulated layer norm", |on| {
        let x = on.values(1, [2, 65, 3072]);
        let (shift, scale) = (on.values(2, [2, 3072]), on.values(3, [2, 3072]));
        to_vec(op!(on, layer_norm_modulate(x, shift, scale, 1e-6, on.precision)))
    }),
    ("T5 norm", |on| {
        let (x, w) = (on.values(1, [1, 65, 4096]), on.values(2, [4096]));
        to_vec(op!(on, t5_norm(x, &w, 1e-6, on.precision)))
    }),
    ("RMS norm and rotation", |on| {
        let (x, w) = (on.values(1, [1, 65, 24, 128]), on.values(2, [128]));
        let angle = on.values(3, [65, 64]);
        let (cos, sin) = (angle.clone().cos(), angle.sin());
        to_vec(op!(on, rms_norm_rope(x, &w, &cos, &sin, 1e-6, on.precision)))
    }),
    ("attention", |on| to_vec(attention(on, 300, 520).0)),
    ("attention's logarithms", |on| to_vec(attention(on, 300, 520).1)),
    ("attention's outputs alone", |on| {
        let of = |seed, tokens| on.values(seed, [1, tokens, 4, 128]);
        let (q, k, v) =
            (vec![of(1, 70), of(2, 300)], vec![of(3, 70), of(4, 450)], vec![of(5, 70), of(6, 450)]);
        let out = match (on.is_plain, on.precision) {
            (true, Precision::Bf16) => reference::fused_attention(q, k, v),
            _ => dg_kernels::attention_outputs(q, k, v, 128f32.powf(-0.5), on.precision),
        };
        out.into_iter().flat_map(to_vec).collect()
    }),
    ("merged halves of attention", |on| {
        let of = |seed, tokens| on.values(seed, [1, tokens, 4, 128]);
        let q = of(1, 130);
        let half = |seed| {
            let (k, v) = (of(seed, 70), of(seed + 1, 70));
            op!(on, attention(q.clone(), k, v, 0.088, on.precision))
        };
        let (first, second) = (half(2), half(4));
        to_vec(op!(on, merge_partials(first, second)).0)
    }),
    ("gated residual", |on| {
        let (x, gate, y) =
            (on.values(1, [2, 65, 3072]), on.values(2, [2, 3072]), on.values(3, [2, 65, 3072]));
        to_vec(op!(on, gated_residual(x, gate, y, on.precision)))
    }),
    ("group norm and SiLU", |on| {
        let (x, w, b) = (on.values(1, [1, 128, 24, 24]), on.values(2, [128]), on.values(3, [128]));
        to_vec(op!(on, group_norm(x, &w, &b, 32, 1e-6, true, on.precision)))
    }),
    ("convolution 3×3", |on| {
        let (x, b) = (on.values(1, [1, 128, 20, 20]), on.values(2, [64]));
        let w = on.weight(3, [64, 128 * 9]).reshape([64, 128, 3, 3]);
        to_vec(op!(on, conv3x3(x, &w, &b, on.precision)))
    }),
    ("embedding", |on| {
        let table = on.weight(1, [1000, 768]);
        to_vec(op!(on, embedding(&table, &[0, 999, 7, 7])))
    }),
];

fn linear(on: &On<'_>, rows: usize, inp: usize, out: usize) -> Vec<f32> {
    let (x, w, b) = (on.values(1, [1, rows, inp]), on.weight(2, [out, inp]), on.values(3, [out]));
    to_vec(op!(on, linear(x, &w, Some(&b), on.precision)))
}

fn attention(on: &On<'_>, queries: usize, keys: usize) -> (Tensor<4>, Tensor<3>) {
    let of = |seed, tokens| on.values(seed, [1, tokens, 4, 128]);
    op!(on, attention(of(1, queries), of(2, keys), of(3, keys), 0.088, on.precision))
}

/// Compares all of them in both formats.
pub(super) fn run(kind: Kind, part: &mut Part) -> Result<(), Failure> {
    let (cpu, device) = (dg_flux::cpu(), kind.open()?);
    for (precision, name, bound) in
        [(Precision::F32, "f32", F32_BOUND), (Precision::Bf16, "bf16", BF16_BOUND)]
    {
        for (case, work) in CASES {
            let twin = work(&On { device: &cpu, is_plain: false, precision });
            let here = work(&On { device: &device, is_plain: kind == Kind::Cpu, precision });
            let error = error(&twin, &here);
            let detail = format!("largest error {error:.1e} of the largest value, bound {bound:.0e}");
            let numbers = json!({ "error": error, "bound": bound });
            part.put(Row::new(format!("{case}, {name}"), error <= bound, detail, numbers));
        }
    }
    Ok(())
}

/// The largest difference as a part of the largest value; infinite if lengths differ or a value is not a number.
pub(super) fn error(expected: &[f32], found: &[f32]) -> f64 {
    if expected.len() != found.len() || found.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |top, x| top.max(x.abs()));
    let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
    f64::from(differences.fold(0.0, f32::max) / largest)
}

/// Sums of some thousand products in another order. TF32 would be at 1e-3.
const F32_BOUND: f64 = 5e-5;
/// Two roundings to bfloat16 of the largest value, and those of the values that led to it.
const BF16_BOUND: f64 = 1.6e-2;
