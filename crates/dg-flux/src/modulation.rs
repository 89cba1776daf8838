//! What time, guidance and pooled prompt say to every block: the scales, shifts and gates.
//!
//! They do not depend on the latents. So they are computed ahead of the denoising loop, for many
//! steps in one product per layer: each weight is read once instead of once per step. In FLUX.1 27 %
//! of all weights are here, and their pages are given back after the last such product. A row has the
//! same bits however many are computed together.
//!
//! Shapes: r rows, one per image (and CFG branch) and step; D = heads · head_dim.

use crate::conditioning::{Conditioning, Moment};
use crate::stage::{self, Stage};
use crate::turns::Turns;
use crate::watch::Watch;
use crate::weights::{Linear, Loader, Pages};
use crate::{ModelError, PassError};
use burn::tensor::Tensor;
use dg_core::shape::TransformerShape;
use dg_kernels::{self as k, Precision};
use std::ops::Range;

/// Bytes of modulations that a denoising loop holds; where one step needs more, one step. 63 rows of
/// FLUX.1's size.
pub const AHEAD_BYTES_MAX: u64 = 256 << 20;

/// The weights of the conditioning and of the modulation layers of all blocks, or of those of one stage.
pub struct Modulator {
    conditioning: Conditioning,
    double: Vec<[Linear; 2]>,
    single: Vec<Linear>,
    norm_out: Option<Linear>,
    width: usize,
    /// One layer after the other, as [`forward`](Self::forward) goes through them.
    turns: Turns,
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
    /// Of the last norm: scale, shift, `[r, 2·D]`; on the last stage only.
    pub norm_out: Option<Tensor<2>>,
}

impl Modulator {
    /// Takes the weights of the conditioning and the modulation layers of the transformer.
    pub fn load(w: &Loader<'_>, shape: &TransformerShape) -> Result<Self, ModelError> {
        Self::load_stage(w, shape, stage::all(shape))
    }

    /// The same for the blocks `blocks` alone, double blocks numbered first; with the last norm if the last block is
    /// among them.
    pub fn load_stage(
        w: &Loader<'_>,
        shape: &TransformerShape,
        blocks: Range<usize>,
    ) -> Result<Self, ModelError> {
        let (d, mut layers) = (shape.width(), Vec::new());
        let mut linear = |name: String, vectors: usize| -> Result<Linear, ModelError> {
            let (linear, pages) = w.with_pages(|w| w.linear(&name, d, vectors * d))?;
            layers.push(pages);
            Ok(linear)
        };
        let stage = Stage::new(shape, &blocks);
        let mut double = Vec::with_capacity(stage.double.len());
        for i in stage.double {
            let mut stream = |norm: &str| linear(format!("transformer_blocks.{i}.{norm}.linear"), 6);
            double.push([stream("norm1")?, stream("norm1_context")?]);
        }
        let single = stage
            .single
            .map(|i| linear(format!("single_transformer_blocks.{i}.norm.linear"), 3))
            .collect::<Result<_, _>>()?;
        let norm_out = stage.is_last.then(|| linear("norm_out.linear".into(), 2)).transpose()?;
        let conditioning = Conditioning::load(w, shape)?;
        let (pages, turns) = (layers.concat(), Turns::new(layers, false));
        Ok(Self { conditioning, double, single, norm_out, width: d, turns, pages, precision: w.precision() })
    }

    /// Bytes in f32 of what one row says to the blocks that are here.
    fn row_bytes(&self) -> u64 {
        row_bytes(self.width, self.double.len(), self.single.len(), self.norm_out.is_some())
    }

    /// The modulations of one row per moment; moment i goes with row i mod n of `pooled`
    /// `[n, pooled width]`, so that the moments of several steps stand one step after the other.
    ///
    /// # Errors
    /// If `watch` stops it, or weights cannot be read.
    ///
    /// # Panics
    /// If n does not divide the number of moments.
    pub fn forward(
        &self,
        moments: &[Moment],
        pooled: Tensor<2>,
        watch: &dyn Watch,
    ) -> Result<Modulations, PassError> {
        let conditioning = self.conditioning.forward(moments, pooled);
        let c = k::silu(conditioning.clone(), self.precision);
        let mut turn = 0..;
        let mut say = |linear: &Linear| -> Result<Tensor<2>, PassError> {
            let turn = turn.next().unwrap_or_default();
            watch.check()?;
            self.turns.begin(turn, watch)?;
            let said = linear.forward(c.clone());
            self.turns.end(turn);
            Ok(said)
        };
        let mut double = Vec::with_capacity(self.double.len());
        for [image, text] in &self.double {
            double.push([say(image)?, say(text)?]);
        }
        Ok(Modulations {
            double,
            single: self.single.iter().map(&mut say).collect::<Result<_, _>>()?,
            norm_out: self.norm_out.as_ref().map(say).transpose()?,
            conditioning,
        })
    }

    /// How layers whose weights are mapped are read, see [`Turns::keep`].
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
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
            norm_out: self.norm_out.as_ref().map(part),
        }
    }

    /// Bytes of one row in f32, for all blocks.
    pub fn row_bytes(shape: &TransformerShape) -> u64 {
        let width = shape.heads.saturating_mul(shape.head_dim);
        row_bytes(width, shape.double_blocks, shape.single_blocks, true)
    }
}

fn row_bytes(width: usize, double: usize, single: usize, has_end: bool) -> u64 {
    let blocks = |count: usize, vectors: u64| vectors.saturating_mul(count as u64);
    let vectors = blocks(double, 12).saturating_add(blocks(single, 3));
    // the conditioning, and two of the last norm
    let values = vectors.saturating_add(1 + 2 * u64::from(has_end)).saturating_mul(width as u64);
    values.saturating_mul(size_of::<f32>() as u64)
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
    pub fn new(modulator: &'a Modulator, moments: Vec<Moment>, pooled: Tensor<2>, bytes_max: u64) -> Self {
        let rows = pooled.dims()[0];
        let steps_max = steps_at_once(modulator.row_bytes(), rows, bytes_max);
        Self { modulator, moments, pooled, rows, steps_max, first: 0, known: None }
    }

    /// Bytes that it holds for `steps` steps of `rows` rows, within [`AHEAD_BYTES_MAX`].
    pub fn bytes(shape: &TransformerShape, rows: usize, steps: usize) -> u64 {
        let rows_held = rows.saturating_mul(steps.min(steps_at_once(
            Modulations::row_bytes(shape),
            rows,
            AHEAD_BYTES_MAX,
        )));
        Modulations::row_bytes(shape).saturating_mul(rows_held as u64)
    }

    /// The modulations of step `i`. Steps are asked for in order.
    pub fn step(&mut self, i: usize, watch: &dyn Watch) -> Result<Modulations, PassError> {
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

fn steps_at_once(row_bytes: u64, rows: usize, bytes_max: u64) -> usize {
    let step = row_bytes.saturating_mul(rows as u64).max(1);
    usize::try_from(bytes_max / step).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flux_holds_its_limit_at_most() {
        let dev = TransformerShape {
            heads: 24,
            head_dim: 128,
            double_blocks: 19,
            single_blocks: 38,
            in_channels: 64,
            text_width: 4096,
            pooled_width: 768,
            guidance_embeds: true,
            axes_dims_rope: vec![16, 56, 56],
        };
        assert_eq!(Modulations::row_bytes(&dev), (19 * 12 + 38 * 3 + 3) * 3072 * 4);
        for (rows, steps, held) in [(1, 50, 50), (1, 100, 63), (8, 50, 56), (100, 50, 100)] {
            assert_eq!(Ahead::bytes(&dev, rows, steps), held * Modulations::row_bytes(&dev), "{rows}");
        }
        // nothing that a config can say overflows
        let huge = TransformerShape { heads: 1 << 20, head_dim: 1 << 20, double_blocks: usize::MAX, ..dev };
        assert_eq!(Ahead::bytes(&huge, 8, 50), u64::MAX);
    }
}
