//! What the machine can do at most.

use super::lanes::sum;
use core::arch::x86_64::*;

/// Steps of twelve independent chains of FMAs on eight lanes: nothing but arithmetic. Returns the sum of
/// all lanes, so that nothing is optimised away.
#[target_feature(enable = "avx2,fma")]
pub(super) fn fma(steps: usize) -> f32 {
    let (mut chains, factor) = ([_mm256_set1_ps(1.0); 12], _mm256_set1_ps(core::hint::black_box(0.999)));
    for _ in 0..steps {
        for chain in &mut chains {
            *chain = _mm256_fmadd_ps(*chain, factor, factor);
        }
    }
    let mut all = chains[0];
    for chain in &chains[1..] {
        all = _mm256_add_ps(all, *chain);
    }
    sum(all)
}

/// Floating-point operations of a step on one lane.
pub(super) const FLOP: usize = 12 * 2;
