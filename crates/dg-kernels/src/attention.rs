//! Attention: fused, with a bias, and the merge of partial results.

use crate::plug;
use crate::simd::{Attention, Cpu, Finish, Product, Right, Rows, Unary, Values, View};
use crate::{Precision, device, reference, scratch};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// `softmax(q·kᵀ·scale)·v` in one pass, without a mask.
///
/// `q` `[b, sq, h, d]`, `k` and `v` `[b, sk, h, d]` (views are read where they are if their last
/// dimension is dense) -> the output `[b, sq, h, d]`, rounded once, and the natural logarithm of every
/// row's sum of exponentials, `[b, h, sq]`, never rounded. Without keys: zeros and -inf. With [`Precision::Bf16`]
/// the exponentials, relative to the greatest score met so far, are rounded to bf16 before they meet `v`. A row's bits
/// do not depend on which other queries, heads and images are computed with it. A row whose scores are all
/// -inf is NaN.
///
/// # Panics
/// When shapes do not match.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    scale: f32,
    p: Precision,
) -> (Tensor<4>, Tensor<3>) {
    attention_segments(vec![q], vec![k], vec![v], scale, p)
        .pop()
        .expect("one result for one tensor of queries")
}

/// [`attention()`] with the tokens in several tensors, which are not concatenated: every query sees the
/// keys of all segments. Returns output and logarithms for each segment of queries; the bits are those of
/// one call on concatenated tensors.
///
/// # Panics
/// Without any segment of keys, and when shapes do not match.
pub fn attention_segments(
    q: Vec<Tensor<4>>,
    k: Vec<Tensor<4>>,
    v: Vec<Tensor<4>>,
    scale: f32,
    p: Precision,
) -> Vec<(Tensor<4>, Tensor<3>)> {
    segments(q, k, v, scale, [p, p])
}

/// [`attention_segments`] whose outputs are not rounded: to be merged by [`merge_partials`], and rounded then. `p` says
/// which values queries, keys and values have.
///
/// # Panics
/// As [`attention_segments`].
pub fn attention_partials(
    q: Vec<Tensor<4>>,
    k: Vec<Tensor<4>>,
    v: Vec<Tensor<4>>,
    scale: f32,
    p: Precision,
) -> Vec<(Tensor<4>, Tensor<3>)> {
    if q.first().is_some_and(|q| device::attends(q, p)) {
        let (k, v) = (Tensor::cat(k, 1), Tensor::cat(v, 1));
        let one = |q: Tensor<4>| match device::attention(&q, &k, &v, scale, p, false) {
            Some(result) => result,
            None => reference::attention(q, k.clone(), v.clone(), scale, Precision::F32),
        };
        return q.into_iter().map(one).collect();
    }
    segments(q, k, v, scale, [p, Precision::F32])
}

/// With the precision of the operands, and that of the output.
fn segments(
    q: Vec<Tensor<4>>,
    k: Vec<Tensor<4>>,
    v: Vec<Tensor<4>>,
    scale: f32,
    [p, end]: [Precision; 2],
) -> Vec<(Tensor<4>, Tensor<3>)> {
    assert!(!k.is_empty() && k.len() == v.len(), "{} segments of keys, {} of values", k.len(), v.len());
    assert!(k.iter().zip(&v).all(|(k, v)| k.dims() == v.dims()), "keys and values do not match");
    let filled = |all: &[Tensor<4>]| all.iter().filter(|t| t.dims()[1] > 0).cloned().collect::<Vec<_>>();
    let (some_q, some_k, some_v) = (filled(&q), filled(&k), filled(&v));
    let all = some_q.iter().chain(&some_k).chain(&some_v);
    let kernels =
        !some_q.is_empty() && !some_k.is_empty() && all.into_iter().all(|t| plug::native(t).is_some());
    let Some(cpu) = plug::cpu().filter(|_| kernels) else {
        return reference::attention_segments(q, k, v, scale, end);
    };
    let held = [some_q, some_k, some_v].map(|all| all.into_iter().map(plug::rows).collect::<Vec<_>>());
    let [queries, keys, values] = held.each_ref().map(|all| all.iter().map(plug::view).collect::<Vec<_>>());
    let [b, _, h, d] = queries[0].dims;
    let alike = |v: &View<'_>| v.dims[0] == b && v.dims[2..] == [h, d];
    assert!(queries.iter().chain(&keys).all(alike), "q and k do not match");
    let attention = Attention { queries: &queries, keys: &keys, values: &values };
    let results = cpu.attention(&attention, scale, [p, end]);
    let mut results = results.into_iter();
    let tensors = q.iter().map(|q| {
        let sq = q.dims()[1];
        let none = || (Vec::new(), Vec::new());
        let (out, lse) = if sq == 0 { none() } else { results.next().expect("a result for each segment") };
        (plug::tensor(out, [b, sq, h, d]), plug::tensor(lse, [b, h, sq]))
    });
    tensors.collect()
}

/// The outputs of [`attention_segments`] alone: the same bits on a CPU. On a device without a kernel of its own for
/// them, in a bfloat16 run with `scale` 1/√d, they come from burn's fused attention, which keeps no scores and tells no
/// logarithms.
///
/// # Panics
/// As [`attention_segments`].
pub fn attention_outputs(
    q: Vec<Tensor<4>>,
    k: Vec<Tensor<4>>,
    v: Vec<Tensor<4>>,
    scale: f32,
    p: Precision,
) -> Vec<Tensor<4>> {
    let first = k.first().map(Tensor::dims);
    let is_usual = |d: usize| (scale * (d as f32).sqrt() - 1.0).abs() < 1e-3;
    let own = q.first().is_some_and(|q| device::attends(q, p));
    let fits = !own && p == Precision::Bf16 && first.is_some_and(|[_, _, _, d]| is_usual(d));
    if fits && q.iter().chain(&k).all(|t| !reference::is_flex(t)) {
        return reference::fused_attention(q, k, v);
    }
    attention_segments(q, k, v, scale, p).into_iter().map(|(out, _)| out).collect()
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
        let (b, h) = self.at;
        let queries = [self.rows(q, self.first)];
        let keys = Product { m, n: sk, left: &queries, right: Right::Rows(self.rows(k, 0)) };
        let alone = |product: &Product<'_>, to: &mut [f32]| {
            self.cpu.product(product, Finish::Map { to, bias: None, then: None }, Precision::F32, false);
        };
        alone(&keys, &mut scores);
        for (row, bias) in scores.chunks_mut(sk).zip(bias.chunks(sk)) {
            self.cpu.biased_softmax(self.p, row, self.scale, bias);
        }
        let weights = [Rows { values: Values::F32(&scores), stride: sk, width: sk }];
        let right = Right::Columns(v.from(b, 0, h), v.strides[1]);
        alone(&Product { m, n: d, left: &weights, right }, out);
        self.cpu.unary(Unary::Round, self.p, out);
    }

    /// The tokens from `first` on of this block's image and head.
    fn rows<'a>(&self, view: View<'a>, first: usize) -> Rows<'a> {
        let values = Values::F32(view.from(self.at.0, first, self.at.1));
        Rows { values, stride: view.strides[1], width: view.dims[3] }
    }
}

/// Queries per task of the attention with a bias.
const QUERIES: usize = 128;
