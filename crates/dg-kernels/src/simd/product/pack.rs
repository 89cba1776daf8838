//! Operands in the order in which tiles read them.

use super::super::map::{widen_bf16, widen_f16};
use super::super::{Rows, Values};
use core::arch::x86_64::*;
use core::ops::Range;

/// Copies `to.len()` values from `at` on, as f32.
#[target_feature(enable = "avx2,fma")]
pub(in super::super) fn copy(values: Values<'_>, at: usize, to: &mut [f32]) {
    let n = to.len();
    match values {
        Values::F32(v) => to.copy_from_slice(&v[at..at + n]),
        // SAFETY: the lengths are equal
        Values::Bf16(v) => unsafe { widen_bf16(to, &v[at..at + n]) },
        Values::F16(v) => widen_f16(to, &v[at..at + n]),
    }
}

/// Columns `first..first + to.len()` of row `row` of matrices side by side.
#[target_feature(enable = "avx2,fma")]
pub(super) fn copy_row(parts: &[Rows<'_>], row: usize, first: usize, to: &mut [f32]) {
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

/// Rows `columns` of `[n, k]`, as panels of `nr` columns of its transpose: `[columns / nr][k][nr]`.
/// Columns after the last become zero. `nr` is a multiple of eight, at most [`NR_MAX`].
#[target_feature(enable = "avx2,fma")]
pub(in super::super) fn transpose(
    from: Rows<'_>,
    columns: Range<usize>,
    (k0, k): (usize, usize),
    nr: usize,
    to: &mut [f32],
) {
    // rows of weights are often a power of two apart and would meet in one set of the cache
    let mut lines = [0f32; NR_MAX * STEP];
    for (panel, to) in columns.clone().step_by(nr).zip(to.chunks_exact_mut((k * nr).max(1))) {
        let n = nr.min(columns.end - panel);
        lines[n * STEP..].fill(0.0);
        for inner in (0..k).step_by(STEP) {
            let len = STEP.min(k - inner);
            for (i, line) in lines.chunks_exact_mut(STEP).take(n).enumerate() {
                let at = (panel + i) * from.stride + k0 + inner;
                // pieces of a row are too short for the machine to foresee the next one
                ahead(from.values, at + STEP);
                copy(from.values, at, &mut line[..len]);
            }
            turn(&lines, nr, &mut to[inner * nr..][..len * nr]);
        }
    }
}

/// Asks for the [`STEP`] values from `at` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn ahead(values: Values<'_>, at: usize) {
    let (start, bytes) = match values {
        Values::Bf16(v) => (v.as_ptr().wrapping_add(at).cast::<i8>(), 2 * STEP),
        Values::F16(v) => (v.as_ptr().wrapping_add(at).cast(), 2 * STEP),
        Values::F32(v) => (v.as_ptr().wrapping_add(at).cast(), 4 * STEP),
    };
    for line in (0..bytes).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line));
    }
}

/// `to[k][nr]` = the first `nr` lines of `from`, [`STEP`] long, turned over.
#[target_feature(enable = "avx2,fma")]
fn turn(from: &[f32; NR_MAX * STEP], nr: usize, to: &mut [f32]) {
    let k = to.len() / nr;
    let whole = k / 8 * 8;
    assert!(nr.is_multiple_of(8) && nr <= NR_MAX && k <= STEP);
    for inner in (0..whole).step_by(8) {
        for group in (0..nr).step_by(8) {
            // SAFETY: line `group + 7` is one of `NR_MAX`, row `inner + 7` one of `to`
            unsafe {
                let at = |i: usize| _mm256_loadu_ps(from.as_ptr().add((group + i) * STEP + inner));
                let lines = turn_8x8([at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)]);
                for (i, line) in lines.into_iter().enumerate() {
                    _mm256_storeu_ps(to.as_mut_ptr().add((inner + i) * nr + group), line);
                }
            }
        }
    }
    for inner in whole..k {
        for (i, x) in to[inner * nr..][..nr].iter_mut().enumerate() {
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
