//! The request that a picture of `--from_image` records, or why it cannot be used.

use crate::failure::Failure;
use crate::output::metadata::Record;
use crate::output::{decode, exif};
use dg_config::Key;
use dg_core::{GenerateRequest, Recipe, Steps};
use image::ImageDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::webp::WebPDecoder;
use std::io::Cursor;
use std::path::Path;

/// Reads the recipe of the picture at `path`.
pub(crate) fn read(path: &str) -> Result<Recipe, Failure> {
    let picture = decode::read(Path::new(path)).map_err(|e| {
        Failure::config(format!("picture {path}: {e}")).hint("give a picture that this program made")
    })?;
    let unreadable = |why: String| {
        Failure::config(format!("picture {path} has an unreadable record: {why}"))
            .hint("it was changed, or made by another version: give the request with flags instead")
    };
    match picture.record {
        Some(record) => {
            check(&record.recipe.request).map_err(unreadable)?;
            check_pipeline(&record.recipe).map_err(unreadable)?;
            Ok(record.recipe)
        }
        None => match std::fs::read(path).ok().and_then(|bytes| text(&bytes)) {
            Some(json) => Err(unreadable(fault(&json))),
            None => Err(Failure::config(format!("picture {path} does not record how it was made"))
                .hint("only pictures that this program made without --no_metadata can be made again")),
        },
    }
}

/// What the type of a request does not check by itself.
fn check(request: &GenerateRequest) -> Result<(), String> {
    let Some(sigmas) = &request.sigmas else { return Ok(()) };
    if sigmas.is_empty() || sigmas.len() > Steps::MAX as usize {
        return Err(format!("{} sigmas are outside 1..={}", sigmas.len(), Steps::MAX));
    }
    match sigmas.iter().find(|s| !(s.is_finite() && **s > 0.0 && **s <= 1.0)) {
        Some(bad) => Err(format!("sigma {bad} is not above 0 and at most 1")),
        None => Ok(()),
    }
}

/// What the type of a stale pipeline does not check by itself.
fn check_pipeline(recipe: &Recipe) -> Result<(), String> {
    let Some(pipefusion) = recipe.pipefusion else { return Ok(()) };
    for (key, n) in [(Key::NumPipelinePatch, pipefusion.patches), (Key::WarmupSteps, pipefusion.warmup)] {
        key.setting().parse(&n.to_string()).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Why a text is no record.
fn fault(json: &str) -> String {
    match serde_json::from_str::<Record>(json) {
        Ok(_) => "its form is unknown".into(),
        Err(e) => e.to_string(),
    }
}

/// The text under `dg` of a picture that was decoded before.
fn text(bytes: &[u8]) -> Option<String> {
    let exif = match image::guess_format(bytes).ok()? {
        image::ImageFormat::Png => return png_text(bytes),
        image::ImageFormat::Jpeg => JpegDecoder::new(Cursor::new(bytes)).ok()?.exif_metadata().ok()?,
        image::ImageFormat::WebP => WebPDecoder::new(Cursor::new(bytes)).ok()?.exif_metadata().ok()?,
        _ => None,
    };
    // other programs write comments too: ours are JSON
    exif::text(&exif?).filter(|text| text.starts_with('{'))
}

fn png_text(bytes: &[u8]) -> Option<String> {
    let limits = png::Limits { bytes: TEXT_BYTES_MAX };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(bytes), limits).read_info().ok()?;
    reader.finish().ok()?;
    let chunk = reader.info().utf8_text.iter().find(|t| t.keyword == "dg")?;
    Some(chunk.get_text().unwrap_or_default())
}

/// Bytes that text chunks may take.
const TEXT_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::metadata::tests::recipe;

    /// A picture of 16x16 with this text under `dg`.
    fn picture(text: Option<&str>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = png::Encoder::new(std::fs::File::create(file.path()).unwrap(), 16, 16);
        encoder.set_color(png::ColorType::Rgb);
        if let Some(text) = text {
            encoder.add_itxt_chunk("dg".into(), text.into()).unwrap();
        }
        encoder.write_header().unwrap().write_image_data(&[0; 16 * 16 * 3]).unwrap();
        file
    }

    fn check_read(text: Option<&str>, expect: Result<(), &str>) {
        let file = picture(text);
        let found = read(file.path().to_str().unwrap());
        match (found, expect) {
            (Ok(_), Ok(())) => (),
            (Err(e), Err(part)) => {
                assert!(e.message.contains(part) && e.hint.is_some(), "{}", e.message);
            }
            (got, expect) => panic!("{text:?}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn no_record_and_a_bad_one_are_told_apart() {
        let good = Record::new(recipe("a cat"));
        check_read(Some(&good.to_json()), Ok(()));
        check_read(None, Err("does not record how it was made"));
        check_read(Some("{}"), Err("unreadable record: missing field"));
        check_read(Some("not JSON"), Err("unreadable record"));
        let steps = good.to_json().replace("\"num_inference_steps\":28", "\"num_inference_steps\":0");
        check_read(Some(&steps), Err("num_inference_steps 0 is outside 1..=1000"));
        for (sigmas, expect) in [
            (vec![1.0, 0.5], Ok(())),
            (vec![], Err("0 sigmas are outside")),
            (vec![0.5; 1001], Err("1001 sigmas are outside")),
            (vec![1.0, 0.0], Err("sigma 0 is not above 0")),
            (vec![1.5], Err("sigma 1.5 is not")),
        ] {
            let mut record = good.clone();
            record.recipe.request.sigmas = Some(sigmas);
            check_read(Some(&record.to_json()), expect);
        }
        for (patches, expect) in [(2, Ok(())), (0, Err("num_pipeline_patch does not accept `0`"))] {
            let mut record = good.clone();
            record.recipe.pipefusion = Some(dg_core::PipeFusion { patches, warmup: 1 });
            check_read(Some(&record.to_json()), expect);
        }
        let noise = good.to_json().replace("\"seed\":42", "\"seed\":42,\"noise_index\":4096");
        check_read(Some(&noise), Err("noise_index 4096 is outside"));
    }
}
