//! Noise levels: FlowMatchEulerDiscrete with static or dynamic shift.
//!
//! After P. Esser et al., "Scaling Rectified Flow Transformers" (2024), as diffusers'
//! `scheduling_flow_match_euler_discrete.py` evaluates it in f32.

use crate::config::ScheduleConfig;

/// The noise levels of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// σ₀ … σₙ; the last one is 0.
    pub sigmas: Vec<f32>,
}

impl Schedule {
    /// `steps` evenly spaced levels, or the `custom` ones, shifted for `image_tokens` tokens.
    pub fn new(config: &ScheduleConfig, steps: usize, custom: Option<&[f64]>, image_tokens: usize) -> Self {
        let levels: Vec<f32> = match custom {
            Some(list) => list.iter().map(|s| *s as f32).collect(),
            None => linspace_to(steps).map(|s| s as f32).collect(),
        };
        let shifted = if config.use_dynamic_shifting {
            let e = mu(config, image_tokens).exp() as f32;
            levels.iter().map(|s| e / (e + (1.0 / s - 1.0))).collect::<Vec<_>>()
        } else {
            let k = config.shift as f32;
            levels.iter().map(|s| k * s / (1.0 + (k - 1.0) * s)).collect()
        };
        Self { sigmas: shifted.into_iter().chain([0.0]).collect() }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// Timestep of step `i`: σᵢ·1000.
    pub fn timestep(&self, i: usize) -> f32 {
        self.sigmas[i] * 1000.0
    }

    /// σᵢ₊₁ − σᵢ, what step `i` multiplies the velocity with.
    pub fn delta(&self, i: usize) -> f32 {
        self.sigmas[i + 1] - self.sigmas[i]
    }
}

/// Shift exponent μ: a straight line through (base_image_seq_len, base_shift) and
/// (max_image_seq_len, max_shift), not clamped.
pub fn mu(c: &ScheduleConfig, image_tokens: usize) -> f64 {
    let slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len);
    image_tokens as f64 * slope + (c.base_shift - slope * c.base_image_seq_len)
}

/// 1 … 1/n in n values, rounded as numpy's `linspace` rounds.
fn linspace_to(n: usize) -> impl Iterator<Item = f64> {
    let last = 1.0 / n as f64;
    let step = if n > 1 { (last - 1.0) / (n - 1) as f64 } else { 0.0 };
    (0..n).map(move |i| if i > 0 && i == n - 1 { last } else { i as f64 * step + 1.0 })
}
