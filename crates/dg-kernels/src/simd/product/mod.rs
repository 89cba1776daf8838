//! The matrix product, after K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (2008): both operands are copied, block by block of [`KC`] inner steps, into the order
//! in which a register tile reads them.
//!
//! The sum of an element is taken over blocks of [`KC`] steps, each in order, whatever the number of rows,
//! columns and threads and whatever the machine: rows are computed alone or together with the same bits.
//!
//! # Layout
//! - [`tile`]: registers; [`pack`]: copies; here: blocks, threads and what follows the sum

mod pack;
pub(super) mod tile;

use super::shared::Shared;
use super::{Binary, Cpu, Finish, Product, Right, Unary, map};
use crate::Precision;
use crate::scratch;
use core::ops::Range;
use rayon::prelude::*;
use tile::{NR, Target, block};

pub(super) use pack::{copy, transpose};

/// Computes `product` in memory of its own: [`Finish::Map`] without memory to reuse.
pub(super) fn fresh(
    _: Cpu,
    product: &Product<'_>,
    bias: Option<&[f32]>,
    then: Option<Unary>,
    p: Precision,
) -> Vec<f32> {
    let len = product.m * product.n;
    let mut out = Vec::with_capacity(len);
    let end = End { bias, then, into: None, p };
    // SAFETY: AVX2 and FMA are there; the capacity is reserved and nobody else knows it
    unsafe { run(product, Shared::spare(&mut out, len), &end, true) };
    // SAFETY: `run` has written every element
    unsafe { out.set_len(len) };
    out
}

/// Computes `product` into `finish`; alone on this thread unless `parallel`.
pub(super) fn into(_: Cpu, product: &Product<'_>, finish: Finish<'_>, p: Precision, parallel: bool) {
    let len = product.m * product.n;
    let (out, end) = match finish {
        Finish::Map { to, bias, then } => (to, End { bias, then, into: None, p }),
        Finish::Into { residual, bias, gate, scratch } => {
            assert!(residual.len() == len);
            assert!(gate.is_none_or(|(g, rows)| rows > 0 && g.len() == product.m.div_ceil(rows) * product.n));
            let into = Some((Shared::new(residual), gate));
            (scratch, End { bias, then: None, into, p })
        }
    };
    assert_eq!(out.len(), len);
    // SAFETY: AVX2 and FMA are there; the result is borrowed exclusively
    unsafe { run(product, Shared::new(out), &end, parallel) };
}

/// What is done to a stretch of a row when its sum is complete.
struct End<'a> {
    bias: Option<&'a [f32]>,
    then: Option<Unary>,
    /// A residual that takes the sum, with gates and the rows that share one.
    into: Option<(Shared<'a>, Option<(&'a [f32], usize)>)>,
    p: Precision,
}

/// # Safety
/// AVX2 and FMA are there. `out` holds `m · n` floats, which nobody else uses; they may be uninitialised,
/// and all are written.
unsafe fn run(product: &Product<'_>, out: Shared<'_>, end: &End<'_>, parallel: bool) {
    let Product { m, n, left, right } = *product;
    let k = left.iter().map(|part| part.width).sum();
    assert!(left.iter().all(|part| part.holds(m)) && right.holds(k, n));
    assert!(end.bias.is_none_or(|b| b.len() == n));
    if m == 0 || n == 0 {
        return;
    }
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let cells = cells(m, n, threads);
    let mut packed = scratch::take(m * LDA);
    for k0 in (0..k.max(1)).step_by(KC) {
        let kc = KC.min(k - k0);
        let line = |(row, to): (usize, &mut [f32])| {
            // SAFETY: AVX2 is there
            unsafe { pack::copy_row(left, row, k0, &mut to[..kc]) };
        };
        if threads > 1 {
            packed.par_chunks_mut(LDA).with_min_len(16).enumerate().for_each(line);
        } else {
            packed.chunks_mut(LDA).enumerate().for_each(line);
        }
        let step = Step { product, packed: &packed, k0, kc, last: k0 + kc == k };
        let widest = cells.iter().map(|c| c.columns.len()).max().unwrap_or(0).next_multiple_of(NR);
        // SAFETY: the cells are disjoint, otherwise as promised
        let work = |panels: &mut scratch::Scratch, cell: &Cell| unsafe { step.cell(cell, panels, out, end) };
        if threads > 1 {
            cells.par_iter().for_each_init(|| scratch::take(widest * kc), work);
        } else {
            let mut panels = scratch::take(widest * kc);
            cells.iter().for_each(|cell| work(&mut panels, cell));
        }
    }
}

/// One block of inner steps.
struct Step<'a> {
    product: &'a Product<'a>,
    /// The left side's part of it, rows [`LDA`] apart.
    packed: &'a [f32],
    k0: usize,
    kc: usize,
    last: bool,
}

impl Step<'_> {
    /// # Safety
    /// As [`run`]; nobody else writes this cell.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn cell(&self, cell: &Cell, panels: &mut [f32], out: Shared<'_>, end: &End<'_>) {
        let (n, kc) = (self.product.n, self.kc);
        let columns = cell.columns.clone();
        let width = columns.len();
        let panels = &mut panels[..width.next_multiple_of(NR) * kc];
        match self.product.right {
            Right::Rows(rows) => transpose(rows, columns.clone(), self.k0, kc, panels),
            Right::Columns(v, stride) => pack::slice(v, stride, columns.clone(), self.k0, kc, panels),
        }
        for first in cell.rows.clone().step_by(MC) {
            let rows = MC.min(cell.rows.end - first);
            let start = out.pointer(first * n + columns.start, (rows - 1) * n + width);
            let to = Target { start, stride: n, rows, columns: width, add: self.k0 > 0 };
            let left = &self.packed[first * LDA..][..rows * LDA];
            // SAFETY: `left` has the rows, `panels` the columns, and `start` was checked
            unsafe { block(kc, (left.as_ptr(), LDA), (panels.as_ptr(), kc * NR), to) };
            if self.last {
                for row in first..first + rows {
                    // SAFETY: the cell's own part, written by `block`
                    unsafe { end.row(row, columns.clone(), n, out.part(row * n + columns.start, width)) };
                }
            }
        }
    }
}

impl End<'_> {
    /// # Safety
    /// Nobody else uses these columns of this row of the residual.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn row(&self, row: usize, columns: Range<usize>, n: usize, sums: &mut [f32]) {
        match self.bias {
            // SAFETY: equal lengths
            Some(bias) => unsafe { map::binary(Binary::Add, self.p, sums, &bias[columns.clone()]) },
            None => map::unary(Unary::Round, self.p, sums),
        }
        if let Some(then) = self.then {
            map::unary(then, self.p, sums);
        }
        if let Some((residual, gate)) = &self.into {
            // SAFETY: the caller's promise; equal lengths
            unsafe {
                let residual = residual.part(row * n + columns.start, sums.len());
                match gate {
                    Some((gate, rows)) => {
                        map::gated(self.p, residual, &gate[row / rows * n..][columns], sums)
                    }
                    None => map::binary(Binary::Add, self.p, residual, sums),
                }
            }
        }
    }
}

/// A part of the result that one task computes.
struct Cell {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Cuts the result so that every thread finds several cells. A column's weights are copied once for each
/// cell it is in, so columns are cut before rows.
fn cells(m: usize, n: usize, threads: usize) -> Vec<Cell> {
    let wanted = if threads > 1 { 4 * threads } else { 1 };
    let (mut rows, mut columns) = (m, NC.min(n));
    while columns > NC_MIN && m.div_ceil(rows) * n.div_ceil(columns) < wanted {
        columns = (columns / 2).next_multiple_of(NR);
    }
    while rows > 2 * MC && m.div_ceil(rows) * n.div_ceil(columns) < wanted {
        rows = (rows / 2).next_multiple_of(MC);
    }
    let cut = |end: usize, step: usize| (0..end).step_by(step).map(move |i| i..(i + step).min(end));
    cut(n, columns)
        .flat_map(|columns| cut(m, rows).map(move |rows| Cell { rows, columns: columns.clone() }))
        .collect()
}

/// Inner steps of a block. A different number gives different bits.
pub(super) const KC: usize = 512;
/// Distance of packed rows: not a power of two, so that six rows do not meet in one set of the cache.
pub(super) const LDA: usize = KC + 16;
/// Rows that stay in the second-level cache while panels pass.
const MC: usize = 96;
/// Columns of a cell at most, and at least when there are many threads.
const NC: usize = 256;
const NC_MIN: usize = 64;
