//! RGB → file bytes. The same picture with the same record is the same bytes.

use super::metadata::{Record, infotext};
use super::{Format, decode, exif};
use dg_core::ImageSize;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// A picture's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The bytes of the file.
    pub(crate) bytes: Vec<u8>,
    /// blake3 of the RGB bytes that it decodes to: those given, unless the format loses some.
    pub(crate) pixels_blake3: String,
    /// Says so when the record was left out, being too long for the format.
    pub(crate) note: Option<String>,
}

/// Encodes a picture with what it records. Only a record too long for its format is left out.
pub(crate) fn encode(
    format: Format,
    size: ImageSize,
    rgb: &[u8],
    record: Option<&Record>,
) -> Result<Encoded, String> {
    if format == Format::Png {
        let bytes = png(size, rgb, record).map_err(|e| e.to_string())?;
        return Ok(Encoded { bytes, pixels_blake3: hash(rgb), note: None });
    }
    let plain = match format {
        // its pixels are known only once it is encoded
        Format::Jpeg => Some(other(format, size, rgb, None)?),
        _ => None,
    };
    let pixels_blake3 = match &plain {
        Some(bytes) => hash(&decode::decode(bytes)?.rgb),
        None => hash(rgb),
    };
    let text =
        record.map(|r| exif_text(&Record { decoded_blake3: Some(pixels_blake3.clone()), ..r.clone() }));
    let block = text.as_deref().and_then(exif::block);
    let note = (text.is_some() && block.is_none()).then(|| TOO_LONG.into());
    let bytes = match (plain, block) {
        (Some(bytes), None) => bytes,
        (_, block) => other(format, size, rgb, block)?,
    };
    Ok(Encoded { bytes, pixels_blake3, note })
}

/// Whether a file of this format can hold the record.
pub(crate) fn holds(format: Format, record: &Record) -> bool {
    let decoded_blake3 = Some(hash(&[]));
    let text = || exif_text(&Record { decoded_blake3, ..record.clone() });
    format == Format::Png || text().len() <= exif::TEXT_BYTES_MAX
}

/// blake3 of RGB bytes, in hexadecimal.
pub(crate) fn hash(rgb: &[u8]) -> String {
    blake3::hash(rgb).to_hex().to_string()
}

fn png(size: ImageSize, rgb: &[u8], record: Option<&Record>) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.width(), size.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    if let Some(record) = record {
        let text = infotext(&record.recipe);
        match text.chars().all(is_latin1) {
            true => encoder.add_text_chunk("parameters".into(), text)?,
            false => encoder.add_itxt_chunk("parameters".into(), without_nul(&text))?,
        }
        encoder.add_itxt_chunk("dg".into(), record.to_json())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

/// JPEG or WebP with this EXIF block.
fn other(format: Format, size: ImageSize, rgb: &[u8], exif: Option<Vec<u8>>) -> Result<Vec<u8>, String> {
    fn write(
        mut encoder: impl ImageEncoder,
        size: ImageSize,
        rgb: &[u8],
        exif: Option<Vec<u8>>,
    ) -> Result<(), String> {
        if let Some(block) = exif {
            encoder.set_exif_metadata(block).map_err(|e| e.to_string())?;
        }
        let (width, height) = (size.width(), size.height());
        encoder.write_image(rgb, width, height, ExtendedColorType::Rgb8).map_err(|e| e.to_string())
    }
    let mut bytes = Vec::new();
    match format {
        Format::Jpeg => write(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY), size, rgb, exif)?,
        _ => write(WebPEncoder::new_lossless(&mut bytes), size, rgb, exif)?,
    }
    Ok(bytes)
}

fn exif_text(record: &Record) -> String {
    ascii(&record.to_json())
}

/// JSON with every other character as `\uXXXX`.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out += &format!("\\u{unit:04x}");
            }
        }
    }
    out
}

/// What a tEXt chunk can hold: Latin-1 without control characters but the line feed.
fn is_latin1(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{ff}')
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

const JPEG_QUALITY: u8 = 95;
const TOO_LONG: &str = "the prompt is too long to be recorded in this format: use png";
