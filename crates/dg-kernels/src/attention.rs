//! Attention: fused, with a bias, and the merge of partial results.

use crate::plug;
use crate::simd::gemm::{Matrix, Shape, product};
use crate::simd::{Cpu, Unary, View};
use crate::{Precision, reference, scratch};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// `softmax(q·kᵀ·scale)·v` in one pass, without a mask.
///
/// `q` `[b, sq, h, d]`, `k` and `v` `[b, sk, h, d]` (views are read where they are if their last
/// dimension is dense) -> the output `[b, sq, h, d]`, rounded once, and the natural logarithm of every
/// row's sum of exponentials, `[b, h, sq]`, never rounded. Without keys: zeros and -inf. A row's bits
/// do not depend on which other queries, heads and images are computed with it.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    scale: f32,
    p: Precision,
) -> (Tensor<4>, Tensor<3>) {
    let [b, sq, h, d] = q.dims();
    let cpu = plug::native(&q).filter(|_| plug::native(&k).is_some() && plug::native(&v).is_some());
    let Some(cpu) = cpu else { return reference::attention(q, k, v, scale, p) };
    assert!(k.dims() == v.dims() && k.dims()[0] == b && k.dims()[2..] == [h, d], "q and k do not match");
    let (q, k, v) = (plug::rows(q), plug::rows(k), plug::rows(v));
    let (mut out, mut lse) = (vec![0f32; b * sq * h * d], vec![0f32; b * h * sq]);
    let views = [plug::view(&q), plug::view(&k), plug::view(&v)];
    cpu.attention(views, scale, p, &mut out, &mut lse);
    (plug::tensor(out, [b, sq, h, d]), plug::tensor(lse, [b, h, sq]))
}

/// Merges two results of [`attention()`] over disjoint keys, in f32 (round the last one with
/// [`crate::round`]). Works in the memory of `a` if nobody else holds it.
pub fn merge_partials(a: (Tensor<4>, Tensor<3>), b: (Tensor<4>, Tensor<3>)) -> (Tensor<4>, Tensor<3>) {
    let tensors = [plug::native(&a.0), plug::native(&b.0), plug::native(&a.1), plug::native(&b.1)];
    let [Some(cpu), Some(_), Some(_), Some(_)] = tensors else { return reference::merge_partials(a, b) };
    let [_, s, h, d] = a.0.dims();
    assert!(a.0.dims() == b.0.dims() && a.1.dims() == b.1.dims(), "partial results of other shapes");
    let (mut out, other) = (plug::dense(a.0), plug::contiguous(b.0));
    let (mut lse, other_lse) = (plug::dense(a.1), plug::contiguous(b.1));
    let (mine, theirs) = (plug::slice(&lse), plug::slice(&other_lse));
    let other = plug::slice(&other);
    out.storage_mut::<f32>().par_chunks_mut(d).with_min_len(64).enumerate().for_each(|(i, row)| {
        let (b, token, head) = (i / (s * h), i / h % s, i % h);
        let at = (b * h + head) * s + token;
        let [wa, wb, _] = weights(mine[at], theirs[at]);
        cpu.blend(row, wa, &other[i * d..][..d], wb);
    });
    let theirs = theirs.to_vec();
    for (mine, theirs) in lse.storage_mut::<f32>().iter_mut().zip(theirs) {
        *mine = weights(*mine, theirs)[2];
    }
    (plug::wrap(out), plug::wrap(lse))
}

/// The factors of two partial rows and the logarithm of their common sum.
fn weights(a: f32, b: f32) -> [f32; 3] {
    let top = a.max(b);
    if top == f32::NEG_INFINITY {
        return [0.0, 0.0, top];
    }
    let (ea, eb) = ((a - top).exp(), (b - top).exp());
    let sum = ea + eb;
    [ea / sum, eb / sum, top + sum.ln()]
}

/// `softmax(q·kᵀ·scale + bias)·v` with a bias for all images: the text encoders' attention.
///
/// `q` `[b, sq, h, d]`, `k` and `v` `[b, sk, h, d]`, `bias` `[h or 1, sq, sk]`, where -inf hides a key
/// (every query must keep one) -> `[b, sq, h, d]`. With [`Precision::Bf16`] scores, scaled scores,
/// scores with bias, probabilities and the result are each rounded, as transformers' eager attention
/// does. Memory: 128 rows of scores per thread.
pub fn attention_with_bias(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: &Tensor<3>,
    scale: f32,
    p: Precision,
) -> Tensor<4> {
    let cpu = plug::native(&q).filter(|_| plug::native(&k).is_some() && plug::native(&v).is_some());
    let Some(cpu) = cpu else { return reference::attention_with_bias(q, k, v, bias, scale, p) };
    let ([b, sq, h, d], sk) = (q.dims(), k.dims()[1]);
    let shared = bias.dims()[0] == 1;
    assert!(k.dims() == v.dims() && k.dims() == [b, sk, h, d], "q and k do not match");
    assert!(bias.dims() == [if shared { 1 } else { h }, sq, sk], "a bias of another shape");
    let (q, k, v, bias) = (plug::rows(q), plug::rows(k), plug::rows(v), plug::contiguous(bias.clone()));
    let views = [plug::view(&q), plug::view(&k), plug::view(&v)];
    let bias = plug::slice(&bias);
    let blocks = sq.div_ceil(QUERIES);
    // heads first, so that every task owns one stretch of memory; put in order below
    let mut heads = scratch::take(b * h * sq * d);
    let tasks: Vec<_> = heads
        .chunks_mut(sq * d)
        .enumerate()
        .flat_map(|(bh, head)| head.chunks_mut(QUERIES * d).enumerate().map(move |(i, to)| (bh, i, to)))
        .collect();
    debug_assert_eq!(tasks.len(), b * h * blocks);
    tasks.into_par_iter().for_each(|(bh, block, to)| {
        let at = ((if shared { 0 } else { bh % h }) * sq + block * QUERIES) * sk;
        let block = Block { cpu, at: (bh / h, bh % h), first: block * QUERIES, scale, p };
        block.run(views, &bias[at..], to);
    });
    let mut out = vec![0f32; b * sq * h * d];
    let heads: &[f32] = &heads;
    out.par_chunks_mut(h * d).with_min_len(16).enumerate().for_each(|(i, token)| {
        for (head, to) in token.chunks_mut(d).enumerate() {
            to.copy_from_slice(&heads[((i / sq * h + head) * sq + i % sq) * d..][..d]);
        }
    });
    plug::tensor(out, [b, sq, h, d])
}

/// Up to [`QUERIES`] queries of one image and head.
struct Block {
    cpu: Cpu,
    /// Image and head.
    at: (usize, usize),
    /// The first query.
    first: usize,
    scale: f32,
    p: Precision,
}

impl Block {
    fn run(&self, [q, k, v]: [View<'_>; 3], bias: &[f32], out: &mut [f32]) {
        let [_, sk, _, d] = k.dims;
        let m = out.len() / d;
        let mut scores = scratch::take(m * sk);
        let queries = self.matrix(q, self.first, [q.strides[1], 1]);
        let keys = self.matrix(k, 0, [1, k.strides[1]]);
        product(Shape { m, k: d, n: sk }, (&mut scores, sk), false, queries, keys, false);
        for (row, bias) in scores.chunks_mut(sk).zip(bias.chunks(sk)) {
            self.cpu.biased_softmax(self.p, row, self.scale, bias);
        }
        let weights = Matrix { data: &scores, strides: [sk, 1] };
        let values = self.matrix(v, 0, [v.strides[1], 1]);
        product(Shape { m, k: sk, n: d }, (&mut *out, d), false, weights, values, false);
        self.cpu.unary(Unary::Round, self.p, out);
    }

    /// The tokens from `first` on of this block's image and head.
    fn matrix<'a>(&self, view: View<'a>, first: usize, strides: [usize; 2]) -> Matrix<'a> {
        let ((b, h), [sb, ss, sh]) = (self.at, view.strides);
        Matrix { data: &view.data[b * sb + first * ss + h * sh..], strides }
    }
}

/// Queries per task of the attention with a bias.
const QUERIES: usize = 128;
