//! Tensors of random values, made when they are written: a model of the published size is larger than memory.

use rayon::prelude::*;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;

/// Values of which one thread makes all, with random numbers of its own.
const CHUNK: usize = 1 << 20;

/// One tensor. Its values are uniform and keep activations of order one: norms around 1, biases small, weights by their
/// number of inputs. Name and shape alone determine them.
pub(super) struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Tensor {
    pub(super) fn new(name: &str, shape: &[usize], dtype: Dtype) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), dtype }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }

    /// Middle and half width of its values.
    fn range(&self) -> (f32, f32) {
        let inputs: usize = self.shape.iter().skip(1).product();
        match self.shape.len() {
            1 if self.name.ends_with(".weight") => (1.0, 0.1),
            1 => (0.0, 0.1),
            _ => (0.0, (3.0 / inputs as f32).sqrt()),
        }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (middle, width) = self.range();
        let mut bytes = vec![0; self.bytes()];
        let each = if self.dtype == Dtype::BF16 { 2 } else { 4 };
        bytes.par_chunks_mut(CHUNK * each).enumerate().for_each(|(i, chunk)| {
            let mut random = Random::new(&self.name, i as u64);
            for value in chunk.chunks_exact_mut(each) {
                let x = middle + width * random.next();
                match each {
                    2 => value.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
                    _ => value.copy_from_slice(&x.to_le_bytes()),
                }
            }
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

/// Marsaglia's xorshift (2003).
struct Random(u64);

impl Random {
    /// Begins at the FNV-1a hash of a name and a number.
    fn new(name: &str, number: u64) -> Self {
        let bytes = name.bytes().chain(number.to_le_bytes());
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Self(hash | 1)
    }

    /// From −1 to 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
