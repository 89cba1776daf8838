//! Final latents and pictures of every text-to-image case.

use super::common;
use dg_core::DType;
use dg_flux::Picture;
use dg_flux::watch::Unwatched;
use dg_kernels::to_vec;
use dg_testkit::{Difference, Golden, image_difference, read_png_rgb};
use serde_json::Value;

/// The text-to-image cases of a model and number format.
pub(crate) fn of<'a>(manifest: &'a Value, model: &str, dtype: DType) -> Vec<(&'a str, &'a Value)> {
    let all = manifest.as_object().expect("an object").iter();
    let wanted = |case: &Value| {
        case["kind"] == "t2i"
            && case["lora"].is_null()
            && case["repo"] == model
            && case["dtype"] == dtype.to_string()
    };
    all.filter(|(_, case)| wanted(case)).map(|(name, case)| (name.as_str(), case)).collect()
}

/// The cases that store no final latents, only a part of the picture.
const WITHOUT_LATENTS: [&str; 1] = ["dev_1000x744"];

/// What a case may differ by.
pub(crate) struct Allowed {
    latents: f32,
    pub(crate) byte: u8,
    mean: f64,
    pub(crate) differing: f64,
}

impl Allowed {
    pub(crate) fn for_case(case: &Value) -> Self {
        if case["dtype"] == "bfloat16" {
            return Self { latents: 0.15, byte: 12, mean: 1.5, differing: 1.0 };
        }
        let latents = if case["true_cfg_scale"].is_null() { 1e-5 } else { 4e-5 };
        Self { latents, byte: 1, mean: 1.0, differing: 0.0005 }
    }
}

fn check(name: &str, case: &Value, pipeline: &mut dg_flux::Pipeline) {
    let allowed = Allowed::for_case(case);
    let requests = common::requests(case);
    let latents = pipeline.latents(&requests, &mut Unwatched).expect("nobody stops it");
    let steps = case["steps_run"].as_u64().expect("steps");
    let (golden, last) = (Golden::load(name), format!("latents_{steps}"));
    assert_eq!(golden.find(&last).is_none(), WITHOUT_LATENTS.contains(&name), "{name}: {last}");
    if let Some(expected) = golden.find(&last) {
        common::close(&format!("{name} latents"), &to_vec(latents.clone()), expected, allowed.latents);
    }
    let images = case["images"].as_array().expect("images");
    assert_eq!(images.len(), requests.len(), "{name}");
    for (i, (image, request)) in images.iter().zip(&requests).enumerate() {
        let picture =
            pipeline.picture(latents.clone().narrow(0, i, 1), request, &Unwatched).expect("nobody stops it");
        let file = image["file"].as_str().expect("a file");
        let difference = against_png(&picture, file);
        println!("{file}: {difference:?}");
        assert!(difference.max <= allowed.byte && difference.mean <= allowed.mean, "{file}: {difference:?}");
        assert!(difference.differing_fraction <= allowed.differing, "{file}: {difference:?}");
    }
}

/// Compares with a stored PNG, which may be a crop: then its name says where from.
pub(crate) fn against_png(picture: &Picture, file: &str) -> Difference {
    let (w, h, golden) = read_png_rgb(&dg_testkit::data_dir().join("golden").join(file));
    let corner = |axis: &str| -> usize {
        let tail = file.split_once("_crop_").map_or("", |(_, tail)| tail.trim_end_matches(".png"));
        tail.split('_').find_map(|part| part.strip_prefix(axis)).map_or(0, |n| n.parse().expect("a number"))
    };
    let (x, y, width) = (corner("x"), corner("y"), picture.size.width() as usize);
    assert!(x + w <= width && y + h <= picture.size.height() as usize, "{file}");
    let row = |r: usize| &picture.rgb[3 * ((y + r) * width + x)..][..3 * w];
    let ours: Vec<u8> = (0..h).flat_map(|r| row(r).iter().copied()).collect();
    image_difference(&ours, &golden)
}

fn check_all(model: &str, dtype: DType, at_least: usize) {
    let manifest = dg_testkit::manifest();
    let cases = of(&manifest, model, dtype);
    assert!(cases.len() >= at_least, "{model} {dtype}: {} cases", cases.len());
    common::on_two_threads(|| {
        let mut pipeline = common::pipeline(&common::repo(model), dtype);
        for (name, case) in cases {
            check(name, case, &mut pipeline);
        }
    });
}

#[test]
fn dev_in_float32() {
    check_all("tiny-dev", DType::Float32, 23);
}

#[test]
fn schnell_in_float32() {
    check_all("tiny-schnell", DType::Float32, 3);
}

#[test]
fn dev_in_bfloat16() {
    check_all("tiny-dev", DType::Bfloat16, 1);
}

#[test]
fn schnell_in_bfloat16() {
    check_all("tiny-schnell", DType::Bfloat16, 1);
}
