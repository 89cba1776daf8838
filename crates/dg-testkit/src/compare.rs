//! Differences.

use std::path::Path;

use sha2::{Digest, Sha256};

/// The largest absolute difference between two slices of one length; infinity if a NaN is among them.
pub fn max_abs_diff(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len(), "slices of different lengths are compared");
    left.iter().zip(right).fold(0.0, |largest: f32, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() { f32::INFINITY } else { largest.max(difference) }
    })
}

/// How two pictures differ, in 255ths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The largest difference of one value.
    pub max: u8,
    /// The mean of all differences.
    pub mean: f64,
    /// The part of the values that differ at all, 0 to 1.
    pub differing_fraction: f64,
}

/// Compares two pictures of one size, byte by byte.
pub fn image_difference(left: &[u8], right: &[u8]) -> Difference {
    assert_eq!(left.len(), right.len(), "pictures of different sizes are compared");
    let differences = || left.iter().zip(right).map(|(a, b)| a.abs_diff(*b));
    let count = left.len().max(1) as f64;
    Difference {
        max: differences().max().unwrap_or(0),
        mean: differences().map(f64::from).sum::<f64>() / count,
        differing_fraction: differences().filter(|difference| *difference > 0).count() as f64 / count,
    }
}

/// Width, height and RGB bytes of a PNG. Panics with the file's name if it cannot be read.
pub fn read_png_rgb(path: &Path) -> (usize, usize, Vec<u8>) {
    let picture = image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into_rgb8();
    (picture.width() as usize, picture.height() as usize, picture.into_raw())
}

/// SHA-256 of bytes, in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of the little-endian bytes of float32 values.
pub fn sha256_f32(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    sha256_hex(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_seen() {
        assert_eq!(max_abs_diff(&[1.0, 2.0], &[1.5, 2.25]), 0.5);
        assert_eq!(max_abs_diff(&[f32::NAN, 2.0], &[1.0, 2.0]), f32::INFINITY);
        let difference = image_difference(&[0, 10, 255, 7], &[0, 12, 254, 7]);
        assert_eq!(difference, Difference { max: 2, mean: 0.75, differing_fraction: 0.5 });
    }

    #[test]
    fn stored_pictures_have_the_bits_of_the_manifest() {
        let manifest = crate::manifest();
        let image = &manifest["dev_256"]["images"][0];
        let file = image["file"].as_str().expect("it is named");
        let (width, height, rgb) = read_png_rgb(&crate::data_dir().join("golden").join(file));
        assert_eq!((width, height), (256, 256));
        assert_eq!(sha256_hex(&rgb), image["rgb_sha256"].as_str().expect("it is listed"));
    }
}
