//! Attention from matrix products, a block of queries at a time so that memory stays bounded.

use super::{cast, matmul, round};
use crate::{Precision, device};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Tensor, activation, module};

/// See [`crate::attention()`].
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    scale: f32,
    p: Precision,
) -> (Tensor<4>, Tensor<3>) {
    let ([b, sq, h, d], kind, device) = (q.dims(), q.dtype(), q.device());
    if k.dims()[1] == 0 || sq == 0 {
        let lse = Tensor::full([b, h, sq], f32::NEG_INFINITY, (&device, DType::F32));
        return (Tensor::zeros([b, sq, h, d], (&device, kind)), lse);
    }
    if let Some(result) = device::attention(&q, &k, &v, scale, p, true) {
        return result;
    }
    let k = cast(&k, DType::F32).swap_dims(1, 2).transpose();
    let v = cast(&v, DType::F32).swap_dims(1, 2);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for start in (0..sq).step_by(QUERIES) {
        let n = QUERIES.min(sq - start);
        let part = cast(&q.clone().narrow(1, start, n), DType::F32);
        // always the same number of rows: the matrix product sums few rows differently
        let padding = Tensor::zeros([b, QUERIES - n, h, d], (&device, DType::F32));
        let part = if n < QUERIES { Tensor::cat(vec![part, padding], 1) } else { part };
        let s = matmul(part.swap_dims(1, 2), k.clone()) * scale;
        let top = s.clone().max_dim(3);
        let sum = (s.clone() - top.clone()).exp().sum_dim(3);
        lse.push((sum.log() + top).squeeze_dim::<3>(3).narrow(2, 0, n));
        let o = matmul(activation::softmax(s, 3), v.clone()).swap_dims(1, 2).narrow(1, 0, n);
        out.push(cast(&round(o, p), kind));
    }
    (Tensor::cat(out, 1), Tensor::cat(lse, 2))
}

/// See [`crate::attention_segments`].
pub fn attention_segments(
    q: Vec<Tensor<4>>,
    k: Vec<Tensor<4>>,
    v: Vec<Tensor<4>>,
    scale: f32,
    p: Precision,
) -> Vec<(Tensor<4>, Tensor<3>)> {
    let (k, v) = (Tensor::cat(k, 1), Tensor::cat(v, 1));
    q.into_iter().map(|q| attention(q, k.clone(), v.clone(), scale, p)).collect()
}

/// See [`crate::attention_outputs`]: by the attention of burn, whose scale is 1/√d. Everything is bfloat16; what burn's
/// kernels do in between, f16 fragments of bfloat16 values for one, is theirs.
pub fn fused_attention(q: Vec<Tensor<4>>, k: Vec<Tensor<4>>, v: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
    let lens: Vec<usize> = q.iter().map(|q| q.dims()[1]).collect();
    let kind = q.first().map_or(DType::F32, Tensor::dtype);
    let joined = |parts: Vec<Tensor<4>>| Tensor::cat(parts, 1).cast(DType::BF16).swap_dims(1, 2);
    let (q, k, v) = (joined(q), joined(k), joined(v));
    if q.dims()[2] == 0 || k.dims()[2] == 0 {
        let out = Tensor::zeros(q.swap_dims(1, 2).dims(), (&v.device(), kind));
        return split(&out, &lens);
    }
    let out = module::attention(q, k, v, None, None, AttentionModuleOptions::default());
    split(&out.swap_dims(1, 2).cast(kind), &lens)
}

/// `x` `[b, Σ lens, h, d]` in runs of tokens.
fn split(x: &Tensor<4>, lens: &[usize]) -> Vec<Tensor<4>> {
    let mut start = 0;
    let [b, _, h, d] = x.dims();
    let run = |len: &usize| {
        start += len;
        match *len {
            // burn cuts no empty runs
            0 => Tensor::zeros([b, 0, h, d], (&x.device(), x.dtype())),
            len => x.clone().narrow(1, start - len, len),
        }
    };
    lens.iter().map(run).collect()
}

/// See [`crate::merge_partials`].
pub fn merge_partials(a: (Tensor<4>, Tensor<3>), b: (Tensor<4>, Tensor<3>)) -> (Tensor<4>, Tensor<3>) {
    let top = a.1.clone().max_pair(b.1.clone());
    // where both sides saw no key, -inf - -inf must not become NaN
    let base = top.clone().clamp_min(f32::MIN);
    let (wa, wb) = ((a.1 - base.clone()).exp(), (b.1 - base).exp());
    let sum = wa.clone() + wb.clone();
    let lse = top + sum.clone().log().clamp_min(0.0);
    let divisor = sum.clamp_min(1.0);
    let weight = |w: Tensor<3>| (w / divisor.clone()).swap_dims(1, 2).unsqueeze_dim::<4>(3);
    (a.0 * weight(wa) + b.0 * weight(wb), lse)
}

/// See [`crate::attention_with_bias`].
pub fn attention_with_bias(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: &Tensor<3>,
    scale: f32,
    p: Precision,
) -> Tensor<4> {
    let ([_, _, h, _], kind) = (q.dims(), q.dtype());
    let one = |t: &Tensor<4>, i| cast(&t.clone().narrow(2, i, 1), DType::F32).swap_dims(1, 2);
    let heads = (0..h).map(|i| {
        let of_head = bias.clone().narrow(0, if bias.dims()[0] == 1 { 0 } else { i }, 1);
        let s = round(matmul(one(&q, i), one(&k, i).transpose()), p);
        let s = round(round(s * scale, p) + cast(&of_head, DType::F32).unsqueeze::<4>(), p);
        let o = matmul(round(activation::softmax(s, 3), p), one(&v, i));
        cast(&round(o, p), kind).swap_dims(1, 2)
    });
    Tensor::cat(heads.collect(), 2)
}

/// Queries per block: 256 × 4608 scores of 24 heads are 113 MB.
const QUERIES: usize = 256;
