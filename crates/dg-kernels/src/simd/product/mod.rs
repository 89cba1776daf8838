//! The matrix product, after K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (2008): both operands are copied, block by block of [`KC`] inner steps, into the order
//! in which a register tile reads them.
//!
//! The sum of an element is taken over blocks of [`KC`] steps, each in order, whatever the number of rows,
//! columns and threads and whatever the machine: rows are computed alone or together with the same bits.
//!
//! # Layout
//! - [`tile`], [`dots`]: registers; [`pack`], [`steps`]: copies; here: blocks, threads and what follows the sum

mod dots;
mod pack;
pub(super) mod steps;
pub(super) mod tile;

use super::shared::{Fresh, Shared};
use super::{Binary, Cpu, Finish, Layer, Product, Right, Rows, Unary, Values, map};
use crate::Precision;
use crate::scratch;
use core::ops::Range;
use rayon::prelude::*;
use steps::Steps;
use tile::{Target, Tile};

pub(super) use pack::{copy, transpose};

/// Computes `layers` of the same `m` rows in memory of their own.
pub(super) fn fresh(
    cpu: Cpu,
    m: usize,
    left: &[Rows<'_>],
    layers: &[Layer<'_>],
    p: Precision,
) -> Vec<Vec<f32>> {
    let mut results: Vec<Fresh> = layers.iter().map(|layer| Fresh::new(m * layer.n)).collect();
    let outs = results.iter_mut().zip(layers);
    let sums: Vec<Sums<'_>> = outs
        .map(|(out, layer)| {
            let end = End { bias: layer.bias, then: layer.then, into: None, p };
            Sums { n: layer.n, right: layer.right, out: out.shared(), end }
        })
        .collect();
    // a layer has the bits that it has alone
    let (halves, singles): (Vec<_>, Vec<_>) = sums.into_iter().partition(Sums::in_bf16);
    for (sums, bf16) in [(halves, true), (singles, false)] {
        if !sums.is_empty() {
            // SAFETY: the instructions are there; nobody else knows the memory
            unsafe { run(cpu.kind(bf16), m, left, &sums, true) };
        }
    }
    // SAFETY: `run` has written every element
    results.into_iter().map(|out| unsafe { out.finish() }).collect()
}

/// Computes `product` into `finish`; alone on this thread unless `parallel`.
pub(super) fn into(cpu: Cpu, product: &Product<'_>, finish: Finish<'_>, p: Precision, parallel: bool) {
    let Product { m, n, left, right } = *product;
    let (out, end) = match finish {
        Finish::Map { to, bias, then } => (to, End { bias, then, into: None, p }),
        Finish::Into { residual, bias, gate, scratch } => {
            assert!(residual.len() == m * n);
            assert!(gate.is_none_or(|(g, rows)| rows > 0 && g.len() == m.div_ceil(rows) * n));
            let into = Some((Shared::new(residual), gate));
            (scratch, End { bias, then: None, into, p })
        }
    };
    assert_eq!(out.len(), m * n);
    let sums = Sums { n, right, out: Shared::new(out), end };
    // SAFETY: the instructions are there; the result is borrowed exclusively
    unsafe { run(cpu.kind(sums.in_bf16()), m, left, &[sums], parallel) };
}

/// One right side, and where its sums go.
struct Sums<'a> {
    n: usize,
    right: Right<'a>,
    /// `[m, n]`, maybe not initialised.
    out: Shared<'a>,
    end: End<'a>,
}

impl Sums<'_> {
    /// Whether both operands are bf16: the left side of a bf16 run always is.
    fn in_bf16(&self) -> bool {
        let weights = matches!(self.right, Right::Rows(Rows { values: Values::Bf16(_), .. }));
        self.end.p == Precision::Bf16 && weights
    }
}

/// What is done to a stretch of a row when its sum is complete.
struct End<'a> {
    bias: Option<&'a [f32]>,
    then: Option<Unary>,
    /// A residual that takes the sum.
    into: Option<(Shared<'a>, Option<Gate<'a>>)>,
    p: Precision,
}

/// What computes a product, and how its operands lie.
pub(super) type Kind = (Tile, Steps);

/// Gates, and how many rows share one.
type Gate<'a> = (&'a [f32], usize);

/// # Safety
/// The machine has the instructions of `tile`. Nobody else uses the memory of `sums`, all of which is
/// written.
unsafe fn run((tile, steps): Kind, m: usize, left: &[Rows<'_>], sums: &[Sums<'_>], parallel: bool) {
    let k = left.iter().map(|part| part.width).sum();
    assert!(left.iter().all(|part| part.holds(m)));
    assert!(sums.iter().all(|s| s.right.holds(k, s.n) && s.end.bias.is_none_or(|b| b.len() == s.n)));
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let cells = cells(m, sums, threads);
    let widest = cells.iter().map(|c| c.columns.len()).max().unwrap_or(0).next_multiple_of(tile.columns());
    // not a power of two, so that the rows of a tile do not meet in one set of the cache
    let lda = steps.places(KC) + 16;
    let mut packed = scratch::take(m * lda);
    for k0 in (0..k.max(1)).step_by(KC) {
        let kc = KC.min(k - k0);
        let places = steps.places(kc);
        let line = |(row, to): (usize, &mut [f32])| {
            // SAFETY: AVX2 is there
            unsafe { pack::copy_row(left, row, (k0, kc), steps, &mut to[..places]) };
        };
        if threads > 1 {
            packed.par_chunks_mut(lda).with_min_len(16).enumerate().for_each(line);
        } else {
            packed.chunks_mut(lda).enumerate().for_each(line);
        }
        let step = Step { kind: (tile, steps), packed: &packed, lda, k0, kc, last: k0 + kc == k };
        // SAFETY: the cells are disjoint, otherwise as promised
        let work = |panels: &mut scratch::Scratch, cell: &Cell<'_>| unsafe { step.cell(cell, panels) };
        if threads > 1 {
            cells.par_iter().for_each_init(|| scratch::take(widest * places), work);
        } else {
            let mut panels = scratch::take(widest * places);
            cells.iter().for_each(|cell| work(&mut panels, cell));
        }
    }
}

/// One block of inner steps.
struct Step<'a> {
    kind: Kind,
    /// The left side's part of it, rows `lda` apart.
    packed: &'a [f32],
    lda: usize,
    k0: usize,
    kc: usize,
    last: bool,
}

impl Step<'_> {
    /// # Safety
    /// As [`run`]; nobody else writes this cell.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn cell(&self, cell: &Cell<'_>, panels: &mut [f32]) {
        let ((tile, steps), Sums { n, right, out, end }) = (self.kind, cell.sums);
        let (kc, lda, nr, places) = (self.kc, self.lda, tile.columns(), steps.places(self.kc));
        let (columns, width) = (cell.columns.clone(), cell.columns.len());
        let panels = &mut panels[..width.next_multiple_of(nr) * places];
        match right {
            Right::Rows(rows) => transpose(*rows, columns.clone(), (self.k0, kc), (nr, steps), panels),
            Right::Columns(v, stride) => {
                assert!(steps == Steps::Plain, "columns are f32");
                pack::slice((v, *stride), columns.clone(), (self.k0, kc), nr, panels);
            }
        }
        for first in cell.rows.clone().step_by(MC) {
            let rows = MC.min(cell.rows.end - first);
            let start = out.pointer(first * n + columns.start, (rows - 1) * n + width);
            let to = Target { start, stride: *n, rows, columns: width, add: self.k0 > 0 };
            let left = &self.packed[first * lda..][..rows * lda];
            // SAFETY: `left` has the rows, `panels` the columns, and `start` was checked
            unsafe { tile.block(places, (left.as_ptr(), lda), (panels.as_ptr(), places * nr), to) };
            if self.last {
                for row in first..first + rows {
                    // SAFETY: the cell's own part, written by `block`
                    unsafe {
                        end.row(tile, row, columns.clone(), *n, out.part(row * n + columns.start, width));
                    };
                }
            }
        }
    }
}

impl End<'_> {
    /// # Safety
    /// The machine has the instructions of `tile`. Nobody else uses these columns of this row of the residual.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn row(&self, tile: Tile, row: usize, columns: Range<usize>, n: usize, sums: &mut [f32]) {
        match self.bias {
            // SAFETY: equal lengths
            Some(bias) => unsafe { map::binary(Binary::Add, self.p, sums, &bias[columns.clone()]) },
            // SAFETY: the caller's promise
            None => unsafe { map::unary(tile, Unary::Round, self.p, sums) },
        }
        if let Some(then) = self.then {
            // SAFETY: the caller's promise
            unsafe { map::unary(tile, then, self.p, sums) };
        }
        if let Some((residual, gate)) = &self.into {
            // SAFETY: the caller's promise; equal lengths
            unsafe {
                let residual = residual.part(row * n + columns.start, sums.len());
                match gate {
                    Some((gate, rows)) => {
                        map::gated(self.p, residual, &gate[row / rows * n..][columns], sums);
                    }
                    None => map::binary(Binary::Add, self.p, residual, sums),
                }
            }
        }
    }
}

/// A part of a result that one task computes.
struct Cell<'a> {
    sums: &'a Sums<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Cuts the results so that every thread finds several cells. A column's weights are copied once for each
/// cell it is in, so columns are cut before rows.
fn cells<'a>(m: usize, sums: &'a [Sums<'a>], threads: usize) -> Vec<Cell<'a>> {
    let wanted = if threads > 1 { 4 * threads } else { 1 };
    let (mut rows, mut columns) = (m, NC);
    let count = |rows: usize, columns: usize| -> usize {
        m.div_ceil(rows.max(1)) * sums.iter().map(|s| s.n.div_ceil(columns)).sum::<usize>()
    };
    while columns > NC_MIN && count(rows, columns) < wanted {
        columns /= 2;
    }
    while rows > 2 * MC && count(rows, columns) < wanted {
        rows = (rows / 2).next_multiple_of(MC);
    }
    let cut = |end: usize, step: usize| (0..end).step_by(step).map(move |i| i..(i + step).min(end));
    let of = |sums: &'a Sums<'a>| {
        cut(sums.n, columns).flat_map(move |columns| {
            cut(m, rows.max(1)).map(move |rows| Cell { sums, rows, columns: columns.clone() })
        })
    };
    sums.iter().flat_map(of).collect()
}

/// Inner steps of a block: even. A different number gives different bits.
pub(super) const KC: usize = 512;
/// Distance of packed rows: not a power of two, so that six rows do not meet in one set of the cache.
pub(super) const LDA: usize = KC + 16;
/// Rows that stay in the second-level cache while panels pass.
const MC: usize = 96;
/// Columns of a cell at most, and at least when there are many threads: powers of two.
const NC: usize = 256;
const NC_MIN: usize = 64;
