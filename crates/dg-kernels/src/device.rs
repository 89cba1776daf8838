//! The kernels of devices (`dg-cuda`), where they stand for what is written in plain burn: `None` wherever a tensor is not
//! on such a device, its shape is not theirs, or the program has none of them.

#[cfg(feature = "cuda")]
pub(crate) use with::{attends, attention, layer_norm_modulate, matmul_f32, rms_norm_rope};
#[cfg(not(feature = "cuda"))]
pub(crate) use without::{attends, attention, layer_norm_modulate, matmul_f32, rms_norm_rope};

use std::sync::atomic::{AtomicBool, Ordering};

/// Lets f32 matrices be multiplied as TF32 (19 bits) on devices that do so faster, as PyTorch's
/// `allow_tf32`. Of the process; off at first. Convolutions use it in any case, as PyTorch's do.
pub fn allow_tf32(yes: bool) {
    TF32.store(yes, Ordering::Relaxed);
}

/// What [`allow_tf32`] said last.
pub fn is_tf32_allowed() -> bool {
    TF32.load(Ordering::Relaxed)
}

static TF32: AtomicBool = AtomicBool::new(false);

#[cfg(feature = "cuda")]
mod with {
    use crate::Precision;
    use crate::reference::cast;
    use burn::tensor::{DType, Tensor};
    use dg_cuda::kernels;

    /// Whether [`attention`] takes these queries, if there are some and keys.
    pub(crate) fn attends(q: &Tensor<4>, p: Precision) -> bool {
        p == Precision::Bf16 && kernels::is_here(&q.device()) && kernels::attends(q.dims()[3], DType::BF16)
    }

    /// See [`crate::attention()`] and, if not `rounded`, [`crate::attention_partials`].
    pub(crate) fn attention(
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        scale: f32,
        p: Precision,
        rounded: bool,
    ) -> Option<(Tensor<4>, Tensor<3>)> {
        if !attends(q, p) || q.dims()[1] == 0 || k.dims()[1] == 0 {
            return None;
        }
        let narrow = |t: &Tensor<4>| cast(t, DType::BF16);
        let (out, lse) = kernels::attention(narrow(q), narrow(k), narrow(v), scale, !rounded);
        Some((if rounded { cast(&out, q.dtype()) } else { out }, lse))
    }

    /// See [`crate::layer_norm_modulate`].
    pub(crate) fn layer_norm_modulate(
        x: &Tensor<3>,
        shift: &Tensor<2>,
        scale: &Tensor<2>,
        eps: f64,
        p: Precision,
    ) -> Option<Tensor<3>> {
        if !kernels::is_here(&x.device()) {
            return None;
        }
        let (shift, scale) = (cast(shift, DType::F32), cast(scale, DType::F32));
        kernels::layer_norm_modulate(x.clone(), shift, scale, eps as f32, p == Precision::Bf16)
    }

    /// See [`crate::rms_norm_rope`].
    pub(crate) fn rms_norm_rope(
        x: &Tensor<4>,
        weight: &Tensor<1>,
        cos: &Tensor<2>,
        sin: &Tensor<2>,
        eps: f64,
        p: Precision,
    ) -> Option<Tensor<4>> {
        if !kernels::is_here(&x.device()) {
            return None;
        }
        let weight = cast(weight, DType::F32);
        let (cos, sin) = (cast(cos, DType::F32), cast(sin, DType::F32));
        kernels::rms_norm_rope(x.clone(), weight, cos, sin, eps as f32, p == Precision::Bf16)
    }

    /// `left · right` of f32 matrices, without TF32 unless that is allowed.
    pub(crate) fn matmul_f32<const D: usize>(left: &Tensor<D>, right: &Tensor<D>) -> Option<Tensor<D>> {
        let wide = left.dtype() == DType::F32 && right.dtype() == DType::F32;
        let strict = wide && !super::is_tf32_allowed() && kernels::is_here(&left.device());
        strict.then(|| kernels::matmul_f32(left.clone(), right.clone()))
    }
}

#[cfg(not(feature = "cuda"))]
mod without {
    use crate::Precision;
    use burn::tensor::Tensor;

    pub(crate) fn attends(_q: &Tensor<4>, _p: Precision) -> bool {
        false
    }

    pub(crate) fn attention(
        _q: &Tensor<4>,
        _k: &Tensor<4>,
        _v: &Tensor<4>,
        _scale: f32,
        _p: Precision,
        _rounded: bool,
    ) -> Option<(Tensor<4>, Tensor<3>)> {
        None
    }

    pub(crate) fn layer_norm_modulate(
        _x: &Tensor<3>,
        _shift: &Tensor<2>,
        _scale: &Tensor<2>,
        _eps: f64,
        _p: Precision,
    ) -> Option<Tensor<3>> {
        None
    }

    pub(crate) fn rms_norm_rope(
        _x: &Tensor<4>,
        _weight: &Tensor<1>,
        _cos: &Tensor<2>,
        _sin: &Tensor<2>,
        _eps: f64,
        _p: Precision,
    ) -> Option<Tensor<4>> {
        None
    }

    pub(crate) fn matmul_f32<const D: usize>(_left: &Tensor<D>, _right: &Tensor<D>) -> Option<Tensor<D>> {
        None
    }
}
