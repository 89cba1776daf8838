//! Attention with an online softmax (M. Milakov and N. Gimelshein, 2018; T. Dao et al.,
//! "FlashAttention", 2022).
//!
//! K and V are packed once into panels of columns; blocks of up to [`QB`] queries then walk over blocks of
//! [`KB`] keys. A row's result does not depend on which rows share its block, nor on where the segments
//! of keys begin.

use super::lanes::{LANES, exp2_below_zero, load, round, store};
use super::map::unary;
use super::product::steps::Steps;
use super::product::tile::{Target, Tile};
use super::product::{Kind, transpose};
use super::shared::{Fresh, Shared};
use super::softmax;
use super::wide::{self, PAIRS, PLAIN, SWAPPED};
use super::{Attention, Cpu, Rows, Unary, Values, View};
use crate::Precision;
use crate::scratch::{self, Scratch};
use core::arch::x86_64::*;
use core::f32::consts::{LN_2, LOG2_E};
use rayon::prelude::*;

/// For each segment of queries its output `[b, s, h, d]` and logarithms of sums `[b, h, s]`.
pub(super) fn run(
    cpu: Cpu,
    a: &Attention<'_>,
    scale: f32,
    [p, end]: [Precision; 2],
) -> Vec<(Vec<f32>, Vec<f32>)> {
    // powers of two are cheaper than powers of e
    let scale = scale * LOG2_E;
    let [b, _, h, d] = a.queries[0].dims;
    let kind = cpu.kind(p == Precision::Bf16);
    let size = Size { kind, sk: a.keys.iter().map(|k| k.dims[1]).sum(), d };
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
    a.queries.iter().map(|q| of_segment(q, packed, size, scale, end)).collect()
}

fn of_segment(q: &View<'_>, packed: &[f32], size: Size, scale: f32, p: Precision) -> (Vec<f32>, Vec<f32>) {
    let [b, sq, h, d] = q.dims;
    let (mut out, mut lse) = (Fresh::new(b * sq * h * d), Fresh::new(b * h * sq));
    let (to, to_lse) = (out.shared(), lse.shared());
    // blocks of about one length
    let blocks = sq.div_ceil(QB);
    (0..b * h * blocks).into_par_iter().for_each_init(
        || Work::new(size),
        |work, i| {
            let (bh, block) = (i / blocks, i % blocks);
            let (bi, hi, first) = (bh / h, bh % h, block * sq / blocks);
            let n = (block + 1) * sq / blocks - first;
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
    kind: Kind,
    sk: usize,
    d: usize,
}

impl Size {
    /// Columns of a panel.
    fn nr(self) -> usize {
        self.kind.0.columns()
    }

    /// Places of a row of queries or of a key.
    fn places(self) -> usize {
        self.kind.1.places(self.d)
    }

    /// Places of a block of keys.
    fn block(self) -> usize {
        self.kind.1.places(KB)
    }

    /// `d` padded to whole panels.
    fn width(self) -> usize {
        self.d.next_multiple_of(self.nr())
    }

    /// Distance of rows of queries: not a power of two.
    fn step(self) -> usize {
        self.width() + 16
    }

    /// Floats of the packed keys of a head: panels `[key/nr][d][nr]`, with places for `d`.
    fn packed_keys(self) -> usize {
        self.sk.next_multiple_of(KB) * self.places()
    }

    /// The same and the packed values, `[key/KB][d/nr][KB][nr]`, with places for `KB`.
    fn head(self) -> usize {
        self.packed_keys() + self.sk.div_ceil(KB) * self.block() * self.width()
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
        let (d, nr, places) = (self.d, self.nr(), self.places());
        let head = (b * a.queries[0].dims[2] + h) * self.head();
        // SAFETY: the caller's promise
        let (pk, pv) = unsafe {
            let values = head + self.packed_keys() + first / KB * self.block() * self.width();
            (to.part(head + first * places, KB * places), to.part(values, self.block() * self.width()))
        };
        let last = self.sk.min(first + KB);
        for (panel, to) in (first..last).step_by(nr).zip(pk.chunks_exact_mut(nr * places)) {
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
            transpose(rows, 0..n, (0, d), (nr, self.kind.1), to);
        }
        let values = |key: usize| {
            let (segment, at) = locate(a.values, key);
            a.values[segment].row(b, at, h)
        };
        for key in first..last {
            let row = values(key);
            // a last key without a partner stays last
            let partner = if (key - first) ^ 1 < last - first { (key - first) ^ 1 } else { key - first };
            match self.kind.1 {
                Steps::Plain => self.lay(row, key - first, pv),
                Steps::Swapped => {
                    self.lay(row, partner, pv);
                    self.round(partner, pv);
                }
                Steps::Pairs if (key - first).is_multiple_of(2) => {
                    let second = (key + 1 < last).then(|| values(key + 1));
                    self.lay_two(row, second, (key - first) / 2, pv);
                }
                Steps::Pairs => {}
            }
        }
    }

    /// A row of values into place `at` of the panels of its block, with zeros after it.
    fn lay(self, row: &[f32], at: usize, panels: &mut [f32]) {
        let nr = self.nr();
        for (c, x) in row.chunks(nr).enumerate() {
            let line = &mut panels[(c * self.block() + at) * nr..][..nr];
            line[..x.len()].copy_from_slice(x);
            line[x.len()..].fill(0.0);
        }
    }

    /// What [`lay`](Self::lay) laid, as bf16 values.
    #[target_feature(enable = "avx2,fma")]
    fn round(self, at: usize, panels: &mut [f32]) {
        let nr = self.nr();
        for c in 0..self.width() / nr {
            let line = &mut panels[(c * self.block() + at) * nr..][..nr];
            // SAFETY: the narrow one needs no more than this function
            unsafe { unary(Tile::Narrow, Unary::Round, Precision::Bf16, line) };
        }
    }

    /// Two rows of values, the second perhaps zeros, into place `at`.
    #[target_feature(enable = "avx2,fma")]
    fn lay_two(self, row: &[f32], second: Option<&[f32]>, at: usize, panels: &mut [f32]) {
        let nr = self.nr();
        for (c, x) in row.chunks(nr).enumerate() {
            let line = &mut panels[(c * self.block() + at) * nr..][..nr];
            line[x.len()..].fill(0.0);
            for i in (0..x.len()).step_by(LANES) {
                let left = x.len() - i;
                // SAFETY: `i + min(8, left)` floats of each
                unsafe {
                    let low = round::<true>(load(x.as_ptr().add(i), left));
                    let high = match second {
                        Some(row) => round::<true>(load(row[c * nr + i..].as_ptr(), left)),
                        None => _mm256_setzero_ps(),
                    };
                    let low = _mm256_castsi256_ps(_mm256_srli_epi32::<16>(_mm256_castps_si256(low)));
                    store(line.as_mut_ptr().add(i), left, _mm256_or_ps(high, low));
                }
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
    /// Scaled unless they are bf16, rows `size.step()` apart.
    q: Scratch,
    /// Scores, then probabilities, rows [`SCORES`] apart.
    scores: Scratch,
    /// Sums of values, rows `size.width()` apart.
    sums: Scratch,
    /// What scores are still to be multiplied by.
    factor: f32,
    max: [f32; QB],
    sum: [f32; QB],
}

impl Work {
    fn new(size: Size) -> Self {
        Self {
            q: scratch::take(QB * size.step()),
            scores: scratch::take(QB * SCORES),
            sums: scratch::take(QB * size.width()),
            factor: 1.0,
            max: [0.0; QB],
            sum: [0.0; QB],
        }
    }

    /// Fetches `n` queries from `first` on of an image and head, and forgets what was accumulated.
    #[target_feature(enable = "avx2,fma")]
    fn load(&mut self, size: Size, n: usize, scale: f32, q: &View<'_>, [b, first, h]: [usize; 3]) {
        for (r, to) in self.q.chunks_exact_mut(size.step()).take(n).enumerate() {
            let row = q.row(b, first + r, h);
            if size.kind.1 == Steps::Plain {
                to.iter_mut().zip(row).for_each(|(to, x)| *to = x * scale);
            } else {
                // scaled they would be no bf16
                to[..row.len()].copy_from_slice(row);
                size.kind.1.settle(&mut to[..row.len()]);
                self.factor = scale;
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
        let ((tile, steps), width, nr) = (size.kind, size.width(), size.nr());
        let (places, block) = (size.places(), size.block());
        for (i, first) in (0..size.sk).step_by(KB).enumerate() {
            let keys = KB.min(size.sk - first);
            let k = &pk[first * places..][..keys.next_multiple_of(nr) * places];
            let v = &pv[i * block * width..][..block * width];
            let scores = &mut self.scores[..n * SCORES];
            let to =
                Target { start: scores.as_mut_ptr(), stride: SCORES, rows: n, columns: keys, add: false };
            // SAFETY: `n` rows of queries and of scores, and as many panels as there are keys
            unsafe { tile.block(places, (self.q.as_ptr(), size.step()), (k.as_ptr(), places * nr), to) };
            for r in 0..n {
                // SAFETY: the machine has what its tile needs
                unsafe { self.softmax(size.kind, r, keys, width) };
            }
            let to =
                Target { start: self.sums.as_mut_ptr(), stride: width, rows: n, columns: size.d, add: true };
            let (p, v) = ((self.scores.as_ptr(), SCORES), (v.as_ptr(), block * nr));
            // SAFETY: `n` rows of probabilities and of sums; panels of `KB` values
            unsafe { tile.block(steps.places(keys), p, v, to) };
        }
    }

    /// Turns a row of scores into probabilities and rescales what was accumulated so far.
    ///
    /// # Safety
    /// The machine has the instructions of `tile`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn softmax(&mut self, (tile, steps): Kind, r: usize, keys: usize, width: usize) {
        let row = &mut self.scores[r * SCORES..][..keys];
        let old = self.max[r];
        // SAFETY: the caller's promise
        let (new, total) = unsafe {
            match (tile, steps) {
                (Tile::Narrow, Steps::Plain) => softmax::probabilities::<false>(row, old, 1.0),
                (Tile::Narrow, _) => softmax::probabilities::<true>(row, old, self.factor),
                (_, Steps::Plain) => wide::probabilities::<PLAIN>(row, old, 1.0),
                (_, Steps::Swapped) => wide::probabilities::<SWAPPED>(row, old, self.factor),
                (_, Steps::Pairs) => wide::probabilities::<PAIRS>(row, old, self.factor),
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

/// Queries per block at most: keys and values come once for each block from the last-level cache.
const QB: usize = 192;
/// Keys per block. Another number gives other bits.
const KB: usize = 256;
/// Distance of rows of scores: not a power of two.
const SCORES: usize = KB + 16;
