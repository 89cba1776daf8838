//! Operands in the order in which tiles read them.

use super::super::map::{unary, widen_bf16, widen_f16};
use super::super::{Rows, Unary, Values};
use super::KC;
use super::steps::{Steps, pairs_of};
use super::tile::Tile;
use crate::Precision;
use core::arch::x86_64::*;
use core::ops::Range;

/// Copies `to.len()` values from `at` on, as f32.
#[target_feature(enable = "avx2,fma")]
pub(in super::super) fn copy(values: Values<'_>, at: usize, to: &mut [f32]) {
    let n = to.len();
    match values {
        // of a fixed length: some moves instead of a call
        Values::F32(v) if n == STEP => {
            let from = v[at..at + n].first_chunk::<STEP>().expect("as long");
            *to.first_chunk_mut().expect("as long") = *from;
        }
        Values::F32(v) => to.copy_from_slice(&v[at..at + n]),
        // SAFETY: the lengths are equal
        Values::Bf16(v) => unsafe { widen_bf16(to, &v[at..at + n]) },
        Values::F16(v) => widen_f16(to, &v[at..at + n]),
    }
}

/// Columns `first..first + k` of row `row` of matrices side by side, in the places of `steps`. `k` is at most [`KC`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn copy_row(
    parts: &[Rows<'_>],
    row: usize,
    (first, k): (usize, usize),
    steps: Steps,
    to: &mut [f32],
) {
    if steps == Steps::Pairs {
        let mut line = [0f32; KC];
        let line = &mut line[..k];
        join(parts, row, first, line);
        steps.settle(line);
        to.copy_from_slice(&line[..to.len()]);
    } else {
        join(parts, row, first, to);
        steps.settle(to);
    }
}

#[target_feature(enable = "avx2,fma")]
fn join(parts: &[Rows<'_>], row: usize, first: usize, to: &mut [f32]) {
    let (mut first, mut to) = (first, to);
    for part in parts {
        if first >= part.width {
            first -= part.width;
            continue;
        }
        let n = to.len().min(part.width - first);
        let (head, tail) = to.split_at_mut(n);
        copy(part.values, row * part.stride + first, head);
        (first, to) = (0, tail);
        if to.is_empty() {
            break;
        }
    }
}

/// Rows `columns` of `[n, k]`, as panels of `nr` columns of its transpose: `[columns / nr][k][nr]`, with
/// places of `steps` for `k`. Columns after the last become zero. `nr` is a multiple of eight, at most [`NR_MAX`].
#[target_feature(enable = "avx2,fma")]
pub(in super::super) fn transpose(
    from: Rows<'_>,
    columns: Range<usize>,
    (k0, k): (usize, usize),
    (nr, steps): (usize, Steps),
    to: &mut [f32],
) {
    let (places, each) = (steps.places(k), if steps == Steps::Pairs { 2 } else { 1 });
    // rows of weights are often a power of two apart and would meet in one set of the cache
    let mut lines = [0f32; NR_MAX * STEP];
    for (panel, to) in columns.clone().step_by(nr).zip(to.chunks_exact_mut((places * nr).max(1))) {
        let n = nr.min(columns.end - panel);
        lines[n * STEP..].fill(0.0);
        for inner in (0..places).step_by(STEP) {
            let len = STEP.min(places - inner);
            let count = (each * len).min(k - each * inner);
            for (i, line) in lines.chunks_exact_mut(STEP).take(n).enumerate() {
                let at = (panel + i) * from.stride + k0 + each * inner;
                // pieces of a row are too short for the machine to foresee the next one
                ahead(from.values, at + each * STEP, each * STEP);
                fetch(from.values, at..at + count, steps, &mut line[..len]);
            }
            turn(&lines, nr, steps == Steps::Swapped, &mut to[inner * nr..][..len * nr]);
        }
    }
}

/// Values `at` in the places of `steps`, not yet swapped.
#[target_feature(enable = "avx2,fma")]
fn fetch(values: Values<'_>, at: Range<usize>, steps: Steps, to: &mut [f32]) {
    match (steps, values) {
        (Steps::Pairs, Values::Bf16(v)) => pairs_of(&v[at], to),
        (Steps::Pairs, _) => {
            let mut line = [0f32; 2 * STEP];
            let line = &mut line[..at.len()];
            copy(values, at.start, line);
            steps.settle(line);
            to.copy_from_slice(&line[..to.len()]);
        }
        (Steps::Swapped, Values::F16(_) | Values::F32(_)) => {
            copy(values, at.start, to);
            // SAFETY: the narrow one needs no more than this function
            unsafe { unary(Tile::Narrow, Unary::Round, Precision::Bf16, to) };
        }
        (Steps::Plain, _) | (Steps::Swapped, Values::Bf16(_)) => copy(values, at.start, to),
    }
}

/// Asks for the `n` values from `at` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn ahead(values: Values<'_>, at: usize, n: usize) {
    let (start, bytes) = match values {
        Values::Bf16(v) => (v.as_ptr().wrapping_add(at).cast::<i8>(), 2 * n),
        Values::F16(v) => (v.as_ptr().wrapping_add(at).cast(), 2 * n),
        Values::F32(v) => (v.as_ptr().wrapping_add(at).cast(), 4 * n),
    };
    for line in (0..bytes).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line));
    }
}

/// `to[k][nr]` = the first `nr` lines of `from`, [`STEP`] long, turned over; if `swapped`, with the second of every
/// two rows before the first.
#[target_feature(enable = "avx2,fma")]
fn turn(from: &[f32; NR_MAX * STEP], nr: usize, swapped: bool, to: &mut [f32]) {
    let k = to.len() / nr;
    let (whole, flip) = (k / 8 * 8, usize::from(swapped));
    assert!(nr.is_multiple_of(8) && nr <= NR_MAX && k <= STEP);
    for inner in (0..whole).step_by(8) {
        for group in (0..nr).step_by(8) {
            // SAFETY: line `group + 7` is one of `NR_MAX`, row `inner + 7` one of `to`
            unsafe {
                let at = |i: usize| _mm256_loadu_ps(from.as_ptr().add((group + i) * STEP + inner));
                let lines = turn_8x8([at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)]);
                for (i, line) in lines.into_iter().enumerate() {
                    _mm256_storeu_ps(to.as_mut_ptr().add((inner + (i ^ flip)) * nr + group), line);
                }
            }
        }
    }
    for inner in whole..k {
        let row = if inner ^ flip < k { inner ^ flip } else { inner };
        for (i, x) in to[row * nr..][..nr].iter_mut().enumerate() {
            *x = from[i * STEP + inner];
        }
    }
}

/// Rows become columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn turn_8x8(r: [__m256; 8]) -> [__m256; 8] {
    let pair = |i: usize| (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
    let four = |i: usize| {
        let ((l0, h0), (l1, h1)) = (pair(i), pair(i + 2));
        [
            _mm256_shuffle_ps::<0x44>(l0, l1),
            _mm256_shuffle_ps::<0xEE>(l0, l1),
            _mm256_shuffle_ps::<0x44>(h0, h1),
            _mm256_shuffle_ps::<0xEE>(h0, h1),
        ]
    };
    let (a, b) = (four(0), four(4));
    let low = |i: usize| _mm256_permute2f128_ps::<0x20>(a[i], b[i]);
    let high = |i: usize| _mm256_permute2f128_ps::<0x31>(a[i], b[i]);
    [low(0), low(1), low(2), low(3), high(0), high(1), high(2), high(3)]
}

/// Rows `k0..k0 + k` of a matrix that is `[k, n]`, `columns` of them, as panels of `nr` columns.
#[target_feature(enable = "avx2,fma")]
pub(super) fn slice(
    (from, stride): (&[f32], usize),
    columns: Range<usize>,
    (k0, k): (usize, usize),
    nr: usize,
    to: &mut [f32],
) {
    for (panel, to) in columns.clone().step_by(nr).zip(to.chunks_exact_mut((k * nr).max(1))) {
        let n = nr.min(columns.end - panel);
        for (inner, line) in to.chunks_exact_mut(nr).enumerate() {
            let from = &from[(k0 + inner) * stride + panel..][..n];
            line[..n].copy_from_slice(from);
            line[n..].fill(0.0);
        }
    }
}

/// Inner steps turned at a time.
const STEP: usize = 64;
/// Columns of a panel at most.
const NR_MAX: usize = 32;
