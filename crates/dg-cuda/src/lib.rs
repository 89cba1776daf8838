//! Tensors of burn on NVIDIA GPUs (feature `cuda`; without it this crate is empty).
#![cfg(feature = "cuda")]

pub mod tensor;
