//! The decoder in bands of rows: the same result in about half of the memory.
//!
//! A convolution of a band reads one more row on either side; GroupNorm takes its sums over all bands before the
//! first one is normed. What a band no longer needs goes at once, so that two maps of a level share the memory of
//! little more than one that grows and one that shrinks. The doubled map that the outermost level begins with, the
//! largest of all, is never there: its bands are made when they are needed, once for the sums and once for use.

use super::{Conv, Decoder, GroupNorm, Resnet};
use crate::watch::Cancelled;
use burn::tensor::Tensor;
use dg_kernels::{self as k, GroupMoments};
use std::collections::VecDeque;
use std::ops::Range;

/// Asks whether to go on, before every band.
type Check<'a> = dyn FnMut() -> Result<(), Cancelled> + 'a;

impl Decoder {
    /// [`forward`](Self::forward) in bands of at most `band_bytes` (as f32; at least a row) each. On the CPU's kernels
    /// the same bits, on others the same within rounding.
    pub fn forward_in_bands(
        &self,
        z: Tensor<4>,
        band_bytes: u64,
        check: &mut Check<'_>,
    ) -> Result<Tensor<4>, Cancelled> {
        let cut = Cut { band_bytes };
        let x = self.mid.forward(self.conv_in.forward(z), &mut |_, _| check())?;
        let mut x = Source::Kept(Map::whole(x));
        for (i, level) in self.up.iter().enumerate() {
            for resnet in &level.resnets {
                x = Source::Kept(resnet.forward_in_bands(x, cut, check)?);
            }
            if let Some(conv) = &level.resample {
                let doubled = Source::Doubled(x.into_map(), conv);
                let is_largest = i + 2 == self.up.len();
                x = if is_largest { doubled } else { Source::Kept(doubled.made(cut, check)?) };
            }
        }
        let (mut x, moments) = x.normed_by(&self.norm_out, cut, check)?;
        let mut picture = Map::default();
        for own in cut.bands(&x, x.channels()) {
            check()?;
            let halo = Halo::around(&own, x.height());
            let band = self.norm_out.forward_by(x.rows(&halo.rows), &moments);
            picture.push(halo.without(self.conv_out.forward(band)));
            x.forget(own.end - 1);
        }
        Ok(picture.rows(&(0..picture.height)))
    }
}

impl Resnet {
    fn forward_in_bands(&self, x: Source<'_>, cut: Cut, check: &mut Check<'_>) -> Result<Map, Cancelled> {
        let widest = x.channels().max(self.conv1.weight.dims()[0]);
        let (mut x, moments) = x.normed_by(&self.norm1, cut, check)?;
        let (mut beside, mut inner) = (Map::default(), Map::default());
        for own in cut.bands(&x, widest) {
            check()?;
            let halo = Halo::around(&own, x.height());
            let band = x.rows(&halo.rows);
            let straight = halo.without(band.clone());
            beside.push(match &self.shortcut {
                Some(conv) => k::conv1x1(straight, &conv.weight, &conv.bias, conv.precision),
                None => straight,
            });
            inner.push(halo.without(self.conv1.forward(self.norm1.forward_by(band, &moments))));
            x.forget(own.end - 1);
        }
        drop(x);
        let (mut inner, moments) = Source::Kept(inner).normed_by(&self.norm2, cut, check)?;
        let mut out = Map::default();
        for own in cut.bands(&inner, widest) {
            check()?;
            let halo = Halo::around(&own, inner.height());
            let band = self.norm2.forward_by(inner.rows(&halo.rows), &moments);
            inner.forget(own.end - 1);
            let band = halo.without(self.conv2.forward(band));
            out.push(k::add(band, beside.rows(&own), self.conv2.precision));
            beside.forget(own.end);
        }
        Ok(out)
    }
}

impl GroupNorm {
    /// Before SiLU, of some rows of the map with these moments.
    fn forward_by(&self, x: Tensor<4>, moments: &GroupMoments) -> Tensor<4> {
        k::group_norm_by(x, moments, &self.weight, &self.bias, super::EPS, true, self.precision)
    }
}

/// How maps are cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Of one band, as f32.
    band_bytes: u64,
}

impl Cut {
    /// Bands of rows of `x` that hold `channels` channels each.
    fn bands(self, x: &Source<'_>, channels: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let ([images, width], height) = (x.images_and_width(), x.height());
        let row = 4 * (images * channels * width) as u64;
        let most = usize::try_from(self.band_bytes / row).unwrap_or(height).clamp(1, height);
        let step = height.div_ceil(height.div_ceil(most));
        (0..height).step_by(step).map(move |first| first..height.min(first + step))
    }
}

/// The rows that a 3×3 convolution reads for its own.
struct Halo {
    rows: Range<usize>,
    above: usize,
    own: usize,
}

impl Halo {
    fn around(own: &Range<usize>, height: usize) -> Self {
        let rows = own.start.saturating_sub(1)..height.min(own.end + 1);
        Self { above: own.start - rows.start, own: own.len(), rows }
    }

    /// The own rows of what was computed from all. Those beside them are not those of the map.
    fn without(&self, x: Tensor<4>) -> Tensor<4> {
        some_rows(x, self.above..self.above + self.own)
    }
}

/// `rows` of `x` in memory of their own.
fn some_rows(x: Tensor<4>, rows: Range<usize>) -> Tensor<4> {
    if rows.len() == x.dims()[2] {
        return x;
    }
    k::cat_rows(vec![x.narrow(2, rows.start, rows.len())])
}

/// A map `[b, c, height, w]` in bands from the top down, the first of which may be gone.
#[derive(Default)]
struct Map {
    height: usize,
    /// Each with its first row.
    bands: VecDeque<(usize, Tensor<4>)>,
}

impl Map {
    fn whole(x: Tensor<4>) -> Self {
        let mut map = Self::default();
        map.push(x);
        map
    }

    fn push(&mut self, band: Tensor<4>) {
        let rows = band.dims()[2];
        self.bands.push_back((self.height, band));
        self.height += rows;
    }

    /// Rows that are still there, copied unless they are one band.
    fn rows(&self, rows: &Range<usize>) -> Tensor<4> {
        let part = |(first, band): &(usize, Tensor<4>)| {
            let (from, to) = (rows.start.max(*first), rows.end.min(first + band.dims()[2]));
            (from < to).then(|| match to - from == band.dims()[2] {
                true => band.clone(),
                false => band.clone().narrow(2, from - first, to - from),
            })
        };
        let parts: Vec<Tensor<4>> = self.bands.iter().filter_map(part).collect();
        let there: usize = parts.iter().map(|part| part.dims()[2]).sum();
        assert_eq!(there, rows.len(), "rows {rows:?} are gone");
        k::cat_rows(parts)
    }

    /// Drops the bands that end at or above `row`.
    fn forget(&mut self, row: usize) {
        while self.bands.front().is_some_and(|(first, band)| first + band.dims()[2] <= row) {
            self.bands.pop_front();
        }
    }

    fn dims(&self) -> [usize; 4] {
        let (_, band) = self.bands.front().expect("a map has rows");
        let [b, c, _, w] = band.dims();
        [b, c, self.height, w]
    }
}

/// Where a layer's rows come from.
enum Source<'a> {
    Kept(Map),
    /// Twice as high and wide, and convolved: made anew each time.
    Doubled(Map, &'a Conv),
}

impl Source<'_> {
    fn height(&self) -> usize {
        match self {
            Self::Kept(map) => map.height,
            Self::Doubled(map, _) => 2 * map.height,
        }
    }

    fn channels(&self) -> usize {
        match self {
            Self::Kept(map) => map.dims()[1],
            Self::Doubled(_, conv) => conv.weight.dims()[0],
        }
    }

    fn images_and_width(&self) -> [usize; 2] {
        match self {
            Self::Kept(map) => [map.dims()[0], map.dims()[3]],
            Self::Doubled(map, _) => [map.dims()[0], 2 * map.dims()[3]],
        }
    }

    fn rows(&self, rows: &Range<usize>) -> Tensor<4> {
        match self {
            Self::Kept(map) => map.rows(rows),
            Self::Doubled(map, conv) => {
                // an even row has its input's and the one above, an odd one its input's and the one below
                let from = (rows.start / 2).saturating_sub(1);
                let inputs = from..map.height.min(rows.end.div_ceil(2) + 1);
                let x = map.rows(&inputs);
                let x = k::conv3x3_upsampled(x, &conv.weight, &conv.bias, conv.precision);
                some_rows(x, rows.start - 2 * from..rows.end - 2 * from)
            }
        }
    }

    /// What is above `row` is not needed any more.
    fn forget(&mut self, row: usize) {
        match self {
            Self::Kept(map) => map.forget(row),
            Self::Doubled(map, _) => map.forget((row / 2).saturating_sub(1)),
        }
    }

    fn into_map(self) -> Map {
        match self {
            Self::Kept(map) | Self::Doubled(map, _) => map,
        }
    }

    /// All its bands.
    fn made(mut self, cut: Cut, check: &mut Check<'_>) -> Result<Map, Cancelled> {
        let mut map = Map::default();
        for own in cut.bands(&self, self.channels()) {
            check()?;
            map.push(self.rows(&own));
            self.forget(own.end);
        }
        Ok(map)
    }

    /// Takes the sums that `norm` needs. What fits into one band stays.
    fn normed_by(
        self,
        norm: &GroupNorm,
        cut: Cut,
        check: &mut Check<'_>,
    ) -> Result<(Self, GroupMoments), Cancelled> {
        let is_one = cut.bands(&self, self.channels()).count() == 1;
        let source = if is_one { Self::Kept(self.made(cut, check)?) } else { self };
        let sums = match &source {
            Self::Kept(map) => map.bands.iter().map(|(_, band)| k::group_sums(band, norm.groups)).collect(),
            Self::Doubled(..) => {
                let sums = cut.bands(&source, source.channels()).map(|own| {
                    check()?;
                    Ok(k::group_sums(&source.rows(&own), norm.groups))
                });
                sums.collect::<Result<Vec<_>, _>>()?
            }
        };
        Ok((source, GroupMoments::of(sums)))
    }
}
