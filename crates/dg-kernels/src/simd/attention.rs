//! Attention with an online softmax (M. Milakov and N. Gimelshein, 2018; T. Dao et al.,
//! "FlashAttention", 2022).
//!
//! K and V are packed once into panels of columns; blocks of [`QB`] queries then walk over blocks of
//! [`KB`] keys. A row's result does not depend on which rows share its block, nor on where the segments
//! of keys begin.

use super::lanes::{LANES, exp2_below_zero, keep, load, max, round, store, sum};
use super::product::tile::{Target, Tile};
use super::product::transpose;
use super::shared::{Fresh, Shared};
use super::wide;
use super::{Attention, Cpu, Rows, Values, View};
use crate::Precision;
use crate::scratch::{self, Scratch};
use core::arch::x86_64::*;
use core::f32::consts::{LN_2, LOG2_E};
use rayon::prelude::*;

/// For each segment of queries its output `[b, s, h, d]` and logarithms of sums `[b, h, s]`.
pub(super) fn run(cpu: Cpu, a: &Attention<'_>, scale: f32, p: Precision) -> Vec<(Vec<f32>, Vec<f32>)> {
    // powers of two are cheaper than powers of e
    let scale = scale * LOG2_E;
    let [b, _, h, d] = a.queries[0].dims;
    let size = Size { tile: cpu.tile, sk: a.keys.iter().map(|k| k.dims[1]).sum(), d };
    let mut packed = scratch::take(b * h * size.head());
    let chunks = Shared::new(&mut packed);
    let blocks = size.sk.div_ceil(KB);
    (0..b * h * blocks).into_par_iter().for_each_init(
        || scratch::take(size.nr() * d),
        |lines, i| {
            // SAFETY: AVX2 is there; scratch memory is initialised, and every task packs its own block
            unsafe { size.pack(a, (i / blocks / h, i / blocks % h), i % blocks * KB, lines, &chunks) };
        },
    );
    let packed: &[f32] = &packed;
    a.queries.iter().map(|q| of_segment(q, packed, size, scale, p)).collect()
}

fn of_segment(q: &View<'_>, packed: &[f32], size: Size, scale: f32, p: Precision) -> (Vec<f32>, Vec<f32>) {
    let [b, sq, h, d] = q.dims;
    let (mut out, mut lse) = (Fresh::new(b * sq * h * d), Fresh::new(b * h * sq));
    let (to, to_lse) = (out.shared(), lse.shared());
    let blocks = sq.div_ceil(QB);
    (0..b * h * blocks).into_par_iter().for_each_init(
        || Work::new(size),
        |work, i| {
            let (bh, first) = (i / blocks, i % blocks * QB);
            let (bi, hi) = (bh / h, bh % h);
            let n = QB.min(sq - first);
            let (pk, pv) = packed[bh * size.head()..][..size.head()].split_at(size.packed_keys());
            // SAFETY: a `Cpu` was handed in, so AVX2 and FMA are there; the blocks have the sizes of `size`
            unsafe {
                work.load(size, n, scale, q, [bi, first, hi]);
                work.attend(size, n, pk, pv);
            }
            for r in 0..n {
                let at = ((bi * sq + first + r) * h + hi) * d;
                // SAFETY: every task writes the rows of its own block of queries
                unsafe {
                    finish(to.pointer(at, d), &work.sums[r * size.width()..][..d], 1.0 / work.sum[r], p);
                    *to_lse.pointer(bh * sq + first + r, 1) = work.max[r] * LN_2 + work.sum[r].ln();
                }
            }
        },
    );
    // SAFETY: the blocks cover all queries of all heads and images
    unsafe { (out.finish(), lse.finish()) }
}

/// Lengths of one head.
#[derive(Clone, Copy)]
struct Size {
    tile: Tile,
    sk: usize,
    d: usize,
}

impl Size {
    /// Columns of a panel.
    fn nr(self) -> usize {
        self.tile.columns()
    }

    /// `d` padded to whole panels.
    fn width(self) -> usize {
        self.d.next_multiple_of(self.nr())
    }

    /// Distance of rows of queries: not a power of two.
    fn step(self) -> usize {
        self.width() + 16
    }

    /// Floats of the packed keys of a head: panels `[key/nr][d][nr]`.
    fn packed_keys(self) -> usize {
        self.sk.next_multiple_of(KB) * self.d
    }

    /// The same and the packed values, `[key/KB][d/nr][KB][nr]`.
    fn head(self) -> usize {
        self.packed_keys() + self.sk.next_multiple_of(KB) * self.width()
    }

    /// Packs the keys and values from `first` on of image and head `(b, h)`. Columns after the last are
    /// zero in the last panel of keys and of values.
    ///
    /// # Safety
    /// AVX2 is there. `to` is initialised, and nobody else uses this block of this head.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn pack(
        self,
        a: &Attention<'_>,
        (b, h): (usize, usize),
        first: usize,
        lines: &mut [f32],
        to: &Shared<'_>,
    ) {
        let (d, nr) = (self.d, self.nr());
        let head = (b * a.queries[0].dims[2] + h) * self.head();
        // SAFETY: the caller's promise
        let (pk, pv) = unsafe {
            let values = head + self.packed_keys() + first * self.width();
            (to.part(head + first * d, KB * d), to.part(values, KB * self.width()))
        };
        let last = self.sk.min(first + KB);
        for (panel, to) in (first..last).step_by(nr).zip(pk.chunks_exact_mut(nr * d)) {
            let n = nr.min(last - panel);
            let (segment, at) = locate(a.keys, panel);
            let view = &a.keys[segment];
            let rows = if at + n <= view.dims[1] {
                Rows { values: Values::F32(view.from(b, at, h)), stride: view.strides[1], width: d }
            } else {
                for (i, line) in lines.chunks_exact_mut(d).take(n).enumerate() {
                    let (segment, at) = locate(a.keys, panel + i);
                    line.copy_from_slice(a.keys[segment].row(b, at, h));
                }
                Rows { values: Values::F32(lines), stride: d, width: d }
            };
            transpose(rows, 0..n, (0, d), nr, to);
        }
        for key in first..last {
            let (segment, at) = locate(a.values, key);
            for (c, x) in a.values[segment].row(b, at, h).chunks(nr).enumerate() {
                let line = &mut pv[(c * KB + key - first) * nr..][..nr];
                line[..x.len()].copy_from_slice(x);
                line[x.len()..].fill(0.0);
            }
        }
    }
}

/// The segment of token `at` of all, and its place there.
fn locate(segments: &[View<'_>], mut at: usize) -> (usize, usize) {
    for (i, segment) in segments.iter().enumerate() {
        if at < segment.dims[1] {
            return (i, at);
        }
        at -= segment.dims[1];
    }
    unreachable!("a token after the last segment")
}

/// What a task needs for one block of queries.
struct Work {
    /// Scaled, rows `size.step()` apart.
    q: Scratch,
    /// Scores, then probabilities, rows [`SCORES`] apart.
    scores: Scratch,
    /// Sums of values, rows `size.width()` apart.
    sums: Scratch,
    max: [f32; QB],
    sum: [f32; QB],
}

impl Work {
    fn new(size: Size) -> Self {
        Self {
            q: scratch::take(QB * size.step()),
            scores: scratch::take(QB * SCORES),
            sums: scratch::take(QB * size.width()),
            max: [0.0; QB],
            sum: [0.0; QB],
        }
    }

    /// Fetches `n` queries from `first` on of an image and head, and forgets what was accumulated.
    #[target_feature(enable = "avx2,fma")]
    fn load(&mut self, size: Size, n: usize, scale: f32, q: &View<'_>, [b, first, h]: [usize; 3]) {
        for (r, to) in self.q.chunks_exact_mut(size.step()).take(n).enumerate() {
            for (to, x) in to.iter_mut().zip(q.row(b, first + r, h)) {
                *to = x * scale;
            }
        }
        self.sums[..n * size.width()].fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// # Safety
    /// The machine has the instructions of the tile of `size`, with which `self` was made; `pk` and `pv` are
    /// its packed keys and values; `n` queries were loaded, at most [`QB`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn attend(&mut self, size: Size, n: usize, pk: &[f32], pv: &[f32]) {
        let (d, width, nr) = (size.d, size.width(), size.nr());
        for first in (0..size.sk).step_by(KB) {
            let keys = KB.min(size.sk - first);
            let k = &pk[first * d..][..keys.next_multiple_of(nr) * d];
            let v = &pv[first * width..][..KB * width];
            let scores = &mut self.scores[..n * SCORES];
            let to =
                Target { start: scores.as_mut_ptr(), stride: SCORES, rows: n, columns: keys, add: false };
            // SAFETY: `n` rows of queries and of scores, and as many panels as there are keys
            unsafe { size.tile.block(d, (self.q.as_ptr(), size.step()), (k.as_ptr(), d * nr), to) };
            for r in 0..n {
                // SAFETY: the machine has what its tile needs
                unsafe { self.softmax(size.tile, r, keys, width) };
            }
            let to = Target { start: self.sums.as_mut_ptr(), stride: width, rows: n, columns: d, add: true };
            // SAFETY: `n` rows of probabilities and of sums; panels of `KB` values
            unsafe { size.tile.block(keys, (self.scores.as_ptr(), SCORES), (v.as_ptr(), KB * nr), to) };
        }
    }

    /// Turns a row of scores into probabilities and rescales what was accumulated so far.
    ///
    /// # Safety
    /// The machine has the instructions of `tile`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn softmax(&mut self, tile: Tile, r: usize, keys: usize, width: usize) {
        let row = &mut self.scores[r * SCORES..][..keys];
        let old = self.max[r];
        // SAFETY: the caller's promise
        let (new, total) = unsafe {
            match tile {
                Tile::Narrow => probabilities(row, old),
                Tile::Wide => wide::probabilities(row, old),
            }
        };
        if new > old {
            // not the C library's: its bits differ from system to system
            let power = _mm256_cvtss_f32(exp2_below_zero(_mm256_set1_ps(old - new)));
            let factor = if old == f32::NEG_INFINITY { 0.0 } else { power };
            self.sum[r] *= factor;
            self.max[r] = new;
            self.sums[r * width..][..width].iter_mut().for_each(|x| *x *= factor);
        }
        self.sum[r] += total;
    }
}

/// `2^(x - top)` of every score, where `top` is the greatest of them and of `old`. Returns `top` and the sum.
#[target_feature(enable = "avx2,fma")]
fn probabilities(row: &mut [f32], old: f32) -> (f32, f32) {
    let whole = row.len() / LANES * LANES;
    let (body, tail) = row.split_at(whole);
    let mut top = _mm256_set1_ps(old);
    for x in body.chunks_exact(LANES) {
        // SAFETY: eight floats
        top = _mm256_max_ps(top, unsafe { _mm256_loadu_ps(x.as_ptr()) });
    }
    let new = tail.iter().fold(max(top), |a, x| a.max(*x));
    if new == f32::NEG_INFINITY {
        // later keys may have scores: -inf - -inf would spoil them
        row.fill(0.0);
        return (new, 0.0);
    }
    let (body, tail) = row.split_at_mut(whole);
    let top = _mm256_set1_ps(new);
    let mut total = _mm256_setzero_ps();
    for x in body.chunks_exact_mut(LANES) {
        // SAFETY: eight floats
        unsafe {
            let e = exp2_below_zero(_mm256_sub_ps(_mm256_loadu_ps(x.as_ptr()), top));
            total = _mm256_add_ps(total, e);
            _mm256_storeu_ps(x.as_mut_ptr(), e);
        }
    }
    (new, sum(_mm256_add_ps(total, last(tail, top))))
}

/// The same for the few scores after the last whole register; returns them and zeros.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn last(tail: &mut [f32], top: __m256) -> __m256 {
    if tail.is_empty() {
        return _mm256_setzero_ps();
    }
    // SAFETY: exactly the elements of the tail
    unsafe {
        let x = load(tail.as_ptr(), tail.len());
        let e = keep(exp2_below_zero(_mm256_sub_ps(x, top)), tail.len());
        store(tail.as_mut_ptr(), tail.len(), e);
        e
    }
}

/// `to = from · factor`, rounded.
///
/// # Safety
/// `to` has room for as many floats as `from` has, initialised or not.
#[target_feature(enable = "avx2,fma")]
unsafe fn finish(to: *mut f32, from: &[f32], factor: f32, p: Precision) {
    let factor = _mm256_set1_ps(factor);
    for (i, from) in from.chunks(LANES).enumerate() {
        // SAFETY: as many elements of each
        unsafe {
            let x = _mm256_mul_ps(load(from.as_ptr(), from.len()), factor);
            let x = if p == Precision::Bf16 { round::<true>(x) } else { x };
            store(to.add(i * LANES), from.len(), x);
        }
    }
}

/// Queries per block.
const QB: usize = 96;
/// Keys per block. Another number gives other bits.
const KB: usize = 256;
/// Distance of rows of scores: not a power of two.
const SCORES: usize = KB + 16;
