//! RGB → file bytes. The same picture with the same record is the same bytes.

use super::metadata::{Record, infotext};
use super::{Format, exif};
use dg_core::ImageSize;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// Encodes a picture with what it records. Only a record too long for its format is left out; then
/// the second value says so.
pub(crate) fn encode(
    format: Format,
    size: ImageSize,
    rgb: &[u8],
    record: Option<&Record>,
) -> Result<(Vec<u8>, Option<String>), String> {
    match format {
        Format::Png => png(size, rgb, record).map(|bytes| (bytes, None)).map_err(|e| e.to_string()),
        Format::Jpeg => {
            let mut bytes = Vec::new();
            other(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY), size, rgb, record)
                .map(|note| (bytes, note))
        }
        Format::WebP => {
            let mut bytes = Vec::new();
            other(WebPEncoder::new_lossless(&mut bytes), size, rgb, record).map(|note| (bytes, note))
        }
    }
}

fn png(size: ImageSize, rgb: &[u8], record: Option<&Record>) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.width(), size.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Balanced);
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

fn other(
    mut encoder: impl ImageEncoder,
    size: ImageSize,
    rgb: &[u8],
    record: Option<&Record>,
) -> Result<Option<String>, String> {
    let mut note = None;
    if let Some(record) = record {
        match exif::block(&ascii(&record.to_json())) {
            Some(block) => encoder.set_exif_metadata(block).map_err(|e| e.to_string())?,
            None => note = Some("the prompt is too long to be recorded in this format: use png".into()),
        }
    }
    encoder
        .write_image(rgb, size.width(), size.height(), ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    Ok(note)
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
