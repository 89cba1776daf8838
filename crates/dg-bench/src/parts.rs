//! The parts of a picture, each on inputs of random values.

use crate::measure::repeat;
use crate::{Failure, Run};
use burn::tensor::Tensor;
use dg_core::shape::BAND_BYTES;
use dg_core::{ImageSize, ModelShape};
use dg_flux::attend::Serial;
use dg_flux::conditioning::Moment;
use dg_flux::modulation::Modulator;
use dg_flux::rng::Generator;
use dg_flux::rope::Rope;
use dg_flux::transformer::{Inputs, Transformer};
use dg_flux::watch::Unwatched;
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelConfig, ModelSource, clip::Clip, t5::T5, vae::Decoder};
use dg_kernels::{Precision, from_vec, round};
use serde_json::Value;

fn open(run: &Run, component: &str, base: &str) -> Result<(ModelShape, WeightFiles), Failure> {
    let source = ModelSource::Folder(run.folder()?);
    let shape = ModelConfig::read(&source)?.shape;
    Ok((shape, WeightFiles::open(&source, component, base)?))
}

/// Standard normal values from the generator of the starting noise, rounded.
fn normal<const N: usize>(seed: u64, shape: [usize; N], p: Precision) -> Tensor<N> {
    let values = Generator::new(seed).randn(shape.iter().product());
    round(from_vec(values, shape, &dg_flux::cpu()), p)
}

/// One forward pass of one image, with the modulations of its step.
pub(crate) fn dit(run: &Run, image_tokens: usize, text_tokens: usize) -> Result<Value, Failure> {
    let (shape, files) = open(run, "transformer", "diffusion_pytorch_model")?;
    let (s, p) = (shape.transformer, run.precision());
    let (device, files) = (dg_flux::cpu(), &files);
    let modulator = Modulator::load(&files.loader(&device, p), &s)?;
    let model = Transformer::load(&files.loader(&device, p), &s)?;
    let mut ids = vec![[0.0; 3]; text_tokens];
    let side = (image_tokens as f64).sqrt().ceil() as usize;
    ids.extend((0..image_tokens).map(|i| [0.0, (i / side) as f64, (i % side) as f64]));
    let rope = Rope::new(&ids, &s.axes_dims_rope, &dg_flux::cpu());
    let moments = [Moment { time: 800.0, guidance: 3500.0 }];
    let (x, text) =
        (normal(1, [1, image_tokens, s.in_channels], p), normal(2, [1, text_tokens, s.text_width], p));
    let pooled = normal(3, [1, s.pooled_width], p);
    let (d, l) = (s.width() as f64, (image_tokens + text_tokens) as f64);
    let linear = 12.0 * d * d * l * (s.double_blocks + s.single_blocks) as f64;
    let attention = 2.0 * d * l * l * (s.double_blocks + s.single_blocks) as f64;
    repeat("dit", run, 2.0 * (linear + attention) * 1e-9, || {
        // a run computes them for all steps at once: this is one step's worth, and more than its share
        let modulations = &modulator.forward(&moments, pooled.clone(), &Unwatched).expect("nobody stops it");
        let inputs = Inputs { x: x.clone(), text: text.clone(), modulations, rope: &rope };
        model.forward(inputs, &mut Serial, &mut Unwatched).expect("nobody stops it");
    })
}

/// Decoding one square picture, at once or in bands.
pub(crate) fn vae(run: &Run, side: u32, bands: bool) -> Result<Value, Failure> {
    let p = run.precision();
    let (shape, files) = open(run, "vae", "diffusion_pytorch_model")?;
    let decoder = Decoder::load(&files.loader(&dg_flux::cpu(), p), &shape.vae)?;
    let (size, _) = ImageSize::fit(side, side)?;
    let z = normal(1, [1, shape.vae.latent_channels, size.latent_height(), size.latent_width()], p);
    repeat(if bands { "vae in bands" } else { "vae" }, run, 0.0, || match bands {
        true => drop(decoder.forward_in_bands(z.clone(), BAND_BYTES, &mut || Ok(()))),
        false => drop(decoder.forward(z.clone(), &mut |_, _| Ok(()))),
    })
}

/// Encoding one prompt of random ids by both encoders.
pub(crate) fn text(run: &Run, tokens: usize) -> Result<Value, Failure> {
    let p = run.precision();
    let (shape, clip_files) = open(run, "text_encoder", "model")?;
    let (_, t5_files) = open(run, "text_encoder_2", "model")?;
    let clip = Clip::load(&clip_files.loader(&dg_flux::cpu(), p), &shape.clip)?;
    let t5 = T5::load(&t5_files.loader(&dg_flux::cpu(), p), &shape.t5)?;
    let ids = |n: usize| vec![(0..n as u32).map(|i| i * 7919 % 1000).collect::<Vec<_>>()];
    let (clip_ids, t5_ids) = (ids(shape.clip.positions), ids(tokens));
    repeat("text", run, 0.0, || {
        drop(clip.pooled(&clip_ids, &mut Unwatched));
        drop(t5.encode(&t5_ids, &mut Unwatched));
    })
}

/// Attention alone, one image.
pub(crate) fn attention(run: &Run, heads: usize, head_dim: usize, tokens: usize) -> Result<Value, Failure> {
    let p = run.precision();
    let part = |seed| normal(seed, [1, tokens, heads, head_dim], p);
    let (q, k, v) = (part(1), part(2), part(3));
    let scale = (head_dim as f32).powf(-0.5);
    let gflop = 4.0 * (heads * head_dim) as f64 * (tokens * tokens) as f64 * 1e-9;
    repeat("attention", run, gflop, || drop(dg_kernels::attention(q.clone(), k.clone(), v.clone(), scale, p)))
}
