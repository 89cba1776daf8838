//! The order of inner steps in packed operands.

use super::super::lanes::{LANES, round};
use burn::tensor::bf16;
use core::arch::x86_64::*;

/// How the inner steps of a row, or of a panel's columns, follow each other.
///
/// Products of bf16 have the same bits as FMAs of [`Swapped`](Self::Swapped) steps and as sums of
/// [`Pairs`](Self::Pairs), where the machine rounds between the two products of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Steps {
    /// As they are, in f32.
    Plain,
    /// In f32 with bf16 values; of every two the second is the first. A last one without a partner stays last.
    Swapped,
    /// Two bf16 in one place, the first in the lower half. A last one without a partner has a zero.
    Pairs,
}

impl Steps {
    /// Places, each as large as a float, of `k` steps.
    pub(in super::super) fn places(self, k: usize) -> usize {
        match self {
            Self::Plain | Self::Swapped => k,
            Self::Pairs => k.div_ceil(2),
        }
    }

    /// Brings a row of f32 in this order, rounding it to bf16 first unless it stays as it is. The result stands
    /// in the first [`places`](Self::places) of `row`.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) fn settle(self, row: &mut [f32]) {
        match self {
            Self::Plain => {}
            Self::Swapped => swap(row),
            Self::Pairs => narrow(row),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn swap(row: &mut [f32]) {
    let (body, tail) = row.split_at_mut(row.len() / LANES * LANES);
    for c in body.chunks_exact_mut(LANES) {
        // SAFETY: eight floats
        unsafe {
            let v = round::<true>(_mm256_loadu_ps(c.as_ptr()));
            _mm256_storeu_ps(c.as_mut_ptr(), _mm256_permute_ps::<0b10_11_00_01>(v));
        }
    }
    tail.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    swap_pairs(tail);
}

/// The second of every two first.
pub(in super::super) fn swap_pairs(row: &mut [f32]) {
    row.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1));
}

/// In place: a pair is written where it or an earlier one was read.
#[target_feature(enable = "avx2,fma")]
fn narrow(row: &mut [f32]) {
    let whole = row.len() / LANES * LANES;
    let even = _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0);
    for k in (0..whole).step_by(LANES) {
        // SAFETY: `k + 8 <= len`
        unsafe {
            let v = _mm256_castps_si256(round::<true>(_mm256_loadu_ps(row.as_ptr().add(k))));
            let low = _mm256_and_si256(_mm256_srli_epi64::<16>(v), _mm256_set1_epi64x(0xffff));
            let word = _mm256_or_si256(_mm256_srli_epi64::<32>(v), low);
            let four = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(word, even));
            _mm_storeu_si128(row.as_mut_ptr().add(k / 2).cast(), four);
        }
    }
    narrow_few(row, whole);
}

/// The same for what follows place `from`, which is even.
pub(in super::super) fn narrow_few(row: &mut [f32], from: usize) {
    for k in (from..row.len()).step_by(2) {
        let half = |x: Option<&f32>| x.map_or(0, |x| u32::from(bf16::from_f32(*x).to_bits()));
        let (low, high) = (half(row.get(k)), half(row.get(k + 1)));
        row[k / 2] = f32::from_bits(high << 16 | low);
    }
}

/// `to[i]` = steps `2i` and `2i + 1` of `from`, as they lie.
pub(super) fn pairs_of(from: &[bf16], to: &mut [f32]) {
    let (pairs, last) = from.as_chunks::<2>();
    let word = |low: bf16, high: u16| f32::from_bits(u32::from(high) << 16 | u32::from(low.to_bits()));
    to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = word(pair[0], pair[1].to_bits()));
    if let [x] = last {
        to[pairs.len()] = word(*x, 0);
    }
}
