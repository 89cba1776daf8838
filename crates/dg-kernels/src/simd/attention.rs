//! Attention with an online softmax.
//!
//! K and V are packed once into panels of 16 columns; blocks of 96 queries then walk over blocks of
//! 128 keys. A row's result does not depend on which rows share its block.

use super::lanes::{LANES, exp, max, round, sum, tile_6x16};
use super::shared::Shared;
use super::{Cpu, View};
use crate::Precision;
use crate::scratch::{self, Scratch};
use core::arch::x86_64::*;
use rayon::prelude::*;

pub(super) fn run(
    _: Cpu,
    [q, k, v]: [View<'_>; 3],
    scale: f32,
    p: Precision,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let [b, sq, h, d] = q.dims;
    let size = Size { sk: k.dims[1], d, dp: d.next_multiple_of(NR) };
    let mut packed = scratch::take(b * h * size.head());
    packed.par_chunks_mut(size.head()).enumerate().for_each(|(i, to)| size.pack(&k, &v, (i / h, i % h), to));

    let (out, lse) = (Shared::new(out), Shared::new(lse));
    let blocks = sq.div_ceil(QB);
    let packed: &[f32] = &packed;
    (0..b * h * blocks).into_par_iter().for_each_init(
        || Work::new(size.dp),
        |work, i| {
            let (bh, first) = (i / blocks, i % blocks * QB);
            let (bi, hi) = (bh / h, bh % h);
            let n = QB.min(sq - first);
            let (pk, pv) = packed[bh * size.head()..][..size.head()].split_at(size.keys() * size.dp);
            work.load(size, n, scale, |r| q.row(bi, first + r, hi));
            // SAFETY: a `Cpu` was handed in, so AVX2 and FMA are there; the blocks have the sizes of `size`
            unsafe { work.attend(size, n, pk, pv) };
            for r in 0..n {
                let token = bi * sq + first + r;
                // SAFETY: every task writes the rows of its own block of queries
                let (row, sum) =
                    unsafe { (out.part((token * h + hi) * d, d), lse.part(bh * sq + first + r, 1)) };
                // SAFETY: as above
                unsafe { finish(row, &work.acc[r * size.dp..][..d], 1.0 / work.sum[r], p) };
                sum[0] = work.max[r] + work.sum[r].ln();
            }
        },
    );
}

/// Lengths of one head.
#[derive(Clone, Copy)]
struct Size {
    sk: usize,
    d: usize,
    /// `d` padded to whole panels.
    dp: usize,
}

impl Size {
    /// Keys, padded to whole blocks.
    fn keys(self) -> usize {
        self.sk.next_multiple_of(KB)
    }

    /// Floats of one packed head: panels of K as `[key/16][d][16]`, then of V as
    /// `[key/128][d/16][128][16]`.
    fn head(self) -> usize {
        2 * self.keys() * self.dp
    }

    /// Padded columns become zero; padded keys stay as they are, since nothing reads their scores.
    fn pack(self, k: &View<'_>, v: &View<'_>, (b, h): (usize, usize), to: &mut [f32]) {
        let (pk, pv) = to.split_at_mut(self.keys() * self.dp);
        for key in 0..self.sk {
            let panel = &mut pk[key / NR * NR * self.dp..][..NR * self.dp];
            let lane = key % NR;
            for (c, x) in k.row(b, key, h).iter().enumerate() {
                panel[c * NR + lane] = *x;
            }
            for c in self.d..self.dp {
                panel[c * NR + lane] = 0.0;
            }
            let block = &mut pv[key / KB * KB * self.dp..][..KB * self.dp];
            for (c, x) in v.row(b, key, h).chunks(NR).enumerate() {
                let line = &mut block[c * KB * NR + key % KB * NR..][..NR];
                line[..x.len()].copy_from_slice(x);
                line[x.len()..].fill(0.0);
            }
        }
    }
}

/// What a task needs for one block of queries.
struct Work {
    /// `[group][d][6]`, scaled.
    q: Scratch,
    /// Scores of a group, `[6][128]`.
    scores: Scratch,
    /// Probabilities, `[group][128][6]`.
    p: Scratch,
    /// Sums of values, `[96][d]`.
    acc: Scratch,
    max: [f32; QB],
    sum: [f32; QB],
}

impl Work {
    fn new(dp: usize) -> Self {
        Self {
            q: scratch::take(QB * dp),
            scores: scratch::take(MR * KB),
            p: scratch::take(QB * KB),
            acc: scratch::take(QB * dp),
            max: [0.0; QB],
            sum: [0.0; QB],
        }
    }

    /// Fetches `n` queries and forgets what was accumulated.
    fn load<'a>(&mut self, size: Size, n: usize, scale: f32, row: impl Fn(usize) -> &'a [f32]) {
        let dp = size.dp;
        let rows = n.next_multiple_of(MR);
        self.q[..rows * dp].fill(0.0);
        for r in 0..n {
            let group = &mut self.q[r / MR * MR * dp..][..MR * dp];
            for (c, x) in row(r).iter().enumerate() {
                group[c * MR + r % MR] = *x * scale;
            }
        }
        self.acc[..rows * dp].fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// # Safety
    /// `pk` and `pv` are the packed keys and values of `size`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn attend(&mut self, size: Size, n: usize, pk: &[f32], pv: &[f32]) {
        let (dp, groups) = (size.dp, n.div_ceil(MR));
        for first in (0..size.sk).step_by(KB) {
            let keys = KB.min(size.sk - first);
            let panels = keys.div_ceil(NR);
            for g in 0..groups {
                let q = &self.q[g * MR * dp..][..MR * dp];
                for panel in 0..panels {
                    let k = &pk[(first / NR + panel) * NR * dp..][..NR * dp];
                    let to = &mut self.scores[panel * NR..][..(MR - 1) * KB + NR];
                    // SAFETY: the three slices have exactly the sizes of a tile
                    unsafe { tile_6x16::<false>(dp, q.as_ptr(), k.as_ptr(), to.as_mut_ptr(), KB) };
                }
                self.softmax(g, keys, panels * NR, dp);
            }
            for c in 0..dp / NR {
                let v = &pv[first * dp + c * KB * NR..][..KB * NR];
                for g in 0..groups {
                    let p = &self.p[g * MR * KB..][..MR * KB];
                    let to = &mut self.acc[g * MR * dp + c * NR..][..(MR - 1) * dp + NR];
                    // SAFETY: as above, with `keys <= KB`
                    unsafe { tile_6x16::<true>(keys, p.as_ptr(), v.as_ptr(), to.as_mut_ptr(), dp) };
                }
            }
        }
    }

    /// Turns six rows of scores into probabilities laid out `[key][6]` and rescales what was
    /// accumulated so far. `width`, a multiple of 16, is `keys` padded.
    #[target_feature(enable = "avx2,fma")]
    fn softmax(&mut self, group: usize, keys: usize, width: usize, dp: usize) {
        for r in 0..MR {
            let row = &mut self.scores[r * KB..][..width];
            row[keys..].fill(f32::NEG_INFINITY);
            let at = group * MR + r;
            let mut top = _mm256_set1_ps(self.max[at]);
            for x in row.chunks_exact(LANES) {
                // SAFETY: eight floats
                top = _mm256_max_ps(top, unsafe { _mm256_loadu_ps(x.as_ptr()) });
            }
            let new = max(top);
            let top = _mm256_set1_ps(new);
            let mut total = _mm256_setzero_ps();
            for x in row.chunks_exact_mut(LANES) {
                // SAFETY: eight floats
                unsafe {
                    let e = exp(_mm256_sub_ps(_mm256_loadu_ps(x.as_ptr()), top));
                    total = _mm256_add_ps(total, e);
                    _mm256_storeu_ps(x.as_mut_ptr(), e);
                }
            }
            let old = self.max[at];
            if new > old {
                let factor = if old == f32::NEG_INFINITY { 0.0 } else { (old - new).exp() };
                self.sum[at] *= factor;
                self.max[at] = new;
                self.acc[at * dp..][..dp].iter_mut().for_each(|x| *x *= factor);
            }
            self.sum[at] += sum(total);
        }
        let p = &mut self.p[group * MR * KB..][..MR * KB];
        for r in 0..MR {
            for (j, x) in self.scores[r * KB..][..keys].iter().enumerate() {
                p[j * MR + r] = *x;
            }
        }
    }
}

/// `to = from · factor`, rounded.
#[target_feature(enable = "avx2,fma")]
fn finish(to: &mut [f32], from: &[f32], factor: f32, p: Precision) {
    use super::lanes::{load, store};
    let factor = _mm256_set1_ps(factor);
    for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
        let n = to.len().min(from.len());
        // SAFETY: `n` elements of each
        unsafe {
            let x = _mm256_mul_ps(load(from.as_ptr(), n), factor);
            let x = if p == Precision::Bf16 { round::<true>(x) } else { x };
            store(to.as_mut_ptr(), n, x);
        }
    }
}

/// Queries per block.
const QB: usize = 96;
/// Keys per block.
const KB: usize = 128;
/// Rows of a tile.
const MR: usize = 6;
/// Columns of a tile.
const NR: usize = 16;
