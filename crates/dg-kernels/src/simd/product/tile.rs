//! The innermost product: some rows times some columns, in registers.

use super::super::lanes::{load, store};
use super::dots;
use core::arch::x86_64::*;

/// The kinds of register tiles. All give the same bits for the same order of inner steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Tile {
    /// AVX2: six rows, two registers of columns.
    Narrow,
    /// AVX-512: so many rows, two registers of columns.
    Wide(usize),
    /// The same with BF16 instructions: an inner step is two bf16 in the place of one float.
    Dots(usize),
}

/// Where the result of [`Tile::block`] goes.
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

impl Tile {
    /// Columns of a panel.
    pub(in super::super) fn columns(self) -> usize {
        match self {
            Self::Narrow => 16,
            Self::Wide(_) | Self::Dots(_) => 32,
        }
    }

    /// `to (+)= a · b` for `k` inner steps. `a`: rows of floats, `lda` apart. `b`: panels of
    /// [`columns`](Self::columns) columns as `[k][columns]`, `panel` floats apart.
    ///
    /// Each element is one chain of FMAs (or of sums of two products) in the order of `k`, added to the
    /// target at the end, wherever its row or column stands: rows and columns do not know of each other.
    ///
    /// # Safety
    /// The machine has the instructions of this kind. `a` holds `to.rows` rows of `k` floats, `b`
    /// `to.columns / columns` panels, rounded up, and `to` describes memory that nobody else uses.
    pub(in super::super) unsafe fn block(
        self,
        k: usize,
        a: (*const f32, usize),
        b: (*const f32, usize),
        to: Target,
    ) {
        // SAFETY: the caller's promise
        unsafe {
            match self {
                Self::Narrow => narrow(k, a, b, to),
                Self::Wide(most) => wide(most, k, a, b, to),
                Self::Dots(most) => dots::block(most, k, a, b, to),
            }
        }
    }
}

/// Calls `$tile::<R>` for `$rows` rows, `R` of them at most.
macro_rules! by_rows {
    ($rows:expr, $tile:ident, $arguments:tt) => {
        match $rows {
            1 => $tile::<1> $arguments,
            2 => $tile::<2> $arguments,
            3 => $tile::<3> $arguments,
            4 => $tile::<4> $arguments,
            5 => $tile::<5> $arguments,
            6 => $tile::<6> $arguments,
            7 => $tile::<7> $arguments,
            8 => $tile::<8> $arguments,
            9 => $tile::<9> $arguments,
            10 => $tile::<10> $arguments,
            11 => $tile::<11> $arguments,
            12 => $tile::<12> $arguments,
            13 => $tile::<13> $arguments,
            _ => $tile::<14> $arguments,
        }
    };
}
pub(super) use by_rows;

/// `rows` in as few stretches of at most `most` as there can be, all of about one length: a stretch of a few
/// rows would wait for its own sums.
pub(super) fn stretches(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    (0..count).map(move |i| (i * rows / count, (i + 1) * rows / count - i * rows / count))
}

/// Six rows stay in the first-level cache while the panels pass.
///
/// # Safety
/// As [`Tile::block`].
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow(k: usize, (a, lda): (*const f32, usize), (b, panel): (*const f32, usize), to: Target) {
    for (row, rows) in stretches(to.rows, 6) {
        for (j, column) in (0..to.columns).step_by(16).enumerate() {
            let left = to.columns - column;
            // SAFETY: `row` and `column` are inside of what the caller described
            unsafe {
                let (a, b) = (a.add(row * lda), b.add(j * panel));
                let c = to.start.add(row * to.stride + column);
                by_rows!(rows, narrow_tile, (k, (a, lda), b, (c, to.stride), left, to.add));
            }
        }
    }
}

/// At most `most` rows stay in the first-level cache while the panels pass.
///
/// # Safety
/// As [`Tile::block`].
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn wide(
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
                by_rows!(rows, wide_tile, (k, (a, lda), b, (c, to.stride), left, to.add));
            }
        }
    }
}

/// Six rows at most. Per inner step two loads, `R` broadcasts, `2·R` FMAs on eight lanes.
///
/// # Safety
/// `a` holds `R` rows of `k` floats, `b` `k · 16` floats, `c` `R` rows of `min(left, 16)` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow_tile<const R: usize>(
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
        for _ in 0..k / 4 {
            narrow_steps::<R, 4>(&mut sums, (a, lda), b);
            (a, b) = (a.add(4), b.add(4 * 16));
        }
        for _ in 0..k % 4 {
            narrow_steps::<R, 1>(&mut sums, (a, lda), b);
            (a, b) = (a.add(1), b.add(16));
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (half, sum) in sums.into_iter().enumerate() {
                if left > 8 * half {
                    let (c, left) = (c.add(r * ldc + 8 * half), left - 8 * half);
                    store(c, left, if add { _mm256_add_ps(sum, load(c, left)) } else { sum });
                }
            }
        }
    }
}

/// `S` inner steps at a time, without counting in between: a processor whose other thread is busy decodes half as much.
///
/// # Safety
/// `a` holds `R` rows of `S` floats, `b` `S · 16` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow_steps<const R: usize, const S: usize>(
    sums: &mut [[__m256; 2]; R],
    (a, lda): (*const f32, usize),
    b: *const f32,
) {
    // SAFETY: the caller's promise. Two pointers reach six rows by what an address can add to them.
    unsafe {
        let below = a.wrapping_add(3 * lda);
        for step in 0..S {
            let b = b.add(step * 16);
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = if r < 3 { a.add(r * lda) } else { below.add((r - 3) * lda) };
                let x = _mm256_broadcast_ss(&*row.add(step));
                sums[0] = _mm256_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(x, b1, sums[1]);
            }
        }
    }
}

/// Per inner step two loads, `R` broadcasts, `2·R` FMAs on sixteen lanes.
///
/// # Safety
/// `a` holds `R` rows of `k` floats, `b` `k · 32` floats, `c` `R` rows of `min(left, 32)` floats.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn wide_tile<const R: usize>(
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
        let (mut a, mut b) = (a, b);
        for _ in 0..k {
            ahead(b);
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * lda));
                sums[0] = _mm512_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(x, b1, sums[1]);
            }
            a = a.add(1);
            b = b.add(32);
        }
        put(&sums, (c, ldc), left, add);
    }
}

/// Asks for what [`AHEAD`] later steps read of a panel: it comes from the second-level cache, whose latency the
/// machine does not hide when eight or fourteen rows share a step.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn ahead(b: *const f32) {
    let later = b.wrapping_add(32 * AHEAD);
    _mm_prefetch::<_MM_HINT_T0>(later.cast());
    _mm_prefetch::<_MM_HINT_T0>(later.wrapping_add(16).cast());
}

/// Puts sums of sixteen lanes where they belong.
///
/// # Safety
/// `c` holds `R` rows of `min(left, 32)` floats.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn put<const R: usize>(
    sums: &[[__m512; 2]; R],
    (c, ldc): (*mut f32, usize),
    left: usize,
    add: bool,
) {
    let lanes = |left: usize| if left >= 16 { 0xffff } else { (1u16 << left) - 1 };
    let masks = [lanes(left), lanes(left.saturating_sub(16))];
    for (r, sums) in sums.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate() {
            let (c, mask) = (c.wrapping_add(r * ldc + 16 * half), masks[half]);
            // SAFETY: the caller's promise; masked lanes are not touched
            unsafe {
                let sum = if add { _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, c)) } else { *sum };
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}

/// Asks for `R` rows that are going to be added to.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn expect<const R: usize>((c, ldc): (*mut f32, usize)) {
    for r in 0..R {
        let c = c.wrapping_add(r * ldc);
        _mm_prefetch::<_MM_HINT_T0>(c.cast());
        _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(16).cast());
    }
}

/// Inner steps to look ahead.
const AHEAD: usize = 8;
