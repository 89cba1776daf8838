//! The matrix product of the crate `gemm` on slices.

use super::shared::Shared;
use crate::scratch;
use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) data: &'a [f32],
    /// Steps, in elements, from row to row and from column to column.
    pub(crate) strides: [usize; 2],
}

/// Rows, inner length and columns of a product.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
}

/// `out (+)= a · b`; the rows of `out` are `stride` apart. The threads of the current pool share the
/// work if `parallel`. Panics when a matrix does not fit its slice.
pub(crate) fn product(
    shape: Shape,
    out: (&mut [f32], usize),
    add: bool,
    a: Matrix<'_>,
    b: Matrix<'_>,
    parallel: bool,
) {
    let (out, stride) = out;
    let Shape { m, n, .. } = shape;
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * stride + n <= out.len() && n <= stride.max(1));
    // SAFETY: `out` holds the result and is borrowed exclusively
    unsafe { multiply(shape, out.as_mut_ptr(), stride, add, a, b, parallel) }
}

/// Convolution as products of tiles: every tile of every image becomes `bias + weight · unfolded`.
///
/// `out` is `[images, planes, plane]`, `weight` `[planes, k]`. Tile `i` of a plane covers the pixels
/// `cuts[i]..cuts[i + 1]`; `unfold(image, first, pixels)` fills its inputs, `[k, n]`. Tiles are shared
/// among the threads of the current pool; the bits of one depend on nothing but its inputs.
pub(crate) fn tiles(
    out: &mut [f32],
    plane: usize,
    (weight, k): (&[f32], usize),
    bias: &[f32],
    cuts: &[usize],
    unfold: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let (planes, per_plane) = (bias.len(), cuts.len() - 1);
    let images = out.len() / (planes * plane);
    assert!(cuts.is_sorted() && cuts[per_plane] <= plane && weight.len() == planes * k);
    let longest = cuts.windows(2).map(|c| c[1] - c[0]).max().unwrap_or(0);
    let to = Shared::new(out);
    (0..images * per_plane).into_par_iter().for_each_init(
        || scratch::take(k * longest),
        |buffer, i| {
            let (image, tile) = (i / per_plane, i % per_plane);
            let (first, n) = (cuts[tile], cuts[tile + 1] - cuts[tile]);
            let pixels = &mut buffer[..k * n];
            unfold(image, first, pixels);
            let at = |o: usize| (image * planes + o) * plane + first;
            for (o, bias) in bias.iter().enumerate() {
                // SAFETY: ranges of pixels are disjoint, so each element belongs to one task
                unsafe { to.part(at(o), n) }.fill(*bias);
            }
            let a = Matrix { data: weight, strides: [k, 1] };
            let b = Matrix { data: pixels, strides: [n, 1] };
            let start = to.pointer(at(0), (planes - 1) * plane + n);
            // SAFETY: the rows of the result are the ranges filled above
            unsafe { multiply(Shape { m: planes, k, n }, start, plane, true, a, b, false) };
        },
    );
}

/// # Safety
/// At `out` lie `m` rows of `n` floats, `stride` apart, which nobody else uses.
unsafe fn multiply(
    Shape { m, k, n }: Shape,
    out: *mut f32,
    stride: usize,
    add: bool,
    a: Matrix<'_>,
    b: Matrix<'_>,
    parallel: bool,
) {
    assert!(a.holds(m, k) && b.holds(k, n));
    let alpha = if add { 1.0 } else { 0.0 };
    let threads = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    let ([ar, ac], [br, bc]) = (a.strides.map(|s| s as isize), b.strides.map(|s| s as isize));
    let (pa, pb) = (a.data.as_ptr(), b.data.as_ptr());
    // SAFETY: `a` and `b` were checked, `out` is the caller's promise
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride as isize,
            add,
            pa,
            ac,
            ar,
            pb,
            bc,
            br,
            alpha,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

impl Matrix<'_> {
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.strides[0] + (columns - 1) * self.strides[1] < self.data.len()
    }
}
