//! Tensors of burn on NVIDIA GPUs (feature `cuda`; without it this crate is empty).
//!
//! # Layout
//! - `device`: the device of this process
//! - `kernels`: own kernels for what burn does in several passes, or not at all
//! - `tensor`: tensors as messages and back, without copying, and `Tensors`, the arena in which received
//!   messages are tensors from the start
#![cfg(feature = "cuda")]

pub mod device;
pub mod kernels;
pub mod tensor;
