//! Attention in one pass over the keys, with the logarithm of each query's sum of exponentials, so that partial results
//! over parts of the keys can be joined (Ring attention).
//!
//! The algorithm is that of T. Dao, "FlashAttention-2" (2023): a plane of 32 units holds 16 queries and their sums in
//! registers, and multiplies 16-bit floats on tensor cores into f32 sums (`mma.m16n8k16`, compute capability 8.0 and
//! above). All planes of a cube read the same 64 keys and values from shared memory, while the next 64 are on their way
//! into registers.

use cubecl;
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// Planes of a cube.
pub(crate) const PLANES: usize = 8;
/// Queries of a plane: the rows of one product.
const ROWS: usize = 16;
/// Queries of a cube.
pub(crate) const QUERIES: usize = PLANES * ROWS;
/// Keys that are in shared memory at a time.
const KEYS: usize = 64;
/// 16-bit floats of one load from memory.
pub(crate) const WIDE: usize = 8;
/// Units of a plane.
const LANES: usize = 32;
/// Below every score.
const LOWEST: f32 = -1.0e30;

/// Head dimensions that the kernel takes: registers hold the sums of all of them.
pub(crate) fn takes(dim: usize) -> bool {
    dim.is_multiple_of(16) && (16..=128).contains(&dim)
}

/// `q` `[b, queries, h, dim]`, `k` and `v` `[b, keys, h, dim]`, all dense; `out` like `q`, `lse` `[b, h, queries]`,
/// natural logarithms. Cubes are (blocks of [`QUERIES`], h, b). At least one key.
#[cube(launch, fast_math = FastMath::all())]
pub(crate) fn flash<E: Float, O: Float>(
    q: &[Vector<E, Const<2>>],
    k: &[Vector<E, Const<8>>],
    v: &[Vector<E, Const<8>>],
    out: &mut [Vector<O, Const<2>>],
    lse: &mut [f32],
    queries: u32,
    keys: u32,
    scale: f32,
    #[comptime] dim: usize,
) {
    let place = Place {
        lane: UNIT_POS_X as usize,
        unit: UNIT_POS_Y as usize * LANES + UNIT_POS_X as usize,
        heads: CUBE_COUNT_Y as usize,
        head: CUBE_POS_Y as usize,
        image: CUBE_POS_Z as usize,
        first: CUBE_POS_X as usize * QUERIES + UNIT_POS_Y as usize * ROWS + UNIT_POS_X as usize / 4,
        queries: queries as usize,
        keys: keys as usize,
    };
    let def = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let mut k_stage =
        Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(comptime!(KEYS * dim / WIDE), 16usize);
    let mut v_stage =
        Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(comptime!(KEYS * dim / WIDE), 16usize);

    let query = queries_of::<E>(q, &place, dim);
    let mut sums = Array::<f32>::new(comptime!(dim / 2));
    #[unroll]
    for i in 0..comptime!(dim / 2) {
        sums[i] = 0.0f32;
    }
    // largest score and sum of exponentials of the first row, then of the second
    let mut state = Array::<f32>::new(4usize);
    state[0] = LOWEST;
    state[1] = 0.0f32;
    state[2] = LOWEST;
    state[3] = 0.0f32;

    let loads = comptime!((KEYS * dim / WIDE).div_ceil(PLANES * LANES));
    let mut k_next = Array::<Vector<E, Const<8>>>::new(loads);
    let mut v_next = Array::<Vector<E, Const<8>>>::new(loads);
    fetch::<E>(k, &mut k_next, 0usize, &place, dim);
    fetch::<E>(v, &mut v_next, 0usize, &place, dim);
    let blocks = place.keys.div_ceil(KEYS);
    for block in 0..blocks {
        // everybody has read what was there
        sync_cube();
        store::<E>(&k_next, &mut k_stage, &place, dim);
        store::<E>(&v_next, &mut v_stage, &place, dim);
        sync_cube();
        if block + 1 < blocks {
            fetch::<E>(k, &mut k_next, (block + 1) * KEYS, &place, dim);
            fetch::<E>(v, &mut v_next, (block + 1) * KEYS, &place, dim);
        }
        let mut scores = scores_of::<E>(&def, &query, &k_stage, place.lane, dim);
        hide(&mut scores, scale, block * KEYS, &place);
        let weights = soften::<E>(&scores, &mut state, &mut sums, dim);
        gather::<E>(&def, &weights, &v_stage, &mut sums, place.lane, dim);
    }
    #[unroll]
    for row in 0..2usize {
        let total = across_sum(state[2 * row + 1]);
        finish::<O>(out, lse, &sums, state[2 * row], total, &place, row, dim);
    }
}

/// Which part of the work is a unit's.
#[derive(CubeType)]
struct Place {
    /// In the plane. A unit's rows of a product are `lane / 4` and eight more, its pairs of columns start at
    /// `2 · (lane % 4)`.
    lane: usize,
    /// In the cube.
    unit: usize,
    heads: usize,
    head: usize,
    image: usize,
    /// The query of its first row; that of the second is eight more.
    first: usize,
    queries: usize,
    keys: usize,
}

/// This unit's part of the queries, as `mma` takes its left side. Zeros behind the last query.
#[cube]
fn queries_of<E: Float>(
    q: &[Vector<E, Const<2>>],
    place: &Place,
    #[comptime] dim: usize,
) -> Array<Vector<E, Const<2>>> {
    let mut query = Array::<Vector<E, Const<2>>>::new(comptime!(dim / 4));
    #[unroll]
    for row in 0..2usize {
        let token = place.first + comptime!(8 * row);
        let at = ((place.image * place.queries + token) * place.heads + place.head) * comptime!(dim / 2);
        #[unroll]
        for i in 0..comptime!(dim / 8) {
            let inside = token < place.queries;
            query[2 * i + row] =
                if inside { q[at + comptime!(4 * i) + place.lane % 4] } else { Vector::cast_from(0.0f32) };
        }
    }
    query
}

/// Carries this unit's part of the keys (or values) from `from` on into `next`. Zeros behind the last key.
#[cube]
fn fetch<E: Float>(
    rows: &[Vector<E, Const<8>>],
    next: &mut Array<Vector<E, Const<8>>>,
    from: usize,
    place: &Place,
    #[comptime] dim: usize,
) {
    let chunks = comptime!(dim / WIDE);
    #[unroll]
    for i in 0..comptime!((KEYS * dim / WIDE).div_ceil(PLANES * LANES)) {
        let at = comptime!(i * PLANES * LANES) + place.unit;
        let key = from + at / chunks;
        let row = (place.image * place.keys + key) * place.heads + place.head;
        let inside = at < comptime!(KEYS * dim / WIDE) && key < place.keys;
        next[i] = if inside { rows[row * chunks + at % chunks] } else { Vector::cast_from(0.0f32) };
    }
}

/// Puts what [`fetch`] brought into shared memory.
#[cube]
fn store<E: Float>(
    next: &Array<Vector<E, Const<8>>>,
    stage: &mut Shared<[Vector<E, Const<8>>]>,
    place: &Place,
    #[comptime] dim: usize,
) {
    let chunks = comptime!(dim / WIDE);
    #[unroll]
    for i in 0..comptime!((KEYS * dim / WIDE).div_ceil(PLANES * LANES)) {
        let at = comptime!(i * PLANES * LANES) + place.unit;
        if at < comptime!(KEYS * dim / WIDE) {
            stage[spot(at / chunks, at % chunks, chunks)] = next[i];
        }
    }
}

/// The products of 16 queries and 64 keys.
#[cube]
fn scores_of<E: Float>(
    def: &MmaDefinition<E, E, f32>,
    query: &Array<Vector<E, Const<2>>>,
    k_stage: &Shared<[Vector<E, Const<8>>]>,
    lane: usize,
    #[comptime] dim: usize,
) -> Array<f32> {
    let mut scores = Array::<f32>::new(comptime!(KEYS / 2));
    #[unroll]
    for i in 0..comptime!(KEYS / 2) {
        scores[i] = 0.0f32;
    }
    let (part, line) = (lane / 8, lane % 8);
    #[unroll]
    for step in 0..comptime!(dim / 16) {
        #[unroll]
        for two in 0..comptime!(KEYS / 16) {
            // four 8 × 8 matrices: keys 0–7 and dims 0–7, 8–15; keys 8–15 and the same
            let key = comptime!(two * 16) + part / 2 * 8 + line;
            let at = spot(key, comptime!(step * 2) + part % 2, comptime!(dim / WIDE));
            let right = def.load_matrix::<_, Const<2>>(&k_stage[at..at + 1], MatrixIdent::B, 4usize, false);
            multiply::<E>(def, query, comptime!(4 * step), &right, 0usize, &mut scores, comptime!(8 * two));
            multiply::<E>(
                def,
                query,
                comptime!(4 * step),
                &right,
                2usize,
                &mut scores,
                comptime!(8 * two + 4),
            );
        }
    }
    scores
}

/// Scales the scores of the keys from `from` on, and makes those of no key the lowest.
#[cube]
fn hide(scores: &mut Array<f32>, scale: f32, from: usize, place: &Place) {
    #[unroll]
    for tile in 0..comptime!(KEYS / 8) {
        #[unroll]
        for side in 0..2usize {
            let seen = from + comptime!(tile * 8 + side) + 2 * (place.lane % 4) < place.keys;
            let i = comptime!(4 * tile + side);
            scores[i] = if seen { scores[i] * scale } else { LOWEST.runtime() };
            scores[i + 2] = if seen { scores[i + 2] * scale } else { LOWEST.runtime() };
        }
    }
}

/// The exponentials of the scores below the largest so far, as the left side of the next product; `state` and `sums`
/// follow when there is a larger one.
#[cube]
fn soften<E: Float>(
    scores: &Array<f32>,
    state: &mut Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] dim: usize,
) -> Array<Vector<E, Const<2>>> {
    let mut weights = Array::<Vector<E, Const<2>>>::new(comptime!(KEYS / 4));
    #[unroll]
    for row in 0..2usize {
        let mut top = state[2 * row];
        #[unroll]
        for i in 0..comptime!(KEYS / 4) {
            top = max(top, scores[comptime!(i / 2 * 4 + i % 2 + 2 * row)]);
        }
        // the four units of a group have a row together
        top = across_max(top);
        let fade = (state[2 * row] - top).exp();
        state[2 * row] = top;
        let mut sum = f32::new(0.0);
        #[unroll]
        for tile in 0..comptime!(KEYS / 8) {
            let one = (scores[comptime!(4 * tile + 2 * row)] - top).exp();
            let other = (scores[comptime!(4 * tile + 2 * row + 1)] - top).exp();
            sum += one + other;
            weights[2 * tile + row] = two::<E>(one, other);
        }
        state[2 * row + 1] = state[2 * row + 1] * fade + sum;
        #[unroll]
        for i in 0..comptime!(dim / 4) {
            sums[comptime!(i / 2 * 4 + i % 2 + 2 * row)] *= fade;
        }
    }
    weights
}

/// Adds the values, weighted, to the sums.
#[cube]
fn gather<E: Float>(
    def: &MmaDefinition<E, E, f32>,
    weights: &Array<Vector<E, Const<2>>>,
    v_stage: &Shared<[Vector<E, Const<8>>]>,
    sums: &mut Array<f32>,
    lane: usize,
    #[comptime] dim: usize,
) {
    let (part, line) = (lane / 8, lane % 8);
    #[unroll]
    for step in 0..comptime!(KEYS / 16) {
        #[unroll]
        for two in 0..comptime!(dim / 16) {
            // keys 0–7, 8–15 and dims 0–7; the same keys and dims 8–15; each transposed on its way
            let key = comptime!(step * 16) + part % 2 * 8 + line;
            let at = spot(key, comptime!(two * 2) + part / 2, comptime!(dim / WIDE));
            let right = def.load_matrix::<_, Const<2>>(&v_stage[at..at + 1], MatrixIdent::B, 4usize, true);
            multiply::<E>(def, weights, comptime!(4 * step), &right, 0usize, sums, comptime!(8 * two));
            multiply::<E>(def, weights, comptime!(4 * step), &right, 2usize, sums, comptime!(8 * two + 4));
        }
    }
}

/// Writes a unit's part of one row.
#[cube]
fn finish<O: Float>(
    out: &mut [Vector<O, Const<2>>],
    lse: &mut [f32],
    sums: &Array<f32>,
    top: f32,
    total: f32,
    place: &Place,
    #[comptime] row: usize,
    #[comptime] dim: usize,
) {
    let token = place.first + comptime!(8 * row);
    if token < place.queries {
        if place.lane % 4 == 0 {
            lse[(place.image * place.heads + place.head) * place.queries + token] = top + total.ln();
        }
        let at = ((place.image * place.queries + token) * place.heads + place.head) * comptime!(dim / 2);
        #[unroll]
        for tile in 0..comptime!(dim / 8) {
            let one = sums[comptime!(4 * tile + 2 * row)] / total;
            let other = sums[comptime!(4 * tile + 2 * row + 1)] / total;
            out[at + comptime!(4 * tile) + place.lane % 4] = two::<O>(one, other);
        }
    }
}

/// Where the `chunk`-th eight values of a row are in shared memory: turned about by the row, so that eight rows of one
/// column lie in different banks.
#[cube]
fn spot(row: usize, chunk: usize, #[comptime] chunks: usize) -> usize {
    let turned = if comptime!(chunks.is_multiple_of(8)) { chunk ^ (row % 8) } else { chunk };
    row * chunks + turned
}

/// `sums[at..at + 4] += left[from..from + 4] · right[of..of + 2]`.
#[cube]
fn multiply<E: Float>(
    def: &MmaDefinition<E, E, f32>,
    left: &Array<Vector<E, Const<2>>>,
    #[comptime] from: usize,
    right: &Array<Vector<E, Const<2>>>,
    #[comptime] of: usize,
    sums: &mut Array<f32>,
    #[comptime] at: usize,
) {
    let mut a = Array::<Vector<E, Const<2>>>::new(4usize);
    let mut b = Array::<Vector<E, Const<2>>>::new(2usize);
    let mut c = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for i in 0..4usize {
        a[i] = left[from + i];
    }
    #[unroll]
    for i in 0..2usize {
        b[i] = right[of + i];
        let mut pair = Vector::<f32, Const<2>>::empty();
        pair.insert(0usize, sums[at + 2 * i]);
        pair.insert(1usize, sums[at + 2 * i + 1]);
        c[i] = pair;
    }
    let d = def.execute(&a, &b, &c);
    #[unroll]
    for i in 0..2usize {
        sums[at + 2 * i] = d[i].extract(0usize);
        sums[at + 2 * i + 1] = d[i].extract(1usize);
    }
}

#[cube]
fn two<E: Float>(x: f32, y: f32) -> Vector<E, Const<2>> {
    let mut pair = Vector::<E, Const<2>>::empty();
    pair.insert(0usize, E::cast_from(x));
    pair.insert(1usize, E::cast_from(y));
    pair
}

/// The largest of the four units of a group.
#[cube]
fn across_max(x: f32) -> f32 {
    let y = max(x, plane_shuffle_xor(x, 1u32));
    max(y, plane_shuffle_xor(y, 2u32))
}

/// The sum over the four units of a group.
#[cube]
fn across_sum(x: f32) -> f32 {
    let y = x + plane_shuffle_xor(x, 1u32);
    y + plane_shuffle_xor(y, 2u32)
}
