//! Pictures as files: encoding, the request recorded in them, writing, and telling finished ones.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod exif;
pub(crate) mod metadata;
pub(crate) mod printer;
pub(crate) mod resume;
pub(crate) mod write;

/// Form of a picture's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Lossless, with text chunks.
    Png,
    /// Lossy, quality 95.
    Jpeg,
    /// Lossless.
    WebP,
}

impl Format {
    /// The value of `--output_format`.
    pub(crate) fn named(name: Option<&str>) -> Self {
        match name {
            Some("jpeg") => Self::Jpeg,
            Some("webp") => Self::WebP,
            _ => Self::Png,
        }
    }
}
