//! Norms of rows, with what FLUX does to them right after, in one pass over memory.
//!
//! Everything is computed in f32. In a bfloat16 run each operation of the reference is rounded where the kernels of the
//! CPU round it (`round`), whatever the tensors' own format.

use cubecl;
use cubecl::prelude::*;

/// Units of a cube: eight planes.
pub(crate) const UNITS: usize = 256;
/// Values of one load.
const WIDE: usize = 4;
/// Units of a plane.
const LANES: usize = 32;
/// Rows of a cube of [`rms_norm_rope`]: one for each plane.
pub(crate) const PLANES: usize = UNITS / LANES;

/// Whether [`layer_norm_modulate`] takes rows of `width` values: they stay in registers, 64 for each unit at most.
pub(crate) fn takes_row(width: usize) -> bool {
    width.is_multiple_of(WIDE) && (WIDE..=UNITS * 64).contains(&width)
}

/// Whether [`rms_norm_rope`] takes heads of `dim` values.
pub(crate) fn takes_head(dim: usize) -> bool {
    dim.is_multiple_of(2) && (2..=1024).contains(&dim)
}

/// `(x − mean) / √(variance + eps) · (1 + scale) + shift` for each row: a cube for each of `b · tokens` rows of `x`
/// `[b, tokens, width]`, `shift` and `scale` `[b, width]`.
#[cube(launch)]
pub(crate) fn layer_norm_modulate<F: Float>(
    x: &[Vector<F, Const<4>>],
    shift: &[Vector<f32, Const<4>>],
    scale: &[Vector<f32, Const<4>>],
    out: &mut [Vector<F, Const<4>>],
    tokens: u32,
    eps: f32,
    #[comptime] width: usize,
    #[comptime] round: bool,
) {
    let chunks = comptime!(width / WIDE);
    let each = comptime!(chunks.div_ceil(UNITS));
    let row = CUBE_POS_X as usize;
    let image = row / tokens as usize;
    let unit = UNIT_POS_X as usize;
    let mut shared = Shared::<[f32]>::new_slice(PLANES);

    let zero = Vector::<f32, Const<4>>::new(0.0f32);
    let mut values = Array::<Vector<f32, Const<4>>>::new(each);
    let mut sum = zero;
    #[unroll]
    for i in 0..each {
        let at = comptime!(i * UNITS) + unit;
        let value = if at < chunks { Vector::cast_from(x[row * chunks + at]) } else { zero };
        values[i] = value;
        sum += value;
    }
    let mean = over_cube(across::<Const<4>>(sum), &mut shared) / comptime!(width as f32);
    let mut squares = zero;
    #[unroll]
    for i in 0..each {
        let at = comptime!(i * UNITS) + unit;
        let apart = values[i] - Vector::new(mean);
        squares += if at < chunks { apart * apart } else { zero };
    }
    let variance = over_cube(across::<Const<4>>(squares), &mut shared) / comptime!(width as f32);
    let rate = f32::new(1.0) / (variance + eps).sqrt();
    #[unroll]
    for i in 0..each {
        let at = comptime!(i * UNITS) + unit;
        if at < chunks {
            let normal = rounded::<Const<4>>((values[i] - Vector::new(mean)) * Vector::new(rate), round);
            let gain = rounded::<Const<4>>(scale[image * chunks + at] + Vector::new(1.0f32), round);
            let scaled = rounded::<Const<4>>(normal * gain, round);
            let shifted = rounded::<Const<4>>(scaled + shift[image * chunks + at], round);
            out[row * chunks + at] = Vector::cast_from(shifted);
        }
    }
}

/// `x / √(mean of squares + eps) · weight`, then each pair of neighbours is turned by its angle: a plane for each of
/// `b · tokens · heads` rows of `x` `[b, tokens, heads, dim]`; `weight` `[dim]`, `cos` and `sin` `[tokens, dim / 2]`.
#[cube(launch)]
pub(crate) fn rms_norm_rope<F: Float>(
    x: &[Vector<F, Const<2>>],
    weight: &[Vector<f32, Const<2>>],
    cos: &[f32],
    sin: &[f32],
    out: &mut [Vector<F, Const<2>>],
    rows: u32,
    tokens: u32,
    heads: u32,
    eps: f32,
    #[comptime] dim: usize,
    #[comptime] round: bool,
) {
    let pairs = comptime!(dim / 2);
    let each = comptime!(pairs.div_ceil(LANES));
    let lane = UNIT_POS_X as usize;
    let row = CUBE_POS_X as usize * PLANES + UNIT_POS_Y as usize;
    let here = row < rows as usize;
    let token = row / heads as usize % tokens as usize;

    let zero = Vector::<f32, Const<2>>::new(0.0f32);
    let mut values = Array::<Vector<f32, Const<2>>>::new(each);
    let mut squares = zero;
    #[unroll]
    for i in 0..each {
        let at = comptime!(i * LANES) + lane;
        let value = if here && at < pairs { Vector::cast_from(x[row * pairs + at]) } else { zero };
        values[i] = value;
        squares += value * value;
    }
    let mean = plane_sum(across::<Const<2>>(squares)) / comptime!(dim as f32);
    let rate = f32::new(1.0) / (mean + eps).sqrt();
    #[unroll]
    for i in 0..each {
        let at = comptime!(i * LANES) + lane;
        if here && at < pairs {
            let pair = rounded::<Const<2>>(values[i] * Vector::new(rate) * weight[at], round);
            let (first, second) = (pair.extract(0usize), pair.extract(1usize));
            let (c, s) = (cos[token * pairs + at], sin[token * pairs + at]);
            let mut turned = Vector::<f32, Const<2>>::empty();
            turned.insert(0usize, first * c - second * s);
            turned.insert(1usize, first * s + second * c);
            out[row * pairs + at] = Vector::cast_from(rounded::<Const<2>>(turned, round));
        }
    }
}

/// `x` as bfloat16 has it, if `round`.
#[cube]
fn rounded<N: Size>(x: Vector<f32, N>, #[comptime] round: bool) -> Vector<f32, N> {
    if comptime!(round) { Vector::cast_from(Vector::<half::bf16, N>::cast_from(x)) } else { x }
}

/// The sum of a vector's values.
#[cube]
fn across<N: Size>(x: Vector<f32, N>) -> f32 {
    let mut sum = x.extract(0usize);
    #[unroll]
    for i in 1..N::value() {
        sum += x.extract(i);
    }
    sum
}

/// The sum over the units of a cube, for each of them. `shared` has one place for each plane.
#[cube]
fn over_cube(x: f32, shared: &mut Shared<[f32]>) -> f32 {
    let of_plane = plane_sum(x);
    // what was there before has been read
    sync_cube();
    if UNIT_POS_X as usize % LANES == 0 {
        shared[UNIT_POS_X as usize / LANES] = of_plane;
    }
    sync_cube();
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..PLANES {
        sum += shared[i];
    }
    sum
}
