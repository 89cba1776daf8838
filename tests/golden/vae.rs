//! The autoencoder, stage by stage.

use super::common;
use burn::tensor::Tensor;
use dg_core::{DType, GenerateRequest, ImageSize, Seed, StepEvent, Steps};
use dg_flux::tiling::Tiling;
use dg_flux::vae::{Decoder, Encoder};
use dg_flux::watch::Watch;
use dg_flux::weights::WeightFiles;
use dg_flux::{FreeMemory, ModelRepo};
use dg_kernels::{Precision, from_vec, to_vec};
use dg_testkit::{Golden, GoldenTensor, read_png_rgb};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const P: Precision = Precision::F32;

fn tensor(golden: &GoldenTensor) -> Tensor<4> {
    let shape: [usize; 4] = golden.shape.as_slice().try_into().expect("four dimensions");
    from_vec(golden.whole().to_vec(), shape, &dg_flux::cpu())
}

fn vae_files(repo: &ModelRepo) -> WeightFiles {
    WeightFiles::open(repo.source(), "vae", "diffusion_pytorch_model").expect("a VAE")
}

fn check_decoder(model: &str, case: &str) {
    let repo = common::repo(model);
    let golden = Golden::load(case);
    let files = vae_files(&repo);
    let loader = files.loader(&dg_flux::cpu(), P);
    let decoder = Decoder::load(&loader, &repo.shape().vae).expect("a decoder");
    let z = tensor(golden.tensor("z"));
    let mut compared = 0;
    let compare = &mut |name: &str, x: &Tensor<4>| {
        if let Some(expected) = golden.find(name) {
            common::close(&format!("{case} {name}"), &to_vec(x.clone()), expected, 1e-5);
            compared += 1;
        }
        Ok(())
    };
    decoder.forward(z.clone(), compare).expect("nobody stops it");
    let banded = decoder.forward_in_bands(z.clone(), 1 << 14, &mut || Ok(())).expect("nobody stops it");
    common::close(&format!("{case} in bands"), &to_vec(banded), golden.tensor("decoded"), 1e-5);
    assert!(compared >= 3, "{compared} stages");
    if let Some(expected) = golden.find("decoded_tiled") {
        let tiling = Tiling::new(&repo.shape().vae);
        let tiled = tiling.decode(z, P, |z| decoder.forward(z, &mut |_, _| Ok(()))).expect("nobody stops it");
        common::close(&format!("{case} tiled"), &to_vec(tiled), expected, 1e-5);
    }
    assert!(loader.unused(&["encoder."]).is_empty());
}

fn check_encoder(model: &str, case: &str) {
    let repo = common::repo(model);
    let golden = Golden::load(case);
    let files = vae_files(&repo);
    let encoder = Encoder::load(&files.loader(&dg_flux::cpu(), P), &repo.shape().vae).expect("an encoder");
    let (w, h, rgb) = read_png_rgb(&dg_testkit::data_dir().join("golden/dev_img2img_resize_input.png"));
    let value = |c: usize, i: usize| f32::from(rgb[3 * i + c]) / 255.0 * 2.0 - 1.0;
    let planes: Vec<f32> =
        (0..3).flat_map(|c| (0..w * h).map(move |i| (c, i))).map(|(c, i)| value(c, i)).collect();
    let picture = from_vec(planes, [1, 3, h, w], &dg_flux::cpu());
    let (mean, logvar) = encoder.forward(picture, &mut |_, _| Ok(())).expect("nobody stops it");
    common::close(&format!("{case} mean"), &to_vec(mean.clone()), golden.tensor("encoder_mean"), 1e-5);
    common::close(&format!("{case} logvar"), &to_vec(logvar.clone()), golden.tensor("encoder_logvar"), 1e-5);
    let noise = dg_flux::rng::Generator::new(5).randn(mean.dims().iter().product());
    let noise = from_vec(noise, mean.dims(), &dg_flux::cpu());
    let sample = mean + (logvar * 0.5).exp() * noise;
    common::close(&format!("{case} sample"), &to_vec(sample), golden.tensor("encoder_sample_seed_5"), 2e-5);
}

/// Bands of every height from one row on, the last of which is often smaller, of two pictures with odd sides. Plain
/// burn operations, as on devices, may round differently.
#[test]
fn bands_change_no_bit() {
    for (model, p) in [("tiny-dev", P), ("tiny-schnell", P), ("tiny-dev", Precision::Bf16)] {
        let repo = common::repo(model);
        let (files, shape) = (vae_files(&repo), &repo.shape().vae);
        let decoder = Decoder::load(&files.loader(&dg_flux::cpu(), p), shape).expect("a decoder");
        let dims = [2, shape.latent_channels, 10, 13];
        let z = from_vec(dg_flux::rng::Generator::new(3).randn(dims.iter().product()), dims, &dg_flux::cpu());
        let whole = decoder.forward(z.clone(), &mut |_, _| Ok(())).expect("nobody stops it");
        let whole = to_vec(whole);
        let differs = |(a, b): (&f32, &f32)| match dg_kernels::path() {
            "portable" => (a - b).abs() > if p == P { 1e-5 } else { 0.1 },
            _ => a.to_bits() != b.to_bits(),
        };
        // a row of the widest map has 32 channels
        let row = 2 * 4 * 32 * 8 * 13;
        for bytes in [1, row, 2 * row, 3 * row, 7 * row, 11 * row, 40 * row, u64::MAX] {
            let mut bands = 0;
            let count = &mut || {
                bands += 1;
                Ok(())
            };
            let banded = decoder.forward_in_bands(z.clone(), bytes, count).expect("nobody stops it");
            let different = to_vec(banded).iter().zip(&whole).filter(|pair| differs(*pair)).count();
            assert_eq!(different, 0, "{model} {p:?}: bands of {bytes} bytes");
            assert!((bands > 100) == (bytes < 4 * row), "{bands} bands of {bytes} bytes");
        }
    }
}

/// What is free is asked once for each picture, and does not change it.
#[test]
fn little_memory_gives_the_same_picture() {
    let (repo, asked) = (common::repo("tiny-dev"), Arc::new(AtomicUsize::new(0)));
    let (size, _) = ImageSize::fit(240, 176).expect("a size");
    let mut request = GenerateRequest::new("a red apple", size, Seed(4));
    request.num_inference_steps = Steps::try_from(1).expect("steps");
    let draw = |free: Option<u64>| {
        let asked = asked.clone();
        let free = FreeMemory::new(move || {
            asked.fetch_add(1, Relaxed);
            free
        });
        let mut pipeline = common::pipeline_with(&repo, DType::Float32, [Some(free), None]);
        let (checks, batch) = (Cell::new(0), std::slice::from_ref(&request));
        let pictures = pipeline.generate(batch, &mut Counting(&checks)).expect("a picture");
        (pictures[0].pixels_blake3.clone(), checks.get())
    };
    let plenty = draw(Some(u64::MAX));
    for free in [Some(0), Some(2 << 20)] {
        let short = draw(free);
        assert!(short.0 == plenty.0 && short.1 > plenty.1, "{short:?} {plenty:?}");
    }
    assert_eq!(draw(None), plenty, "who does not know takes all at once");
    assert_eq!(asked.load(Relaxed), 4);
}

/// Counts how often it is asked whether to stop.
struct Counting<'a>(&'a Cell<usize>);

impl Watch for Counting<'_> {
    fn event(&mut self, _: StepEvent) {}

    fn stop(&self) -> bool {
        self.0.set(self.0.get() + 1);
        false
    }
}

#[test]
fn decoder_of_dev_whole_and_tiled() {
    check_decoder("tiny-dev", "vae_dev");
}

#[test]
fn decoder_of_schnell() {
    check_decoder("tiny-schnell", "vae_schnell");
}

#[test]
fn encoders() {
    check_encoder("tiny-dev", "vae_dev");
    check_encoder("tiny-schnell", "vae_schnell");
}
