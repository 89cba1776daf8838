//! What this host computes with.

use std::time::Instant;

/// What an agent tells of its host's processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Processors {
    /// How many it may use.
    pub(super) cores: u32,
    /// Operations per second that FLUX reaches on one of them.
    pub(super) core_flops: f64,
}

impl Processors {
    /// Counts and measures, which takes some hundredths of a second.
    pub(super) fn look() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self { cores: u32::try_from(cores).unwrap_or(1), core_flops: core_flops() }
    }
}

/// The fastest of some short tries: others that run here cost some of them time, seldom all.
fn core_flops() -> f64 {
    let one = || {
        let begin = Instant::now();
        let done = dg_kernels::multiply_adds(dg_kernels::Precision::F32, STEPS)?;
        Some(done / begin.elapsed().as_secs_f64())
    };
    let fastest = (0..TRIES).filter_map(|_| one()).max_by(f64::total_cmp);
    fastest.map_or(PORTABLE_FLOPS, |peak| peak * SHARE)
}

/// Some tenths of a millisecond: long enough for the clock of a core to rise, short enough to be over before another
/// process has its turn.
const STEPS: usize = 100_000;
const TRIES: usize = 40;
/// Share of the peak that a step of FLUX reaches on a core.
const SHARE: f64 = 0.6;
/// Without vector instructions that the kernels know: about an eighth of a core with AVX2.
const PORTABLE_FLOPS: f64 = 0.009e12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_has_a_speed_that_cores_have() {
        let seen = Processors::look();
        assert!(seen.cores >= 1 && (1e8..1e13).contains(&seen.core_flops), "{seen:?}");
    }
}
