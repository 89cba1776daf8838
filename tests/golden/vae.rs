//! The autoencoder, stage by stage.

use super::common;
use burn::tensor::Tensor;
use dg_flux::tiling::Tiling;
use dg_flux::vae::{Decoder, Encoder};
use dg_kernels::{Precision, from_vec, to_vec};
use dg_testkit::{Golden, GoldenTensor, read_png_rgb};

const P: Precision = Precision::F32;

fn tensor(golden: &GoldenTensor) -> Tensor<4> {
    let shape: [usize; 4] = golden.shape.as_slice().try_into().expect("four dimensions");
    from_vec(golden.whole().to_vec(), shape, &dg_flux::cpu())
}

fn check_decoder(model: &str, case: &str) {
    let repo = common::repo(model);
    let golden = Golden::load(case);
    let files =
        dg_flux::weights::WeightFiles::open(repo.source(), "vae", "diffusion_pytorch_model").expect("a VAE");
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
    let files =
        dg_flux::weights::WeightFiles::open(repo.source(), "vae", "diffusion_pytorch_model").expect("a VAE");
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
