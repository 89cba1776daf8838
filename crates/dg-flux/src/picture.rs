//! The finished picture.

use burn::tensor::Tensor;
use dg_core::{ImageSize, Seed};
use dg_kernels::{self as k, Precision};

/// One finished picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Its size.
    pub size: ImageSize,
    /// RGB bytes, rows top-down.
    pub rgb: Vec<u8>,
    /// The seed of its noise.
    pub seed: Seed,
    /// Whether it was decoded in blended tiles.
    pub vae_tiling: bool,
    /// blake3 of `rgb`, hexadecimal.
    pub pixels_blake3: String,
    /// blake3 of the final packed latents as little-endian f32, hexadecimal.
    pub latents_blake3: String,
}

/// The VAE's output `[1, 3, h, w]` as RGB bytes: (x/2 + ½) clamped to 0 … 1, times 255, rounded to
/// the nearest, ties to even.
pub fn to_rgb(decoded: Tensor<4>, p: Precision) -> Vec<u8> {
    let half = k::round(decoded * 0.5, p);
    let planes = k::to_vec(k::round(half + 0.5, p));
    let n = planes.len() / 3;
    let byte = |x: f32| (x.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    (0..n).flat_map(|i| [byte(planes[i]), byte(planes[n + i]), byte(planes[2 * n + i])]).collect()
}

/// blake3 of values as little-endian f32.
pub fn hash_values(values: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    for chunk in values.chunks(4096) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 126.5 becomes 126 and 127.5 becomes 128, as numpy's `rint` has it.
    #[test]
    fn halves_are_rounded_to_even() {
        let half = |k: u8| (f32::from(k) + 0.5) / 255.0 * 2.0 - 1.0;
        let exact = |k: &u8| (half(*k) * 0.5 + 0.5) * 255.0 == f32::from(*k) + 0.5;
        let ties: Vec<u8> = (0..=254).filter(exact).collect();
        assert!(ties.iter().filter(|k| **k % 2 == 0).count() > 10, "{ties:?}");
        let values: Vec<f32> = (0..3).flat_map(|_| ties.iter().map(|k| half(*k))).collect();
        let picture = k::from_vec(values, [1, 3, 1, ties.len()], &crate::cpu());
        let expected: Vec<u8> = ties.iter().flat_map(|k| [k + k % 2; 3]).collect();
        assert_eq!(to_rgb(picture, Precision::F32), expected);
    }

    #[test]
    fn what_is_out_of_range_is_clamped() {
        let values = vec![-7.0, 7.0, -1.0, 1.0, 0.0, f32::INFINITY];
        let picture = k::from_vec(values, [1, 3, 1, 2], &crate::cpu());
        assert_eq!(to_rgb(picture, Precision::F32), [0, 0, 128, 255, 255, 255]);
    }
}
