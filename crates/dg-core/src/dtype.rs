//! Number formats.

use serde::{Deserialize, Serialize};

/// Format in which a model computes. Sums are always accumulated in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Results of every operation rounded to bfloat16.
    Bfloat16,
    /// IEEE single precision.
    #[default]
    Float32,
}

impl DType {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bfloat16 => 2,
            Self::Float32 => 4,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        })
    }
}

/// Format in which time and guidance enter their sinusoid in a bfloat16 run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeDtype {
    /// Rounded to the model's dtype first, as diffusers does.
    #[default]
    Model,
    /// Kept in f32: nearer to the float32 picture.
    Float32,
}

impl std::fmt::Display for TimeDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Float32 => "float32",
        })
    }
}
