//! 3×3 convolutions as matrix products, straight from and to `[b, c, h, w]`.
//!
//! A tile of up to [`TILE`] positions is unfolded, block by block of [`KC`] inner steps, into the panels
//! that register tiles read: no copy of the image in another order, no unfolded image.
//!
//! Nearest-neighbour doubling before the convolution is not carried out. The 3×3 taps of a result at an
//! even or odd row and column fall on 2×2 inputs, so each of the four kinds of results is a 2×2 convolution
//! of the input with sums of the taps: 4/9 of the products (the sub-pixel view of W. Shi et al., "Is the
//! deconvolution layer the same as a convolutional layer?", 2016).

use super::product::tile::{Target, Tile as Registers};
use super::product::{KC, LDA, copy};
use super::shared::{Fresh, Shared};
use super::{Binary, Convolution, Cpu, Sampling, map};
use crate::Precision;
use crate::scratch::{self, Scratch};
use core::arch::x86_64::*;
use rayon::prelude::*;

/// Returns `[b, o, oh, ow]`.
pub(super) fn run(cpu: Cpu, conv: &Convolution<'_>, p: Precision) -> Vec<f32> {
    let [b, _, h, w] = conv.dims;
    let (o, [gh, gw]) = (conv.bias.len(), conv.sampling.grid(h, w));
    let [oh, ow] = conv.sampling.result(h, w);
    let len = b * o * oh * ow;
    assert!(conv.residual.is_none_or(|r| r.len() == len));
    let phases = conv.phases();
    let mut out = Fresh::new(len);
    let to = out.shared();
    // a task computes one row of phases: those of one image, tile and parity of rows
    let (tiles, parities) = ((gh * gw).div_ceil(TILE), phases.len().isqrt());
    (0..b * tiles * parities).into_par_iter().for_each_init(
        || scratch::take(TILE * KC),
        |panels, i| {
            let (image, tile, parity) = (i / parities / tiles, i / parities % tiles, i % parities);
            let at = Tile {
                registers: cpu.tile,
                conv,
                image,
                first: tile * TILE,
                n: TILE.min(gh * gw - tile * TILE),
                p,
            };
            // SAFETY: AVX2 and FMA are there; tiles and parities are disjoint parts of the result
            unsafe {
                match &phases[parity * parities..][..parities] {
                    [one] => at.plain(one, panels, to),
                    two => at.doubled(two, parity, panels, to),
                }
            }
        },
    );
    // SAFETY: every position of every image belongs to a tile, and a tile writes all its planes
    unsafe { out.finish() }
}

/// A convolution with fewer taps that gives some of the results.
struct Phase {
    /// Offsets of the taps in the input, rows and columns.
    taps: Vec<[isize; 2]>,
    /// Weights, `[blocks of inner steps][o][LDA]`.
    packed: Scratch,
}

impl Convolution<'_> {
    fn phases(&self) -> Vec<Phase> {
        let nine = |from: isize| (0..9).map(|t| [from + t / 3, from + t % 3]).collect();
        match self.sampling {
            Sampling::Plain => {
                vec![Phase { taps: nine(-1), packed: self.pack(9, |row, to| self.weights(row, to)) }]
            }
            Sampling::Halved => {
                vec![Phase { taps: nine(0), packed: self.pack(9, |row, to| self.weights(row, to)) }]
            }
            Sampling::Doubled => (0..4).map(|i| self.phase(i / 2, i % 2)).collect(),
        }
    }

    /// Results at rows of parity `py` and columns of parity `px`.
    fn phase(&self, py: isize, px: isize) -> Phase {
        let taps = (0..4).map(|t| [py - 1 + t / 2, px - 1 + t % 2]).collect();
        // of three taps in a row, an even result's last two and an odd one's first two meet
        let two = |parity: isize| if parity == 0 { [&[0][..], &[1, 2]] } else { [&[0, 1][..], &[2]] };
        let (rows, columns) = (two(py), two(px));
        let c = self.dims[1];
        let packed = self.pack(4, |row, to| {
            let mut all = vec![0f32; 9 * c];
            self.weights(row, &mut all);
            for (to, nine) in to.chunks_exact_mut(4).zip(all.chunks_exact(9)) {
                for (t, to) in to.iter_mut().enumerate() {
                    let cells =
                        rows[t / 2].iter().flat_map(|y| columns[t % 2].iter().map(move |x| 3 * y + x));
                    *to = cells.map(|i| nine[i]).sum();
                }
            }
        });
        Phase { taps, packed }
    }

    /// The `c · 9` weights of one output channel.
    fn weights(&self, row: usize, to: &mut [f32]) {
        // SAFETY: a `Cpu` was handed to `run`
        unsafe { copy(self.weight, row * to.len(), to) }
    }

    /// `fill(row, c · taps weights)` for every output channel, in the order in which tiles read them.
    fn pack(&self, taps: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Scratch {
        let (o, k) = (self.bias.len(), taps * self.dims[1]);
        let mut packed = scratch::take(k.div_ceil(KC) * o * LDA);
        let blocks = Shared::new(&mut packed);
        (0..o).into_par_iter().for_each_init(
            || scratch::take(k),
            |row, i| {
                fill(i, &mut row[..k]);
                for (block, from) in row[..k].chunks(KC).enumerate() {
                    // SAFETY: scratch memory is initialised; one task for each row
                    unsafe { blocks.part((block * o + i) * LDA, from.len()) }.copy_from_slice(from);
                }
            },
        );
        packed
    }
}

/// Some positions of one image.
struct Tile<'a> {
    registers: Registers,
    conv: &'a Convolution<'a>,
    image: usize,
    first: usize,
    n: usize,
    p: Precision,
}

impl Tile<'_> {
    /// # Safety
    /// The machine has the instructions of `registers`; nobody else uses these positions of any plane of this
    /// image in `out`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn plain(&self, phase: &Phase, panels: &mut [f32], out: Shared<'_>) {
        let (o, [gh, gw]) =
            (self.conv.bias.len(), self.conv.sampling.grid(self.conv.dims[2], self.conv.dims[3]));
        let at = |plane: usize| (self.image * o + plane) * gh * gw + self.first;
        let start = out.pointer(at(0), (o - 1) * gh * gw + self.n);
        // SAFETY: planes lie `gh · gw` apart
        unsafe { self.sums(phase, panels, start, gh * gw) };
        for (plane, bias) in self.conv.bias.iter().enumerate() {
            // SAFETY: written by `sums`; the caller's promise
            let line = unsafe { out.part(at(plane), self.n) };
            map::shift(self.p, line, *bias);
            if let Some(residual) = self.conv.residual {
                // SAFETY: equal lengths
                unsafe { map::binary(Binary::Add, self.p, line, &residual[at(plane)..][..self.n]) };
            }
        }
    }

    /// Two phases, whose results stand side by side.
    ///
    /// # Safety
    /// The machine has the instructions of `registers`; nobody else uses the rows of parity `parity` that belong
    /// to these positions.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn doubled(&self, phases: &[Phase], parity: usize, panels: &mut [f32], out: Shared<'_>) {
        let (o, [_, _, h, w], n) = (self.conv.bias.len(), self.conv.dims, self.n);
        let mut sums = scratch::take(2 * o * n);
        let (even, odd) = sums.split_at_mut(o * n);
        // SAFETY: `o` rows of `n` floats each
        unsafe {
            self.sums(&phases[0], panels, even.as_mut_ptr(), n);
            self.sums(&phases[1], panels, odd.as_mut_ptr(), n);
        }
        for (plane, bias) in self.conv.bias.iter().enumerate() {
            let mut done = 0;
            while done < n {
                let (y, x) = ((self.first + done) / w, (self.first + done) % w);
                let run = (w - x).min(n - done);
                let at = ((self.image * o + plane) * 2 * h + 2 * y + parity) * 2 * w + 2 * x;
                let pair = [&*even, &*odd].map(|v| v[plane * n + done..][..run].as_ptr());
                // SAFETY: `run` floats of each, twice as many in the result, which is the caller's promise
                unsafe { map::interleave(self.p, out.pointer(at, 2 * run), pair, run, *bias) };
                done += run;
            }
        }
    }

    /// The sums of all planes, `stride` floats apart.
    ///
    /// # Safety
    /// The machine has the instructions of `registers`; from `start` on, nobody else uses `n` floats in each of as
    /// many rows, `stride` apart, as there are output channels.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn sums(&self, phase: &Phase, panels: &mut [f32], start: *mut f32, stride: usize) {
        let (o, k) = (self.conv.bias.len(), phase.taps.len() * self.conv.dims[1]);
        for (i, k0) in (0..k).step_by(KC).enumerate() {
            let (kc, nr) = (KC.min(k - k0), self.registers.columns());
            self.unfold(phase, k0, kc, panels);
            for first in (0..o).step_by(ROWS) {
                let rows = ROWS.min(o - first);
                let weights = &phase.packed[(i * o + first) * LDA..][..rows * LDA];
                let start = start.wrapping_add(first * stride);
                let to = Target { start, stride, rows, columns: self.n, add: k0 > 0 };
                // SAFETY: as many weights and panels as `to` has rows and columns
                unsafe { self.registers.block(kc, (weights.as_ptr(), LDA), (panels.as_ptr(), kc * nr), to) };
            }
        }
    }

    /// Inner steps `k0..k0 + kc` of the unfolded tile, as panels.
    #[target_feature(enable = "avx2,fma")]
    fn unfold(&self, phase: &Phase, k0: usize, kc: usize, panels: &mut [f32]) {
        let [_, c, h, w] = self.conv.dims;
        let image = &self.conv.input[self.image * c * h * w..][..c * h * w];
        let whole_rows = w.is_multiple_of(UNIT) && !matches!(self.conv.sampling, Sampling::Halved);
        let (count, mut first) = (self.n.div_ceil(UNIT), 0);
        while first < count {
            let x = (self.first + first * UNIT) % self.conv.sampling.grid(h, w)[1];
            let group = if whole_rows { GROUP.min((w - x) / UNIT).min(count - first) } else { 1 };
            let steps = Steps { image, phase, k0, kc, first, group };
            if whole_rows {
                self.unfold_run(&steps, panels);
            } else {
                self.unfold_unit(&steps, panels);
            }
            first += group;
        }
    }

    /// Where inner step `k` of unit `unit` lies in panels of `kc` steps.
    fn place(&self, unit: usize, k: usize, kc: usize) -> usize {
        let (nr, at) = (self.registers.columns(), unit * UNIT);
        (at / nr * kc + k) * nr + at % nr
    }

    /// Some units of one row. Every input row is fetched once for its three taps, with what lies beside it.
    #[target_feature(enable = "avx2,fma")]
    fn unfold_run(&self, s: &Steps<'_>, panels: &mut [f32]) {
        let ([_, _, h, w], taps) = (self.conv.dims, s.phase.taps.len());
        let position = self.first + s.first * UNIT;
        let (y, x) = (position / w, position % w);
        let mut near = [0f32; GROUP * UNIT + 2];
        let (mut channel, mut tap) = (s.k0 / taps, s.k0 % taps);
        let mut fetched = None;
        for k in 0..s.kc {
            let [dy, dx] = s.phase.taps[tap];
            if fetched != Some((channel, dy)) {
                fetched = Some((channel, dy));
                let row = s.image[channel * h * w..][..h * w].chunks_exact(w).nth((y as isize + dy) as usize);
                if let Some(row) = row {
                    // the same place of a later plane: too far away for the machine to foresee
                    ahead(row[x..].as_ptr().wrapping_add(AHEAD * h * w), s.group * UNIT);
                }
                fetch(row, x, &mut near[..s.group * UNIT + 2]);
            }
            let (units, _) = near[(1 + dx) as usize..].as_chunks::<UNIT>();
            for (i, from) in units.iter().take(s.group).enumerate() {
                // of a fixed length: two moves instead of a call
                let to = panels[self.place(s.first + i, k, s.kc)..].first_chunk_mut::<UNIT>();
                *to.expect("panels hold all units") = *from;
            }
            tap += 1;
            if tap == taps {
                (channel, tap) = (channel + 1, 0);
            }
        }
    }

    /// One unit, wherever its positions lie; zero outside of plane and tile.
    #[target_feature(enable = "avx2,fma")]
    fn unfold_unit(&self, s: &Steps<'_>, panels: &mut [f32]) {
        let ([_, _, h, w], taps, step) = (self.conv.dims, s.phase.taps.len(), self.conv.sampling.step());
        let (gw, n) = (self.conv.sampling.grid(h, w)[1], UNIT.min(self.n - s.first * UNIT));
        for k in 0..s.kc {
            let to = &mut panels[self.place(s.first, k, s.kc)..][..UNIT];
            let (channel, [dy, dx]) = ((s.k0 + k) / taps, s.phase.taps[(s.k0 + k) % taps]);
            let plane = &s.image[channel * h * w..][..h * w];
            to[n..].fill(0.0);
            for (i, to) in to[..n].iter_mut().enumerate() {
                let q = self.first + s.first * UNIT + i;
                let y = (q / gw * step) as isize + dy;
                let x = (q % gw * step) as isize + dx;
                let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
                *to = if inside { plane[y as usize * w + x as usize] } else { 0.0 };
            }
        }
    }
}

/// Some inner steps of some units.
struct Steps<'a> {
    /// One image, `[c, h, w]`.
    image: &'a [f32],
    phase: &'a Phase,
    k0: usize,
    kc: usize,
    first: usize,
    group: usize,
}

/// Asks for `n` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn ahead(start: *const f32, n: usize) {
    for line in (0..=n).step_by(16) {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line).cast());
    }
}

/// `near[i] = row[x + i - 1]`, zero outside.
#[target_feature(enable = "avx2,fma")]
fn fetch(row: Option<&[f32]>, x: usize, near: &mut [f32]) {
    let Some(row) = row else { return near.fill(0.0) };
    let n = near.len() - 2;
    near[0] = if x == 0 { 0.0 } else { row[x - 1] };
    near[1..=n].copy_from_slice(&row[x..x + n]);
    near[n + 1] = row.get(x + n).copied().unwrap_or(0.0);
}

impl Sampling {
    /// Rows and columns of the positions that a phase computes.
    fn grid(self, h: usize, w: usize) -> [usize; 2] {
        match self {
            Self::Plain | Self::Doubled => [h, w],
            Self::Halved => [h / 2, w / 2],
        }
    }

    /// Inputs from one position to the next.
    fn step(self) -> usize {
        if let Self::Halved = self { 2 } else { 1 }
    }
}

/// Positions per task.
const TILE: usize = 256;
/// Planes to look ahead.
const AHEAD: usize = 2;
/// Output channels whose weights stay in the second-level cache.
const ROWS: usize = 96;
/// Positions unfolded at a time; panels hold one or two units.
const UNIT: usize = 16;
/// Units of a row unfolded together.
const GROUP: usize = 4;
