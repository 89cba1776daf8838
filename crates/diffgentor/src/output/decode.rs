//! File bytes → size, pixels and record. The bytes may be anybody's.

use super::exif;
use super::metadata::Record;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits};
use std::io::{Cursor, Read};
use std::path::Path;

/// A picture that was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoded {
    /// Width in pixels.
    pub(crate) width: u32,
    /// Height in pixels.
    pub(crate) height: u32,
    /// RGB bytes, rows top-down.
    pub(crate) rgb: Vec<u8>,
    /// What it records, if it was made by this program and says so.
    pub(crate) record: Option<Record>,
}

/// Reads and decodes a whole picture.
pub(crate) fn read(path: &Path) -> Result<Decoded, String> {
    decode(&load(path)?)
}

/// The bytes of a file that is not too large to be a picture.
pub(crate) fn load(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    Ok(bytes)
}

/// Whether bytes that [`decode`] refuses are a picture that this program did not make, and not
/// one of its own that was damaged. What is no picture at all is neither.
pub(crate) fn is_foreign(bytes: &[u8]) -> bool {
    let cut_off = || {
        // a record stands at the end of a WebP, and the length of the whole at its begin
        let length = bytes.get(4..8).and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
        length.is_none_or(|length| bytes.len() < length as usize)
    };
    match image::guess_format(bytes) {
        Err(_) => false,
        Ok(ImageFormat::WebP) if cut_off() => false,
        Ok(_) => !bytes.windows(RECORD_START.len()).any(|window| window == RECORD_START),
    }
}

/// Decodes a whole picture.
pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => png(bytes),
        // the decoder fills up what is missing at the end
        Ok(ImageFormat::Jpeg) if !bytes.ends_with(&JPEG_END) => Err("cut off".into()),
        Ok(ImageFormat::Jpeg) => other(JpegDecoder::new(Cursor::new(bytes)).map_err(|e| e.to_string())?),
        Ok(ImageFormat::WebP) => other(WebPDecoder::new(Cursor::new(bytes)).map_err(|e| e.to_string())?),
        _ => Err("not a png, jpeg or webp picture".into()),
    }
}

fn png(bytes: &[u8]) -> Result<Decoded, String> {
    let text = |e: png::DecodingError| e.to_string();
    let limits = png::Limits { bytes: TEXT_BYTES_MAX };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(bytes), limits).read_info().map_err(text)?;
    let (width, height) = (reader.info().width, reader.info().height);
    check_size(width, height)?;
    if reader.output_color_type() != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return Err("not an 8-bit RGB picture".into());
    }
    let mut rgb = vec![0; reader.output_buffer_size().ok_or("too large")?];
    reader.next_frame(&mut rgb).map_err(text)?;
    reader.finish().map_err(text)?;
    let chunk = reader.info().utf8_text.iter().find(|t| t.keyword == "dg");
    let record = chunk.and_then(|t| t.get_text().ok()).and_then(|json| Record::from_json(&json));
    Ok(Decoded { width, height, rgb, record })
}

fn other(mut decoder: impl ImageDecoder) -> Result<Decoded, String> {
    let text = |e: image::ImageError| e.to_string();
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(FILE_BYTES_MAX);
    decoder.set_limits(limits).map_err(text)?;
    let exif = decoder.exif_metadata().map_err(text)?;
    let record = exif.and_then(|block| Record::from_json(&exif::text(&block)?));
    let rgb = DynamicImage::from_decoder(decoder).map_err(text)?.into_rgb8().into_raw();
    Ok(Decoded { width, height, rgb, record })
}

fn check_size(width: u32, height: u32) -> Result<(), String> {
    let most = dg_core::size::SIDE_PIXELS_MAX;
    match width <= most && height <= most {
        true => Ok(()),
        false => Err(format!("{width}x{height} pixels, more than {most}")),
    }
}

/// Largest file that is read: an uncompressed picture of the largest size, and then some.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// Bytes that text chunks may take: a prompt of 32 000 characters, escaped, several times over.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// How a record begins, in every format.
const RECORD_START: &[u8] = b"{\"recipe\":{";
/// The marker at the end of a JPEG.
const JPEG_END: [u8; 2] = [0xff, 0xd9];

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::encode::encode;
    use super::super::metadata::{Record, tests::recipe};
    use super::*;

    fn sample(format: Format, prompt: &str) -> (Vec<u8>, Vec<u8>, Record) {
        let record = Record::new(recipe(prompt));
        let rgb: Vec<u8> = (0..32 * 16 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let made = encode(format, record.recipe.request.size, &rgb, Some(&record)).unwrap();
        assert_eq!(made.note, None);
        let decoded_blake3 = (format != Format::Png).then_some(made.pixels_blake3);
        (made.bytes, rgb, Record { decoded_blake3, ..record })
    }

    #[test]
    fn pictures_and_records_come_back() {
        for format in [Format::Png, Format::WebP, Format::Jpeg] {
            for prompt in ["a cat", "caf\u{e9} \u{7f}\u{85}", "猫 🐈 \0 \"\\", &"x".repeat(32_000)] {
                let (bytes, rgb, record) = sample(format, prompt);
                let decoded = decode(&bytes).unwrap();
                assert_eq!((decoded.width, decoded.height), (32, 16));
                assert_eq!(decoded.record, Some(record), "{format:?} {prompt:.10}");
                assert!(format == Format::Jpeg || decoded.rgb == rgb);
                assert_eq!(sample(format, prompt).0, bytes, "the same bytes every time");
            }
        }
    }

    #[test]
    fn damaged_files_are_refused_without_panic() {
        for format in [Format::Png, Format::WebP, Format::Jpeg] {
            let (bytes, _, _) = sample(format, "a cat");
            for cut in (0..bytes.len()).step_by(7) {
                assert!(decode(&bytes[..cut]).is_err(), "{format:?} cut at {cut}");
            }
            assert!(!is_foreign(&bytes[..bytes.len() - 5]), "{format:?}");
            for i in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[i] ^= 0x55;
                let _ = decode(&bad);
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let (mut bytes, _, _) = sample(Format::Png, "x");
        bytes[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        assert!(decode(&bytes).is_err());
        assert!(decode(b"").is_err() && decode(b"GIF89a").is_err());
        assert!(is_foreign(b"GIF89a") && !is_foreign(b"") && !is_foreign(b"no picture"));
    }
}
