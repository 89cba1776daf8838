//! A transformer of random weights that every degree up to 8 divides in some uneven way, and its serial run.

use burn::tensor::Tensor;
use dg_core::shape::TransformerShape;
use dg_core::{DType, ImageSize};
use dg_flux::attend::{Attend, Pass, Serial};
use dg_flux::conditioning::Moment;
use dg_flux::latents::image_ids;
use dg_flux::modulation::{Modulations, Modulator};
use dg_flux::rope::Rope;
use dg_flux::transformer::{Inputs, Transformer};
use dg_flux::watch::Unwatched;
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelSource, PassError, cpu};
use dg_kernels::{Precision, from_vec, round, to_vec};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::sync::OnceLock;

/// Denoising steps of every run here.
pub(crate) const STEPS: usize = 2;
/// σ of each step, and the end.
const SIGMAS: [f32; STEPS + 1] = [1.0, 0.55, 0.0];

/// 9 heads × 16, 3 double and 6 single blocks.
pub(crate) fn shape() -> TransformerShape {
    TransformerShape {
        heads: 9,
        head_dim: 16,
        double_blocks: 3,
        single_blocks: 6,
        in_channels: 16,
        text_width: 24,
        pooled_width: 12,
        guidance_embeds: true,
        axes_dims_rope: vec![4, 6, 6],
    }
}

/// The transformer and what steers it.
pub(crate) struct Model {
    pub(crate) transformer: Transformer,
    pub(crate) modulator: Modulator,
    precision: Precision,
}

/// The model for a run in `dtype`, made once.
pub(crate) fn model(dtype: DType) -> &'static Model {
    static MODELS: [OnceLock<Model>; 2] = [const { OnceLock::new() }; 2];
    let (slot, precision) = match dtype {
        DType::Float32 => (0, Precision::F32),
        DType::Bfloat16 => (1, Precision::Bf16),
    };
    MODELS[slot].get_or_init(|| {
        let bytes: &'static [u8] = Vec::leak(weights(&shape()));
        let source = ModelSource::Embedded(vec![("transformer/model.safetensors", bytes)]);
        let files = WeightFiles::open(&source, "transformer", "model").expect("a file in memory");
        let loader = files.loader(&cpu(), precision);
        let transformer = Transformer::load(&loader, &shape()).expect("all weights of the blocks");
        let modulator = Modulator::load(&loader, &shape()).expect("all weights of the modulations");
        assert_eq!(loader.unused(&[]), Vec::<String>::new());
        Model { transformer, modulator, precision }
    })
}

/// A safetensors file with all weights of a transformer of shape `s`.
pub(crate) fn weights(s: &TransformerShape) -> Vec<u8> {
    let mut names = Vec::new();
    let d = s.width();
    let mut linear = |name: String, inp: usize, out: usize| {
        names.push((format!("{name}.weight"), vec![out, inp]));
        names.push((format!("{name}.bias"), vec![out]));
    };
    linear("x_embedder".into(), s.in_channels, d);
    linear("context_embedder".into(), s.text_width, d);
    linear("proj_out".into(), d, s.in_channels);
    linear("norm_out.linear".into(), d, 2 * d);
    for (name, inp) in [("timestep", 256), ("guidance", 256), ("text", s.pooled_width)] {
        linear(format!("time_text_embed.{name}_embedder.linear_1"), inp, d);
        linear(format!("time_text_embed.{name}_embedder.linear_2"), d, d);
    }
    for i in 0..s.double_blocks {
        let at = format!("transformer_blocks.{i}");
        let square =
            ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"];
        square.iter().for_each(|name| linear(format!("{at}.attn.{name}"), d, d));
        for stream in ["ff", "ff_context"] {
            linear(format!("{at}.{stream}.net.0.proj"), d, 4 * d);
            linear(format!("{at}.{stream}.net.2"), 4 * d, d);
        }
        linear(format!("{at}.norm1.linear"), d, 6 * d);
        linear(format!("{at}.norm1_context.linear"), d, 6 * d);
    }
    for i in 0..s.single_blocks {
        let at = format!("single_transformer_blocks.{i}");
        ["to_q", "to_k", "to_v"].iter().for_each(|name| linear(format!("{at}.attn.{name}"), d, d));
        linear(format!("{at}.proj_mlp"), d, 4 * d);
        linear(format!("{at}.proj_out"), 5 * d, d);
        linear(format!("{at}.norm.linear"), d, 3 * d);
    }
    let norms = |at: String, of: &[&str]| {
        of.iter().map(|n| (format!("{at}.attn.{n}.weight"), vec![s.head_dim])).collect::<Vec<_>>()
    };
    let four = ["norm_q", "norm_k", "norm_added_q", "norm_added_k"];
    names.extend((0..s.double_blocks).flat_map(|i| norms(format!("transformer_blocks.{i}"), &four)));
    names.extend(
        (0..s.single_blocks).flat_map(|i| norms(format!("single_transformer_blocks.{i}"), &four[..2])),
    );
    file(names)
}

fn file(names: Vec<(String, Vec<usize>)>) -> Vec<u8> {
    let values = |(i, (name, dims)): (usize, (String, Vec<usize>))| {
        let n = dims.iter().product();
        let (scale, offset) = match dims[..] {
            [_, inp] => ((inp as f32).powf(-0.5), 0.0),
            _ if name.contains("norm_") && !name.contains("linear") => (0.2, 1.0),
            _ => (0.05, 0.0),
        };
        let values = random(i as u64, n).into_iter().map(|x| x * scale + offset);
        (name, dims, values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
    };
    let all: Vec<_> = names.into_iter().enumerate().map(values).collect();
    serialize(all.iter().map(|(name, dims, bytes)| (name, view(dims, bytes))), None)
        .expect("names are unique")
}

fn view<'a>(dims: &[usize], bytes: &'a [u8]) -> TensorView<'a> {
    TensorView::new(Dtype::F32, dims.to_vec(), bytes).expect("as many values as it says")
}

/// `n` values of mean 0 and variance 1 (SplitMix64).
pub(crate) fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() * 3f32.sqrt()).collect()
}

/// What is to be denoised: `images` pictures of `size` after a text of `text` tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) size: ImageSize,
    pub(crate) text: usize,
    pub(crate) images: usize,
    pub(crate) dtype: DType,
}

/// All rows of a job's inputs.
pub(crate) struct Whole {
    pub(crate) x: Tensor<3>,
    pub(crate) text: Tensor<3>,
    pub(crate) rope: Rope,
    /// Of each step.
    pub(crate) modulations: Vec<Modulations>,
}

impl Job {
    pub(crate) fn new((width, height): (u32, u32), text: usize, images: usize) -> Self {
        let (size, _) = ImageSize::fit(width, height).expect("a size");
        Self { size, text, images, dtype: DType::Float32 }
    }

    pub(crate) fn model(&self) -> &'static Model {
        model(self.dtype)
    }

    pub(crate) fn precision(&self) -> Precision {
        self.model().precision
    }

    pub(crate) fn whole(&self) -> Whole {
        let (s, b, p) = (shape(), self.images, self.precision());
        let tensor =
            |seed, dims: [usize; 3]| round(from_vec(random(seed, dims.iter().product()), dims, &cpu()), p);
        let mut ids = vec![[0.0; 3]; self.text];
        ids.extend(image_ids(self.size, p));
        let pooled = round(from_vec(random(102, b * s.pooled_width), [b, s.pooled_width], &cpu()), p);
        let say = |sigma: &f32| {
            let moments = vec![Moment { time: 1000.0 * sigma, guidance: 3500.0 }; b];
            let modulator = &self.model().modulator;
            modulator.forward(&moments, pooled.clone(), &Unwatched).expect("nobody stops it")
        };
        Whole {
            x: tensor(100, [b, self.size.image_tokens(), s.in_channels]),
            text: tensor(101, [b, self.text, s.text_width]),
            rope: Rope::new(&ids, &s.axes_dims_rope, &cpu()),
            modulations: SIGMAS[..STEPS].iter().map(say).collect(),
        }
    }

    /// The latents of one rank.
    pub(crate) fn serial(&self, whole: &Whole) -> Vec<f32> {
        let x = self.denoise(whole, whole.x.clone(), whole.text.clone(), &whole.rope, &mut Serial);
        to_vec(x.expect("nobody stops it"))
    }

    /// All Euler steps of the tokens in `x` and `text`.
    pub(crate) fn denoise(
        &self,
        whole: &Whole,
        mut x: Tensor<3>,
        text: Tensor<3>,
        rope: &Rope,
        attend: &mut dyn Attend,
    ) -> Result<Tensor<3>, PassError> {
        for (step, modulations) in whole.modulations.iter().enumerate() {
            attend.begin(Pass { step, ..Pass::default() });
            let inputs = Inputs { x: x.clone(), text: text.clone(), modulations, rope };
            let v = self.model().transformer.forward(inputs, attend, &mut Unwatched)?;
            if x.dims()[1] > 0 {
                let p = self.precision();
                let delta = SIGMAS[step + 1] - SIGMAS[step];
                x = round(x + round(v.mul_scalar(delta), p), p);
            }
        }
        Ok(x)
    }
}
