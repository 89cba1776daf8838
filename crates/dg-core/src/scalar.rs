//! Checked numbers of a request.

use serde::{Deserialize, Serialize};

/// A number outside its limits.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} {value} is outside {limits}")]
pub struct BadNumber {
    /// What the number is.
    pub name: &'static str,
    /// The number as it was given.
    pub value: String,
    /// The accepted range.
    pub limits: &'static str,
}

/// Seed of the noise generator. torch's generator takes it modulo 2³².
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl Seed {
    /// The seed of image `index` of a run: `self + index`, wrapping at 2⁶⁴.
    pub fn plus(self, index: u64) -> Self {
        Self(self.0.wrapping_add(index))
    }

    /// The smaller seed that gives the same noise, when this one is above 2³² − 1.
    pub fn alias(self) -> Option<u32> {
        let low = self.0 as u32;
        (u64::from(low) != self.0).then_some(low)
    }
}

/// Number of denoising steps, 1 … 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Steps(u32);

impl Steps {
    /// Most steps that a request may ask for: the training timesteps of the scheduler.
    pub const MAX: u32 = 1000;

    /// The number as `usize`.
    pub fn count(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<u32> for Steps {
    type Error = BadNumber;
    fn try_from(n: u32) -> Result<Self, BadNumber> {
        let limits = "1..=1000";
        let bad = || BadNumber { name: "num_inference_steps", value: n.to_string(), limits };
        (1..=Self::MAX).contains(&n).then_some(Self(n)).ok_or_else(bad)
    }
}

impl From<Steps> for u32 {
    fn from(s: Steps) -> Self {
        s.0
    }
}

/// A guidance scale: finite, 0 … 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Scale(f64);

impl Scale {
    /// Largest accepted scale.
    pub const MAX: f64 = 100.0;

    /// The scale itself.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Scale {
    type Error = BadNumber;
    fn try_from(x: f64) -> Result<Self, BadNumber> {
        // −0 would be another recorded request than 0 for the same picture
        let bad = || BadNumber { name: "scale", value: x.to_string(), limits: "0..=100" };
        (0.0..=Self::MAX).contains(&x).then_some(Self(x + 0.0)).ok_or_else(bad)
    }
}

impl From<Scale> for f64 {
    fn from(s: Scale) -> Self {
        s.0
    }
}

/// Number of T5 tokens that the transformer attends to, 1 … 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SequenceLength(u32);

impl SequenceLength {
    /// The limit of diffusers' FLUX pipeline.
    pub const MAX: u32 = 512;

    /// The number as `usize`.
    pub fn tokens(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<u32> for SequenceLength {
    type Error = BadNumber;
    fn try_from(n: u32) -> Result<Self, BadNumber> {
        let limits = "1..=512";
        let bad = || BadNumber { name: "max_sequence_length", value: n.to_string(), limits };
        (1..=Self::MAX).contains(&n).then_some(Self(n)).ok_or_else(bad)
    }
}

impl From<SequenceLength> for u32 {
    fn from(s: SequenceLength) -> Self {
        s.0
    }
}

/// Which image of a seed's noise stream, 0 … 4095: the ones before it have to be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct NoiseIndex(u32);

impl NoiseIndex {
    /// Images that are skipped at most.
    pub const MAX: u32 = 4095;

    /// Images to skip.
    pub fn count(self) -> usize {
        self.0 as usize
    }

    /// Whether it is the first image.
    pub fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl TryFrom<u32> for NoiseIndex {
    type Error = BadNumber;
    fn try_from(n: u32) -> Result<Self, BadNumber> {
        let bad = || BadNumber { name: "noise_index", value: n.to_string(), limits: "0..=4095" };
        (n <= Self::MAX).then_some(Self(n)).ok_or_else(bad)
    }
}

impl From<NoiseIndex> for u32 {
    fn from(n: NoiseIndex) -> Self {
        n.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold() {
        assert!(Steps::try_from(0).is_err() && Steps::try_from(1001).is_err());
        assert_eq!(Steps::try_from(28).unwrap().count(), 28);
        assert!(SequenceLength::try_from(513).is_err() && SequenceLength::try_from(0).is_err());
        for x in [f64::NAN, f64::INFINITY, -0.1, 100.5] {
            assert!(Scale::try_from(x).is_err(), "{x}");
        }
        assert_eq!(Scale::try_from(-0.0).unwrap().value().to_bits(), 0);
    }

    #[test]
    fn seeds_alias_above_32_bits() {
        assert_eq!(Seed(u64::from(u32::MAX)).alias(), None);
        assert_eq!(Seed(1 << 63).alias(), Some(0));
        assert_eq!(Seed(u64::MAX).plus(1), Seed(0));
    }
}
