//! What time, guidance and pooled prompt say to every block: the scales, shifts and gates.
//!
//! They do not depend on the latents. So they are computed ahead of the denoising loop, for many
//! steps in one product per layer: each weight is read once instead of once per step. In FLUX.1 27 %
//! of all weights are here, and their pages are given back before the first step. A row has the same
//! bits however many are computed together.
//!
//! Shapes: r rows, one per image (and CFG branch) and step; D = heads · head_dim.

use crate::ModelError;
use crate::conditioning::{Conditioning, Moment};
use crate::watch::{Cancelled, Watch};
use crate::weights::{Linear, Loader, Pages};
use burn::tensor::Tensor;
use dg_core::shape::TransformerShape;
use dg_kernels::{self as k, Precision};

/// Bytes of modulations that a denoising loop holds; where one step needs more, one step. 63 rows of
/// FLUX.1's size.
pub const AHEAD_BYTES_MAX: usize = 256 << 20;

/// The weights of the conditioning and of all modulation layers.
pub struct Modulator {
    conditioning: Conditioning,
    double: Vec<[Linear; 2]>,
    single: Vec<Linear>,
    norm_out: Linear,
    pages: Vec<Pages>,
    precision: Precision,
}

/// What all modulation layers say, for one or more rows.
pub struct Modulations {
    /// The conditioning vectors `[r, D]`.
    pub conditioning: Tensor<2>,
    /// Of the image and the text stream of each double block: shift, scale and gate of attention,
    /// then of the MLP, `[r, 6·D]`.
    pub double: Vec<[Tensor<2>; 2]>,
    /// Of each single block: shift, scale, gate, `[r, 3·D]`.
    pub single: Vec<Tensor<2>>,
    /// Of the last norm: scale, shift, `[r, 2·D]`.
    pub norm_out: Tensor<2>,
}

impl Modulator {
    /// Takes the weights of the conditioning and the modulation layers of the transformer.
    pub fn load(w: &Loader<'_>, shape: &TransformerShape) -> Result<Self, ModelError> {
        let (d, mut pages) = (shape.width(), Vec::new());
        let mut linear = |name: String, vectors: usize| {
            pages.extend(w.pages(&format!("{name}.weight")));
            w.linear(&name, d, vectors * d)
        };
        let mut double = Vec::with_capacity(shape.double_blocks);
        for i in 0..shape.double_blocks {
            let mut stream = |norm: &str| linear(format!("transformer_blocks.{i}.{norm}.linear"), 6);
            double.push([stream("norm1")?, stream("norm1_context")?]);
        }
        let single = (0..shape.single_blocks)
            .map(|i| linear(format!("single_transformer_blocks.{i}.norm.linear"), 3))
            .collect::<Result<_, _>>()?;
        let norm_out = linear("norm_out.linear".into(), 2)?;
        let conditioning = Conditioning::load(w, shape)?;
        Ok(Self { conditioning, double, single, norm_out, pages, precision: w.precision() })
    }

    /// The modulations of one row per moment; moment i goes with row i mod n of `pooled`
    /// `[n, pooled width]`, so that the moments of several steps stand one step after the other.
    ///
    /// # Panics
    /// If n does not divide the number of moments.
    pub fn forward(
        &self,
        moments: &[Moment],
        pooled: Tensor<2>,
        watch: &dyn Watch,
    ) -> Result<Modulations, Cancelled> {
        let conditioning = self.conditioning.forward(moments, pooled);
        let c = k::silu(conditioning.clone(), self.precision);
        let say = |linear: &Linear| -> Result<Tensor<2>, Cancelled> {
            watch.check()?;
            Ok(linear.forward(c.clone()))
        };
        let both = |[image, text]: &[Linear; 2]| Ok([say(image)?, say(text)?]);
        Ok(Modulations {
            double: self.double.iter().map(both).collect::<Result<_, _>>()?,
            single: self.single.iter().map(say).collect::<Result<_, _>>()?,
            norm_out: say(&self.norm_out)?,
            conditioning,
        })
    }

    /// Gives back the memory of the mapped weights. They are mapped still, and read again if they
    /// are used again.
    pub fn release(&self) {
        self.pages.iter().for_each(Pages::release);
    }
}

impl Modulations {
    /// The modulations of `len` rows from `start` on.
    pub fn rows(&self, start: usize, len: usize) -> Self {
        let part = |t: &Tensor<2>| t.clone().narrow(0, start, len);
        Self {
            conditioning: part(&self.conditioning),
            double: self.double.iter().map(|both| both.each_ref().map(part)).collect(),
            single: self.single.iter().map(part).collect(),
            norm_out: part(&self.norm_out),
        }
    }

    /// Bytes of one row in f32.
    pub fn row_bytes(shape: &TransformerShape) -> usize {
        let vectors = 1 + 12 * shape.double_blocks + 3 * shape.single_blocks + 2;
        vectors * shape.width() * size_of::<f32>()
    }
}

/// The modulations of a run, computed as many steps ahead as a limit of memory allows.
pub struct Ahead<'a> {
    modulator: &'a Modulator,
    /// Of all steps, the rows of one step together.
    moments: Vec<Moment>,
    /// One row for each row of a step.
    pooled: Tensor<2>,
    rows: usize,
    steps_max: usize,
    /// The first step that `known` holds.
    first: usize,
    known: Option<Modulations>,
}

impl<'a> Ahead<'a> {
    /// For the `moments` of all steps, those of one step together, one for each row of `pooled`
    /// `[rows, pooled width]`. Holds `bytes_max` bytes, or the modulations of one step.
    pub fn new(
        modulator: &'a Modulator,
        shape: &TransformerShape,
        moments: Vec<Moment>,
        pooled: Tensor<2>,
        bytes_max: usize,
    ) -> Self {
        let rows = pooled.dims()[0];
        let steps_max = (bytes_max / (rows * Modulations::row_bytes(shape)).max(1)).max(1);
        Self { modulator, moments, pooled, rows, steps_max, first: 0, known: None }
    }

    /// The modulations of step `i`. Steps are asked for in order.
    pub fn step(&mut self, i: usize, watch: &dyn Watch) -> Result<Modulations, Cancelled> {
        if self.known.is_none() || i >= self.first + self.steps_max {
            // before the next ones take its place
            self.known = None;
            let rest = &self.moments[i * self.rows..];
            let now = &rest[..rest.len().min(self.steps_max * self.rows)];
            let known = self.modulator.forward(now, self.pooled.clone(), watch)?;
            if now.len() == rest.len() {
                self.modulator.release();
            }
            (self.first, self.known) = (i, Some(known));
        }
        let known = self.known.as_ref().expect("computed above");
        Ok(known.rows((i - self.first) * self.rows, self.rows))
    }
}
