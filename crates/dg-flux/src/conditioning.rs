//! What steers every block: time, guidance and pooled prompt, in one vector per image.

use crate::ModelError;
use crate::weights::{Linear, Loader};
use burn::tensor::{Tensor, bf16};
use dg_core::TimeDtype;
use dg_core::shape::TransformerShape;
use dg_kernels::{self as k, Activation, Precision};

/// Width of the sinusoid.
const SINUSOID: usize = 256;

/// Time and guidance of one image at one step, as the transformer sees them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// 1000·σ.
    pub time: f32,
    /// 1000·guidance scale.
    pub guidance: f32,
}

impl Moment {
    /// From the scheduler's timestep (1000·σ) and the guidance scale.
    ///
    /// The pipeline divides the timestep by 1000 and the transformer multiplies it again. In bf16
    /// diffusers rounds time and guidance on the way, which moves 3500 to 3504: `TimeDtype::Model`
    /// does the same, `TimeDtype::Float32` keeps them.
    pub fn new(timestep: f32, guidance_scale: f64, p: Precision, dtype: TimeDtype) -> Self {
        let g = guidance_scale as f32;
        match (p, dtype) {
            (Precision::Bf16, TimeDtype::Model) => Self {
                time: round(1000.0 * round(round(timestep) / 1000.0)),
                guidance: round(1000.0 * round(g)),
            },
            _ => Self { time: timestep / 1000.0 * 1000.0, guidance: g * 1000.0 },
        }
    }
}

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// `time_text_embed`: the three embedders whose sum conditions all modulations.
pub struct Conditioning {
    time: Mlp,
    guidance: Option<Mlp>,
    text: Mlp,
    precision: Precision,
}

struct Mlp {
    first: Linear,
    second: Linear,
}

impl Conditioning {
    /// Takes the weights under `time_text_embed.`.
    pub fn load(w: &Loader<'_>, shape: &TransformerShape) -> Result<Self, ModelError> {
        let d = shape.width();
        let mlp = |name: &str, inp: usize| -> Result<Mlp, ModelError> {
            let at = format!("time_text_embed.{name}");
            Ok(Mlp {
                first: w.linear(&format!("{at}.linear_1"), inp, d)?,
                second: w.linear(&format!("{at}.linear_2"), d, d)?,
            })
        };
        Ok(Self {
            time: mlp("timestep_embedder", SINUSOID)?,
            guidance: if shape.guidance_embeds { Some(mlp("guidance_embedder", SINUSOID)?) } else { None },
            text: mlp("text_embedder", shape.pooled_width)?,
            precision: w.precision(),
        })
    }

    /// The conditioning vectors `[moments, width]`: moment i with row i mod n of `pooled`
    /// `[n, pooled width]`.
    ///
    /// # Panics
    /// If n does not divide the number of moments.
    pub fn forward(&self, moments: &[Moment], pooled: Tensor<2>) -> Tensor<2> {
        let p = self.precision;
        let wave = |pick: fn(&Moment) -> f32| -> Tensor<2> {
            let values = moments.iter().flat_map(|m| sinusoid(pick(m))).collect();
            k::round(k::from_vec(values, [moments.len(), SINUSOID], &pooled.device()), p)
        };
        let mut c = self.time.forward(wave(|m| m.time));
        if let Some(guidance) = &self.guidance {
            c = k::add(c, guidance.forward(wave(|m| m.guidance)), p);
        }
        let text = self.text.forward(pooled);
        let (moments, n) = (moments.len(), text.dims()[0]);
        assert!(moments.is_multiple_of(n), "{moments} moments for {n} prompts");
        k::add(c, text.repeat_dim(0, moments / n), p)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.second.forward(self.first.forward_then(x, Activation::Silu))
    }
}

/// cos(a·ω) then sin(a·ω) with ω falling from 1 to 10000^(−127/128).
fn sinusoid(a: f32) -> impl Iterator<Item = f32> {
    let angle = move |j: usize| f64::from(a * frequency(j));
    let cos = (0..SINUSOID / 2).map(move |j| angle(j).cos() as f32);
    cos.chain((0..SINUSOID / 2).map(move |j| angle(j).sin() as f32))
}

/// ω of pair `j` as torch's vectorised f32 `exp` gives it on x86-64: the nearest f32, but for two
/// pairs the one above. With an argument of 10 000 (guidance 10) one such step turns the sinusoid by
/// 3e-4 radians, which can be seen in the latents.
fn frequency(j: usize) -> f32 {
    let exponent = -(10_000f64.ln() as f32) * j as f32 / (SINUSOID / 2) as f32;
    let nearest = f64::from(exponent).exp() as f32;
    if matches!(j, 12 | 106) { nearest.next_up() } else { nearest }
}
