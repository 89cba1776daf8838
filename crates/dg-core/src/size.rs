//! Picture sizes.

use serde::{Deserialize, Serialize};

/// Pixels per token and side: the VAE shrinks by 8, packing by 2.
pub const PIXELS_PER_TOKEN: u32 = 16;
/// Largest width or height in pixels that is accepted.
pub const SIDE_PIXELS_MAX: u32 = 8192;

/// Width and height in pixels, both multiples of 16 within 16 … 8192.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawSize", into = "RawSize")]
pub struct ImageSize {
    width: u32,
    height: u32,
}

impl ImageSize {
    /// The size that a request for `width` × `height` pixels gets: both sides floored to multiples
    /// of 16, as diffusers' FLUX pipeline does, with a note when that changed something.
    pub fn fit(width: u32, height: u32) -> Result<(Self, Option<Rounded>), BadSize> {
        for (name, value) in [("width", width), ("height", height)] {
            if !(PIXELS_PER_TOKEN..=SIDE_PIXELS_MAX).contains(&value) {
                return Err(BadSize { name, value });
            }
        }
        let floor = |v: u32| v / PIXELS_PER_TOKEN * PIXELS_PER_TOKEN;
        let size = Self { width: floor(width), height: floor(height) };
        let changed = (size.width, size.height) != (width, height);
        Ok((size, changed.then_some(Rounded { asked: (width, height), given: size })))
    }

    /// Width in pixels.
    pub fn width(self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(self) -> u32 {
        self.height
    }

    /// Latent columns (pixels / 8).
    pub fn latent_width(self) -> usize {
        self.width as usize / 8
    }

    /// Latent rows (pixels / 8).
    pub fn latent_height(self) -> usize {
        self.height as usize / 8
    }

    /// Tokens of the packed latents.
    pub fn image_tokens(self) -> usize {
        self.latent_width() * self.latent_height() / 4
    }

    /// Pixels of the picture.
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A requested size that was floored to multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounded {
    /// Requested width and height.
    pub asked: (u32, u32),
    /// What the picture will have.
    pub given: ImageSize,
}

impl std::fmt::Display for Rounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "size {}x{} is not a multiple of {PIXELS_PER_TOKEN}: rounded down to {}",
            self.asked.0, self.asked.1, self.given
        )
    }
}

/// A width or height outside the limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {value} is outside {PIXELS_PER_TOKEN}..={SIDE_PIXELS_MAX} pixels")]
pub struct BadSize {
    /// `width` or `height`.
    pub name: &'static str,
    /// What was asked for.
    pub value: u32,
}

#[derive(Serialize, Deserialize)]
struct RawSize {
    width: u32,
    height: u32,
}

impl From<ImageSize> for RawSize {
    fn from(s: ImageSize) -> Self {
        Self { width: s.width, height: s.height }
    }
}

impl TryFrom<RawSize> for ImageSize {
    type Error = BadSize;
    fn try_from(raw: RawSize) -> Result<Self, BadSize> {
        Self::fit(raw.width, raw.height).map(|(size, _)| size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_floored_and_limited() {
        let (size, note) = ImageSize::fit(1000, 744).unwrap();
        assert_eq!(size.to_string(), "992x736");
        assert!(note.unwrap().to_string().contains("1000x744"));
        assert_eq!(ImageSize::fit(512, 16).unwrap().1, None);
        for (w, h) in [(0, 64), (64, 15), (8208, 64), (64, u32::MAX)] {
            assert!(ImageSize::fit(w, h).is_err(), "{w}x{h}");
        }
    }

    #[test]
    fn a_serialized_size_is_checked_when_read() {
        assert!(serde_json::from_str::<ImageSize>(r#"{"width":0,"height":64}"#).is_err());
    }
}
