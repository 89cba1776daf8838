//! Rotary position embedding over three axes.
//!
//! J. Su et al., "RoFormer" (2021); FLUX lays the axes side by side and rotates neighbouring pairs.

use burn::tensor::{Device, Tensor};

const THETA: f64 = 10_000.0;

/// Cosines and sines for a run of tokens.
#[derive(Clone)]
pub struct Rope {
    /// `[tokens, head_dim / 2]`.
    pub cos: Tensor<2>,
    /// `[tokens, head_dim / 2]`.
    pub sin: Tensor<2>,
}

impl Rope {
    /// The table for tokens at `ids`. Angles are computed in f64 and rounded to f32 at the end.
    pub fn new(ids: &[[f64; 3]], axes: &[usize], device: &Device) -> Self {
        let pairs: usize = axes.iter().map(|a| a / 2).sum();
        let (mut cos, mut sin) =
            (Vec::with_capacity(ids.len() * pairs), Vec::with_capacity(ids.len() * pairs));
        for id in ids {
            for (position, width) in id.iter().zip(axes) {
                for i in 0..width / 2 {
                    let angle = position * (1.0 / THETA.powf((2 * i) as f64 / *width as f64));
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        let table = |v| dg_kernels::from_vec(v, [ids.len(), pairs], device);
        Self { cos: table(cos), sin: table(sin) }
    }

    /// The rows of `len` tokens from `start` on.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        Self { cos: self.cos.clone().narrow(0, start, len), sin: self.sin.clone().narrow(0, start, len) }
    }
}
