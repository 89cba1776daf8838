//! The innermost product: six rows times sixteen columns in registers.

use super::super::lanes::{load, store};
use core::arch::x86_64::*;

/// Rows of a tile.
pub(in super::super) const MR: usize = 6;
/// Columns of a tile: two registers.
pub(in super::super) const NR: usize = 16;

/// Where the result of [`block`] goes.
#[derive(Clone, Copy)]
pub(in super::super) struct Target {
    /// The first element.
    pub(in super::super) start: *mut f32,
    /// Elements from row to row.
    pub(in super::super) stride: usize,
    pub(in super::super) rows: usize,
    pub(in super::super) columns: usize,
    /// Whether the product is added to what is there.
    pub(in super::super) add: bool,
}

/// `to (+)= a · b` for `k` inner steps. `a`: rows of floats, `lda` apart. `b`: panels of [`NR`] columns
/// as `[k][NR]`, `panel` floats apart.
///
/// Each element is one chain of FMAs in the order of `k`, added to the target at the end, wherever its
/// row or column stands: rows and columns do not know of each other.
///
/// # Safety
/// `a` holds `to.rows` rows of `k` floats, `b` `to.columns / NR` panels, rounded up, and `to` describes
/// memory that nobody else uses.
#[target_feature(enable = "avx2,fma")]
pub(in super::super) unsafe fn block(
    k: usize,
    (a, lda): (*const f32, usize),
    (b, panel): (*const f32, usize),
    to: Target,
) {
    for (j, column) in (0..to.columns).step_by(NR).enumerate() {
        let left = to.columns - column;
        for row in (0..to.rows).step_by(MR) {
            // SAFETY: `row` and `column` are inside of what the caller described
            unsafe {
                let (a, b) = (a.add(row * lda), b.add(j * panel));
                let c = to.start.add(row * to.stride + column);
                match to.rows - row {
                    1 => tile::<1>(k, (a, lda), b, (c, to.stride), left, to.add),
                    2 => tile::<2>(k, (a, lda), b, (c, to.stride), left, to.add),
                    3 => tile::<3>(k, (a, lda), b, (c, to.stride), left, to.add),
                    4 => tile::<4>(k, (a, lda), b, (c, to.stride), left, to.add),
                    5 => tile::<5>(k, (a, lda), b, (c, to.stride), left, to.add),
                    _ => tile::<MR>(k, (a, lda), b, (c, to.stride), left, to.add),
                }
            }
        }
    }
}

/// One tile: per inner step two loads, `R` broadcasts, `2·R` FMAs.
///
/// # Safety
/// `a` holds `R` rows of `k` floats, `b` `k · NR` floats, `c` `R` rows of `min(left, NR)` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize>(
    k: usize,
    (a, lda): (*const f32, usize),
    b: *const f32,
    (c, ldc): (*mut f32, usize),
    left: usize,
    add: bool,
) {
    // SAFETY: the caller's promise; a prefetch may name any address
    unsafe {
        if add {
            for r in 0..R {
                _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(r * ldc).cast());
            }
        }
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let (mut a, mut b) = (a, b);
        for _ in 0..k {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_broadcast_ss(&*a.add(r * lda));
                sums[0] = _mm256_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(x, b1, sums[1]);
            }
            a = a.add(1);
            b = b.add(NR);
        }
        if left >= NR {
            for (r, [s0, s1]) in sums.into_iter().enumerate() {
                let c = c.add(r * ldc);
                let [s0, s1] = if add {
                    [_mm256_add_ps(s0, _mm256_loadu_ps(c)), _mm256_add_ps(s1, _mm256_loadu_ps(c.add(8)))]
                } else {
                    [s0, s1]
                };
                _mm256_storeu_ps(c, s0);
                _mm256_storeu_ps(c.add(8), s1);
            }
        } else {
            put_part(&sums, (c, ldc), left, add);
        }
    }
}

/// The last columns of a row that is no multiple of [`NR`].
///
/// # Safety
/// `c` holds a row of `left` floats for each of `sums`; `left < NR`.
#[target_feature(enable = "avx2,fma")]
unsafe fn put_part(sums: &[[__m256; 2]], (c, ldc): (*mut f32, usize), left: usize, add: bool) {
    for (r, sums) in sums.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate().take(left.div_ceil(8)) {
            // SAFETY: `8 · half < left`, and the masks of `load` and `store` end at `left`
            unsafe {
                let (c, left) = (c.add(r * ldc + 8 * half), left - 8 * half);
                let sum = if add { _mm256_add_ps(*sum, load(c, left)) } else { *sum };
                store(c, left, sum);
            }
        }
    }
}
