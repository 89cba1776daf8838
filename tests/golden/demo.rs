//! The model in the program draws what diffusers draws with it.

use super::common;
use dg_core::DType;
use dg_flux::watch::Unwatched;
use dg_testkit::{image_difference, read_json, read_png_rgb};

#[test]
fn the_five_pictures_of_the_demo_model() {
    let folder = dg_testkit::data_dir().join("demo");
    let manifest = read_json(&folder.join("manifest.json"));
    let images = manifest["images"].as_array().expect("images");
    assert_eq!(images.len(), 5);
    common::on_two_threads(|| {
        let mut pipeline = common::pipeline(&common::demo(), DType::Float32);
        for image in images {
            let pictures =
                pipeline.generate(&common::requests(image), &mut Unwatched).expect("nobody stops it");
            let file = image["file"].as_str().expect("a file");
            let (_, _, golden) = read_png_rgb(&folder.join(file));
            let difference = image_difference(&pictures[0].rgb, &golden);
            println!("{file}: {difference:?}");
            assert!(difference.max <= 1, "{file}: {difference:?}");
            assert!(difference.differing_fraction <= 0.0005, "{file}: {difference:?}");
        }
    });
}

#[test]
fn its_defaults_are_its_own() {
    let defaults = common::demo().defaults().clone();
    assert_eq!((defaults.width, defaults.num_inference_steps), (Some(128), Some(12)));
    assert_eq!(defaults.negative_prompt.as_deref(), Some(""));
}
