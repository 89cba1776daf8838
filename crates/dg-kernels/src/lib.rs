//! Fused kernels for burn tensors on the Flex (CPU) device: linear layers, attention, norms,
//! activations and convolutions of FLUX, its text encoders and its autoencoder.
//!
//! Activations are f32 tensors. Weights stay as they are in the file (f32, bf16 or f16, possibly in a
//! memory map) and are widened for each call into memory that is kept. [`Precision`] says how results
//! are rounded. Every function runs on any device and number format: where the kernels cannot (other
//! devices, no AVX2 and FMA, or `DG_KERNELS=portable` in the environment) it takes plain burn
//! operations, the [`mod@reference`]. Products, softmax and activations use AVX-512 where there is some, with the
//! bits of AVX2; products of bf16 use its BF16 instructions where they are faster than FMAs in f32 ([`path`]). Work
//! is shared among the threads of rayon's *current* pool, so `ThreadPool::install` confines a caller to its own.
//!
//! With the kernels a result's bits depend neither on the machine nor on the number of threads nor on which
//! other rows or images are computed in the same call. (Logarithms, of [`attention()`]'s sums, and
//! [`merge_partials`] ask the C library: its last bit may differ from system to system. BF16 instructions take
//! numbers below 1.2e-38 for zero, and on processors that do not round after each product, which the tests of this
//! crate tell of, they have bits of their own.)
//!
//! # Layout
//! - `precision`: [`Precision`]
//! - `linear`: [`linear()`], [`linear_then`], [`linear_shared`], [`linear_gated`], [`linear_add`]
//! - `attention`: [`attention()`], [`attention_segments`], [`attention_partials`], [`attention_with_bias`], [`merge_partials`]
//! - `elementwise`: activations, [`add`], [`mul`], [`gated_residual`], [`round`]
//! - `norm`: norms over the last dimension, with modulation or rotation
//! - `group_norm`: [`group_norm()`], of a whole map or of its bands
//! - `conv`: 3×3 and 1×1 convolutions
//! - `tokens`: [`embedding`], concatenation, [`from_vec`], [`to_vec`]
//! - [`mod@reference`]: all of it in plain burn
//! - `device`: the kernels of GPUs, where there are some
//! - `plug`: from tensors to slices and back; `scratch`: kept memory
//! - `simd`: everything unsafe
//!
//! # Example
//! ```
//! use burn::tensor::Device;
//! use dg_kernels::{Precision, from_vec, linear, to_vec};
//!
//! let device = Device::flex();
//! let x = from_vec(vec![1.0, 2.0], [1, 2], &device);
//! let w = from_vec(vec![1.0, 0.0, 0.5, 0.5, 0.0, 3.0], [3, 2], &device);
//! let y = linear(x, &w, None, Precision::F32);
//! assert_eq!(to_vec(y), [1.0, 1.5, 6.0]);
//! ```

// where `Cpu` has no values, the code behind it is dead
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, unreachable_code, unused_imports, unused_mut, unused_variables)
)]

mod attention;
mod conv;
mod device;
mod elementwise;
mod group_norm;
mod linear;
mod norm;
mod plug;
mod precision;
pub mod reference;
mod scratch;
mod simd;
mod tokens;

pub use attention::{
    attention, attention_outputs, attention_partials, attention_segments, attention_with_bias, merge_partials,
};
pub use conv::{conv1x1, conv3x3, conv3x3_add, conv3x3_stride2, conv3x3_upsampled};
pub use device::{allow_tf32, is_tf32_allowed};
pub use elementwise::{add, gated_residual, gelu_new, gelu_tanh, mul, quick_gelu, round, silu};
pub use group_norm::{GroupMoments, GroupSums, group_norm, group_norm_by, group_sums};
pub use linear::{Activation, SharedLayer, linear, linear_add, linear_gated, linear_shared, linear_then};
pub use norm::{layer_norm, layer_norm_modulate, rms_norm, rms_norm_rope, t5_norm};
pub use plug::check_environment;
pub use precision::{Precision, held, wide};
pub use tokens::{cat_channels, cat_rows, cat_tokens, embedding, from_vec, to_vec};

/// Which path f32 tensors on the CPU take in this process: `"avx512bf16"` (AVX-512 with BF16 instructions for
/// products of bf16), `"avx512"`, `"avx2"` or `"portable"`. `DG_KERNELS` with one of these values takes at most
/// that one. Otherwise it is the fastest: Intel's processors split BF16 instructions in two FMAs, each of half the
/// use of one in f32, and get `"avx512"`.
pub fn path() -> &'static str {
    plug::cpu().map_or("portable", |cpu| cpu.name())
}

/// For benchmarks: does nothing but the multiply-adds that the kernels' products of this precision are made of, on
/// this thread, `steps` times some hundred. Returns how many floating-point operations that were; `None` on the
/// portable path.
pub fn multiply_adds(p: Precision, steps: usize) -> Option<f64> {
    plug::cpu().map(|cpu| {
        let (done, value) = cpu.fma(p, steps);
        core::hint::black_box(value);
        done as f64
    })
}
