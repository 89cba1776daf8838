//! GroupNorm, with or without SiLU: what stands before every convolution of the autoencoder.
//!
//! Of a map that is never there as a whole, sums are taken band by band ([`group_sums`]) and put together
//! ([`GroupMoments::of`]) before the first band is normed ([`group_norm_by`]). Each row has its own mean and
//! squares about it (T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing
//! sample variances", 1979), and the rows are put together in one order, so the cut changes no bit.

use crate::plug;
use crate::simd::Cpu;
use crate::{Precision, reference};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Group norm of `x` `[b, c, h, w]` with `weight` and `bias` `[c]`, rounded, then SiLU if `with_silu`,
/// rounded again. Works in the memory of `x` if nobody else holds it.
///
/// Sums are taken row by row: neither the threads nor the batch change a bit.
pub fn group_norm(
    x: Tensor<4>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    groups: usize,
    eps: f64,
    with_silu: bool,
    p: Precision,
) -> Tensor<4> {
    if plug::native(&x).is_none() {
        return reference::group_norm(x, weight, bias, groups, eps, with_silu, p);
    }
    let moments = GroupMoments::of(vec![group_sums(&x, groups)]);
    group_norm_by(x, &moments, weight, bias, eps, with_silu, p)
}

/// Sums over one band of the rows of a map.
pub struct GroupSums {
    groups: usize,
    sums: Sums,
}

#[allow(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Sums {
    /// Of each row its mean and squares about it, `[b, c, h]`.
    Rows { dims: [usize; 4], rows: Vec<[f64; 2]> },
    /// Of each group its mean and variance, and values.
    Groups(reference::Moments, usize),
}

/// The sums of the band `x` `[b, c, rows, w]`.
pub fn group_sums(x: &Tensor<4>, groups: usize) -> GroupSums {
    let dims @ [_, c, h, w] = x.dims();
    assert!(groups > 0 && c.is_multiple_of(groups), "{c} channels in {groups} groups");
    let Some(cpu) = plug::native(x) else {
        let sums = Sums::Groups(reference::group_moments(x.clone(), groups), c / groups * h * w);
        return GroupSums { groups, sums };
    };
    let x = plug::contiguous(x.clone());
    let (values, together) = (plug::slice(&x), CHUNK.div_ceil(w));
    let mut rows = vec![[0.0; 2]; values.len() / w];
    let tasks = rows.par_chunks_mut(together).zip(values.par_chunks(together * w));
    tasks.for_each(|(to, from)| {
        to.iter_mut().zip(from.chunks(w)).for_each(|(to, row)| *to = row_moments(cpu, row));
    });
    GroupSums { groups, sums: Sums::Rows { dims, rows } }
}

/// Mean and squares about it of one row, which stays in the cache for the second look.
fn row_moments(cpu: Cpu, row: &[f32]) -> [f64; 2] {
    let n = row.len() as f64;
    let mean = (f64::from(cpu.moments(row, 0.0).0) / n) as f32;
    let (rest, squares) = cpu.moments(row, mean);
    let rest = f64::from(rest);
    [f64::from(mean) + rest / n, f64::from(squares) - rest * rest / n]
}

/// What group norm knows of a whole map.
pub struct GroupMoments {
    groups: usize,
    moments: Moments,
}

#[allow(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Moments {
    /// Mean and variance of each image's groups.
    Known(Vec<(f32, f64)>),
    OnDevice(reference::Moments),
}

impl GroupMoments {
    /// Those of the map with these bands, from the top down.
    ///
    /// # Panics
    /// Without a band, and for bands of different maps.
    pub fn of(bands: Vec<GroupSums>) -> Self {
        let groups = bands.first().expect("a map has rows").groups;
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for band in bands {
            assert_eq!(band.groups, groups, "bands of different maps");
            match band.sums {
                Sums::Rows { dims, rows: of_band } => rows.push((dims, of_band)),
                Sums::Groups(moments, count) => parts.push((moments, count)),
            }
        }
        assert!(rows.is_empty() || parts.is_empty(), "bands on different devices");
        let moments = match parts.is_empty() {
            true => Moments::Known(of_rows(&rows, groups)),
            false => Moments::OnDevice(reference::join_moments(parts)),
        };
        Self { groups, moments }
    }
}

/// From the sums of rows: all of a channel from the top down, channel after channel.
fn of_rows(bands: &[([usize; 4], Vec<[f64; 2]>)], groups: usize) -> Vec<(f32, f64)> {
    let [b, c, _, w] = bands[0].0;
    assert!(bands.iter().all(|(d, _)| [d[0], d[1], d[3]] == [b, c, w]), "bands of different maps");
    let of_group = |g: usize| {
        let channels = g * (c / groups)..(g + 1) * (c / groups);
        let rows = || {
            channels.clone().flat_map(|channel| {
                bands.iter().flat_map(move |(dims, rows)| &rows[channel * dims[2]..][..dims[2]])
            })
        };
        let n = rows().count() as f64;
        let mean = rows().map(|row| row[0]).sum::<f64>() / n;
        let squares: f64 = rows().map(|row| row[1] + w as f64 * (row[0] - mean).powi(2)).sum();
        (mean as f32, squares / (n * w as f64))
    };
    (0..b * groups).into_par_iter().map(of_group).collect()
}

/// [`group_norm`] of `x`, some rows of the map with these moments.
pub fn group_norm_by(
    x: Tensor<4>,
    moments: &GroupMoments,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f64,
    with_silu: bool,
    p: Precision,
) -> Tensor<4> {
    let ([_, c, h, w], groups) = (x.dims(), moments.groups);
    let known = match &moments.moments {
        Moments::OnDevice(moments) => {
            return reference::group_norm_by(x, moments, weight, bias, eps, with_silu, p);
        }
        Moments::Known(known) => known,
    };
    let cpu = plug::native(&x).expect("rows of a map are on one device");
    let (mut x, weight, bias) = (plug::dense(x), plug::small(weight), plug::small(bias));
    let (plane, channels) = (h * w, c / groups);
    // copies first when the memory is shared
    x.storage_mut::<f32>().par_chunks_mut(channels * plane).zip(known).enumerate().for_each(
        |(g, (v, (mean, variance)))| {
            let first = g % groups * channels;
            let factor = (1.0 / (variance + eps).sqrt()) as f32;
            v.par_chunks_mut(plane).enumerate().for_each(|(i, v)| {
                let map = [*mean, weight[first + i] * factor, bias[first + i]];
                v.par_chunks_mut(CHUNK).for_each(|v| cpu.affine(p, v, map, with_silu));
            });
        },
    );
    plug::wrap(x)
}

/// Elements per task.
const CHUNK: usize = 1 << 13;
