//! The innermost product with BF16 instructions (`vdpbf16ps`).
//!
//! An element of the sum takes two products at a time. Intel's processors add the product of the second
//! elements, round, add that of the first, and round: the bits of two FMAs, which is the order of
//! [`Steps::Swapped`](super::steps::Steps). Numbers below the smallest normal one count as zero, in operands, sums
//! and results, and rounding is to nearest even whatever the thread has set.

use super::super::wide::pairs;
use super::tile::{Target, ahead, by_rows, expect, put, stretches};
use core::arch::x86_64::*;

/// As [`Tile::block`](super::tile::Tile::block) with two bf16 in each of `k` places; at most `most` rows stay in the
/// first-level cache while the panels pass.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
pub(super) unsafe fn block(
    most: usize,
    k: usize,
    (a, lda): (*const f32, usize),
    (b, panel): (*const f32, usize),
    to: Target,
) {
    for (row, rows) in stretches(to.rows, most) {
        for (j, column) in (0..to.columns).step_by(32).enumerate() {
            let left = to.columns - column;
            // SAFETY: `row` and `column` are inside of what the caller described
            unsafe {
                let (a, b) = (a.add(row * lda), b.add(j * panel));
                let c = to.start.add(row * to.stride + column);
                by_rows!(rows, tile, (k, (a, lda), b, (c, to.stride), left, to.add));
            }
        }
    }
}

/// Per place two loads, `R` broadcasts, `2·R` sums of two products on sixteen lanes.
///
/// # Safety
/// `a` holds `R` rows of `k` places, `b` `k · 32` of them, `c` `R` rows of `min(left, 32)` floats.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
unsafe fn tile<const R: usize>(
    k: usize,
    (a, lda): (*const f32, usize),
    b: *const f32,
    (c, ldc): (*mut f32, usize),
    left: usize,
    add: bool,
) {
    // SAFETY: the caller's promise
    unsafe {
        if add {
            expect::<R>((c, ldc));
        }
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        let (mut a, mut b) = (a.cast::<i32>(), b.cast::<i32>());
        for _ in 0..k {
            ahead(b.cast());
            let (b0, b1) = (pairs(_mm512_loadu_epi32(b)), pairs(_mm512_loadu_epi32(b.add(16))));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = pairs(_mm512_set1_epi32(*a.add(r * lda)));
                sums[0] = _mm512_dpbf16_ps(sums[0], x, b0);
                sums[1] = _mm512_dpbf16_ps(sums[1], x, b1);
            }
            a = a.add(1);
            b = b.add(32);
        }
        put(&sums, (c, ldc), left, add);
    }
}
