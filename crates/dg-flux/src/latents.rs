//! Between noise, packed tokens and the VAE's latents.

use crate::rng::Generator;
use burn::tensor::{Device, Tensor};
use dg_core::{GenerateRequest, ImageSize};
use dg_kernels::Precision;

/// The starting noise of each request as packed tokens `[images, tokens, 4·channels]`.
pub fn noise(requests: &[GenerateRequest], channels: usize, device: &Device, p: Precision) -> Tensor<3> {
    let size = requests[0].size;
    let (h, w) = (size.latent_height(), size.latent_width());
    let n = channels * h * w;
    let mut all = Vec::with_capacity(n * requests.len());
    for r in requests {
        let mut generator = Generator::new(r.seed.0);
        generator.skip_randn(n, r.noise_index.count());
        all.extend(generator.randn(n));
    }
    let z = dg_kernels::from_vec(all, [requests.len(), channels, h, w], device);
    dg_kernels::round(pack(z), p)
}

/// `[b, c, h, w]` → `[b, h/2·w/2, 4c]`: token (y, x) holds for each channel its 2×2 latents.
pub fn pack(z: Tensor<4>) -> Tensor<3> {
    let [b, c, h, w] = z.dims();
    z.reshape([b, c, h / 2, 2, w / 2, 2]).permute([0, 2, 4, 1, 3, 5]).reshape([b, h * w / 4, c * 4])
}

/// The inverse of [`pack`] for a picture of `size`.
pub fn unpack(x: Tensor<3>, size: ImageSize) -> Tensor<4> {
    let [b, _, c] = x.dims();
    let (h, w) = (size.latent_height(), size.latent_width());
    x.reshape([b, h / 2, w / 2, c / 4, 2, 2]).permute([0, 3, 1, 4, 2, 5]).reshape([b, c / 4, h, w])
}

/// Position ids (0, row, column) of the image tokens, row-major. In bf16 the ids are bf16 too, exact
/// up to 256 tokens a side.
pub fn image_ids(size: ImageSize, p: Precision) -> Vec<[f64; 3]> {
    let (rows, columns) = (size.latent_height() / 2, size.latent_width() / 2);
    let id = move |i: usize| match p {
        Precision::F32 => i as f64,
        Precision::Bf16 => f64::from(burn::tensor::bf16::from_f64(i as f64).to_f32()),
    };
    (0..rows).flat_map(|y| (0..columns).map(move |x| [0.0, id(y), id(x)])).collect()
}
