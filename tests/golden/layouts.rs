//! The same pictures from four ranks, and how far PipeFusion's are from them.

use super::cases::{self, Allowed, against_png};
use super::common;
use dg_core::{DType, GenerateRequest, ImageSize, Seed, Steps};
use dg_flux::{ModelRepo, Picture};
use dg_plan::{Ask, Layout, Pipeline};
use dg_runtime::{Cluster, EngineOptions, Parallel};
use dg_testkit::{image_difference, read_json, read_png_rgb};
use std::num::NonZeroUsize;

/// A model on the ranks of a layout.
struct Team {
    runtime: tokio::runtime::Runtime,
    cluster: Cluster,
}

impl Team {
    fn new(repo: ModelRepo, ask: Ask, request_images: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("threads");
        let parallel = Parallel { ask, request_images, ..Parallel::default() };
        let options = EngineOptions { threads: NonZeroUsize::MIN, parallel, ..EngineOptions::default() };
        let cluster = runtime.block_on(Cluster::start(repo, options)).expect("a legal layout");
        Self { runtime, cluster }
    }

    fn draw(&self, batch: Vec<GenerateRequest>) -> Vec<Picture> {
        self.runtime.block_on(self.cluster.submit(batch).finish()).expect("pictures")
    }
}

fn layout(cfg: u32, pp: u32, ring: u32, ulysses: u32) -> Layout {
    Layout { cfg, pp, ring, ulysses, ..Layout::SERIAL }
}

/// Four ranks that can draw the pictures of one request exactly, with a model of `heads` heads.
fn exact_layouts(requests: &[GenerateRequest], heads: usize) -> Vec<Layout> {
    let streams = requests.len() * (1 + usize::from(requests[0].active_negative().is_some()));
    let mut all = vec![layout(1, 1, 1, 4), layout(1, 1, 2, 2), layout(1, 1, 4, 1)];
    if requests[0].active_negative().is_some() {
        all.extend([layout(2, 1, 1, 2), layout(2, 1, 2, 1), layout(1, 2, 1, 2)]);
    }
    if streams >= 4 {
        all.push(layout(1, 4, 1, 1));
    }
    all.retain(|l| l.ulysses as usize <= heads);
    all
}

#[test]
fn four_ranks_draw_the_stored_pictures() {
    let manifest = dg_testkit::manifest();
    for model in ["tiny-dev", "tiny-schnell"] {
        for (i, (name, case)) in cases::of(&manifest, model, DType::Float32).into_iter().enumerate() {
            let (requests, allowed) = (common::requests(case), Allowed::for_case(case));
            let repo = common::repo(model);
            let layouts = exact_layouts(&requests, repo.shape().transformer.heads);
            let layout = layouts[i % layouts.len()];
            let ask = Ask { pipeline: Pipeline::Exact, ..Ask::layout(layout) };
            let pictures = Team::new(repo, ask, requests.len()).draw(requests);
            for (image, picture) in case["images"].as_array().expect("images").iter().zip(&pictures) {
                let file = image["file"].as_str().expect("a file");
                let difference = against_png(picture, file);
                println!("{name} by {layout}: {file}: {difference:?}");
                assert!(difference.max <= allowed.byte, "{file} by {layout}: {difference:?}");
                let differing = difference.differing_fraction;
                assert!(differing <= allowed.differing, "{file} by {layout}: {difference:?}");
            }
        }
    }
}

#[test]
fn four_ranks_draw_the_five_pictures_of_the_demo_model() {
    let folder = dg_testkit::data_dir().join("demo");
    let manifest = read_json(&folder.join("manifest.json"));
    let images = manifest["images"].as_array().expect("images");
    for (i, image) in images.iter().enumerate() {
        let requests = common::requests(image);
        let layouts = exact_layouts(&requests, common::demo().shape().transformer.heads);
        let layout = layouts[i % layouts.len()];
        let ask = Ask { pipeline: Pipeline::Exact, ..Ask::layout(layout) };
        let pictures = Team::new(common::demo(), ask, 1).draw(requests);
        let file = image["file"].as_str().expect("a file");
        let (_, _, golden) = read_png_rgb(&folder.join(file));
        let difference = image_difference(&pictures[0].rgb, &golden);
        println!("{file} by {layout}: {difference:?}");
        assert!(difference.max <= 1 && difference.differing_fraction <= 0.0005, "{file}: {difference:?}");
    }
}

/// Peak signal to noise of one picture against another, in dB.
fn psnr(a: &Picture, b: &Picture) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let mean = a.rgb.iter().zip(&b.rgb).map(square).sum::<f64>() / a.rgb.len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}

/// Draws `request` in four stages with as many patches, and the serial one; their PSNR.
fn drift(repo: fn() -> ModelRepo, request: &GenerateRequest, warmup: usize) -> f64 {
    let stale = Ask { pipeline: Pipeline::Stale, warmup, ..Ask::layout(layout(1, 4, 1, 1)) };
    let [stale, serial] = [stale, Ask::layout(Layout::SERIAL)]
        .map(|ask| Team::new(repo(), ask, 1).draw(vec![request.clone()]).remove(0));
    assert_ne!(stale.latents_blake3, serial.latents_blake3, "it is not stale");
    psnr(&stale, &serial)
}

#[test]
fn pipefusion_drifts_and_not_far() {
    let folder = dg_testkit::data_dir().join("demo");
    let manifest = read_json(&folder.join("manifest.json"));
    for image in manifest["images"].as_array().expect("images") {
        let request = common::requests(image).remove(0);
        let all = [1, 4].map(|warmup| drift(common::demo, &request, warmup));
        println!("demo, {:?}: {all:.1?} dB after 1 and 4 synchronous steps", request.prompt);
        assert!(all.iter().all(|db| *db > 38.0), "{:?}: {all:.1?}", request.prompt);
    }
    let (size, _) = ImageSize::fit(256, 256).expect("a size");
    for seed in 0..2 {
        let mut request = GenerateRequest::new("a red apple on a table", size, Seed(seed));
        request.num_inference_steps = Steps::try_from(12).expect("steps");
        let all = [1, 4].map(|warmup| drift(|| common::repo("tiny-dev"), &request, warmup));
        println!("tiny-dev, seed {seed}: {all:.1?} dB after 1 and 4 synchronous steps");
        assert!(all.iter().all(|db| *db > 38.0), "seed {seed}: {all:.1?}");
    }
}
