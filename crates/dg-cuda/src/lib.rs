//! Tensors of burn on NVIDIA GPUs (feature `cuda`; without it this crate is empty).
//!
//! # Layout
//! - `device`: the device of this process
//! - `tensor`: tensors as messages and back, without copying, and `Tensors`, the arena in which received
//!   messages are tensors from the start
#![cfg(feature = "cuda")]

pub mod device;
pub mod tensor;
