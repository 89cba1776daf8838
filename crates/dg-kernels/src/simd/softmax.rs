//! A row of scores of attention, on eight lanes.

use super::lanes::{LANES, exp2_below_zero, keep, load, max, round, store, sum};
use core::arch::x86_64::*;

/// `2^(x - top)` of every score, where `top` is the greatest of them and of `old`. Returns `top` and the sum, which
/// is taken over 32 lanes. If `SWAPPED`, scores are first multiplied by `factor`, and powers become bf16, of every two the
/// second first.
#[target_feature(enable = "avx2,fma")]
pub(super) fn probabilities<const SWAPPED: bool>(row: &mut [f32], old: f32, factor: f32) -> (f32, f32) {
    let factor = _mm256_set1_ps(factor);
    let mut top = _mm256_set1_ps(old);
    let lowest = _mm256_set1_ps(f32::NEG_INFINITY);
    for x in row.chunks(LANES) {
        // SAFETY: exactly the elements of the chunk
        let mut v = unsafe { load(x.as_ptr(), x.len()) };
        if SWAPPED {
            v = _mm256_mul_ps(v, factor);
        }
        if x.len() < LANES {
            v = _mm256_blendv_ps(lowest, v, _mm256_castsi256_ps(super::lanes::mask(x.len())));
        }
        top = _mm256_max_ps(top, v);
    }
    let new = max(top);
    if new == f32::NEG_INFINITY {
        // later keys may have scores: -inf - -inf would spoil them
        row.fill(0.0);
        return (new, 0.0);
    }
    let (top, mut totals) = (_mm256_set1_ps(new), [_mm256_setzero_ps(); 4]);
    for four in row.chunks_mut(4 * LANES) {
        for (x, total) in four.chunks_mut(LANES).zip(&mut totals) {
            // SAFETY: exactly the elements of the chunk
            unsafe {
                let v = load(x.as_ptr(), x.len());
                let v = if SWAPPED { _mm256_fmsub_ps(v, factor, top) } else { _mm256_sub_ps(v, top) };
                let e = keep(exp2_below_zero(v), x.len());
                *total = _mm256_add_ps(*total, e);
                store(x.as_mut_ptr(), x.len(), if SWAPPED { settled(e, x.len()) } else { e });
            }
        }
    }
    let [a, b, c, d] = totals;
    (new, sum(_mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d))))
}

/// Rounded to bf16, of every two of `n` the second first; a last one without a partner stays last.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn settled(v: __m256, n: usize) -> __m256 {
    let v = round::<true>(v);
    let swapped = _mm256_permute_ps::<0b10_11_00_01>(v);
    if n < LANES && n % 2 == 1 {
        // what stands beside the last one is not stored
        let last = _mm256_castsi256_ps(_mm256_cmpeq_epi32(
            _mm256_set1_epi32(n as i32 - 1),
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
        ));
        return _mm256_blendv_ps(swapped, v, last);
    }
    swapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::bf16;

    #[test]
    fn swapped_powers_are_the_others_rounded_to_bf16() {
        if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
            return eprintln!("SKIPPED: AVX2, which this machine has not");
        }
        for n in 1..=41 {
            let scores: Vec<f32> = (0..n).map(|i| ((i * 37 % 41) as f32).sin() * 3.0).collect();
            let (mut plain, mut swapped) = (scores.clone(), scores);
            // SAFETY: the features are there
            let found = unsafe {
                (
                    probabilities::<false>(&mut plain, -1.0, 1.0),
                    probabilities::<true>(&mut swapped, -1.0, 1.0),
                )
            };
            // the sum is that of the powers before they are rounded
            assert_eq!(found.0, found.1, "{n}");
            let rounded = plain.chunks(2).flat_map(|two| two.iter().rev());
            let rounded: Vec<f32> = rounded.map(|power| bf16::from_f32(*power).to_f32()).collect();
            assert_eq!(swapped, rounded, "{n}");
        }
    }
}
