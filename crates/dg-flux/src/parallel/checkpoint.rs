//! Checkpoints: the latents after a step. Ranks hand out those of their own tokens; a job goes on from those of all.
//!
//! [`dg_plan::Plan::resumes_at`] says which steps a job can go on from.

use dg_plan::Plan;
use std::ops::Range;

/// Where a job goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Resume {
    /// Steps that are done, from 1.
    pub step: usize,
    /// Packed latents of the batch after that step, `[images, image tokens, in_channels]` in row-major order.
    pub latents: Vec<f32>,
}

/// What one rank hands out of the latents after a step: those of its own tokens on the last stage, in the first branch;
/// nothing on other ranks. The parts of all ranks of a replica have every token of every picture once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentsPart {
    /// Steps that are done.
    pub step: usize,
    /// Whose values these are.
    pub rows: Vec<Rows>,
    /// Values of these rows, one row after the other.
    pub values: Vec<f32>,
}

/// A run of image tokens of one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Picture of the batch.
    pub image: usize,
    /// Image tokens.
    pub tokens: Range<usize>,
}

/// A checkpoint that a job cannot go on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// Not after this step, see [`Plan::resumes_at`].
    #[error("a job of {steps} steps ({warmup} of them warm a pipeline up) cannot go on after step {step}")]
    Step {
        /// Steps that are done.
        step: usize,
        /// Steps of the job.
        steps: usize,
        /// Synchronous steps of PipeFusion.
        warmup: usize,
    },
    /// Latents of another batch.
    #[error("a checkpoint of {found} values, expected {expected}")]
    Values {
        /// As given.
        found: usize,
        /// Of the job.
        expected: usize,
    },
}

/// Parts that are no checkpoint together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// Of more than one step.
    #[error("a part of the latents after step {found} among those after step {expected}")]
    Step {
        /// As given.
        found: usize,
        /// Of the first part.
        expected: usize,
    },
    /// Rows that the batch does not have.
    #[error("the tokens {tokens:?} of picture {image} are none of the batch")]
    Outside {
        /// As given.
        image: usize,
        /// As given.
        tokens: Range<usize>,
    },
    /// A part without values for its rows, or with more.
    #[error("a part has {found} values for {rows} rows")]
    Values {
        /// As given.
        found: usize,
        /// Rows of the part.
        rows: usize,
    },
    /// A token that came before.
    #[error("token {token} of picture {image} came twice")]
    Twice {
        /// Picture of the batch.
        image: usize,
        /// Image token.
        token: usize,
    },
    /// A token that never came.
    #[error("token {token} of picture {image} is missing")]
    Missing {
        /// Picture of the batch.
        image: usize,
        /// Image token.
        token: usize,
    },
    /// Not even an empty part.
    #[error("no parts")]
    Nothing,
}

impl Resume {
    /// Puts the parts of all ranks of a replica together, in any order, for a batch of
    /// `[images, image tokens, in_channels]`. Nothing is taken on trust: parts may have come over a network.
    ///
    /// # Errors
    /// If the parts are not of one step, or do not have every token of every picture once.
    pub fn from_parts(
        parts: &[LatentsPart],
        [images, tokens, channels]: [usize; 3],
    ) -> Result<Self, PartsError> {
        let step = parts.first().ok_or(PartsError::Nothing)?.step;
        let mut all = vec![None; images * tokens];
        for part in parts {
            if part.step != step {
                return Err(PartsError::Step { found: part.step, expected: step });
            }
            put(part, &mut all, [tokens, channels])?;
        }
        let mut latents = Vec::with_capacity(all.len() * channels);
        for (row, values) in all.into_iter().enumerate() {
            let (image, token) = (row / tokens, row % tokens);
            latents.extend_from_slice(values.ok_or(PartsError::Missing { image, token })?);
        }
        Ok(Self { step, latents })
    }

    /// Whether a batch of `dims` can go on from here as `plan` says.
    pub(super) fn check(&self, plan: &Plan, dims: [usize; 3]) -> Result<(), ResumeError> {
        if !plan.resumes_at(self.step) {
            let (steps, warmup) = (plan.work.steps, plan.warmup);
            return Err(ResumeError::Step { step: self.step, steps, warmup });
        }
        let (found, expected) = (self.latents.len(), dims.iter().product());
        if found == expected { Ok(()) } else { Err(ResumeError::Values { found, expected }) }
    }
}

/// Puts the rows of a part into those of all pictures.
fn put<'a>(
    part: &'a LatentsPart,
    all: &mut [Option<&'a [f32]>],
    [tokens, channels]: [usize; 2],
) -> Result<(), PartsError> {
    // no row is counted that is not there, so the sum is small
    let mut rows = 0;
    for Rows { image, tokens: run } in &part.rows {
        let is_inside = run.start <= run.end && run.end <= tokens;
        let of_image = image.checked_mul(tokens).filter(|_| is_inside);
        let own = of_image.and_then(|first| all.get_mut(first..)?.get_mut(run.clone()));
        let own = own.ok_or_else(|| PartsError::Outside { image: *image, tokens: run.clone() })?;
        for (slot, token) in own.iter_mut().zip(run.clone()) {
            if slot.is_some() {
                return Err(PartsError::Twice { image: *image, token });
            }
            let values = part.values.get(rows * channels..(rows + 1) * channels);
            let too_few = || PartsError::Values { found: part.values.len(), rows: part.row_count() };
            *slot = Some(values.ok_or_else(too_few)?);
            rows += 1;
        }
    }
    match part.values.len() {
        found if found == rows * channels => Ok(()),
        found => Err(PartsError::Values { found, rows }),
    }
}

impl LatentsPart {
    /// Rows that it says it has.
    fn row_count(&self) -> usize {
        self.rows.iter().fold(0, |sum: usize, rows| sum.saturating_add(rows.tokens.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: [usize; 3] = [2, 3, 2];

    fn part(rows: &[(usize, Range<usize>)], values: &[u8]) -> LatentsPart {
        let rows = rows.iter().map(|(image, tokens)| Rows { image: *image, tokens: tokens.clone() });
        LatentsPart { step: 4, rows: rows.collect(), values: values.iter().map(|x| f32::from(*x)).collect() }
    }

    /// Two ranks: the first has the first token, the other the rest.
    fn two() -> [LatentsPart; 2] {
        let first = part(&[(0, 0..1), (1, 0..1)], &[0, 1, 6, 7]);
        [first, part(&[(0, 1..3), (1, 1..3)], &[2, 3, 4, 5, 8, 9, 10, 11])]
    }

    fn error(parts: &[LatentsPart]) -> PartsError {
        Resume::from_parts(parts, DIMS).unwrap_err()
    }

    #[test]
    fn parts_fill_the_batch_in_any_order() {
        let [one, other] = two();
        let nothing = LatentsPart { step: 4, ..LatentsPart::default() };
        let expected = Resume { step: 4, latents: (0u8..12).map(f32::from).collect() };
        for parts in [[&one, &other, &nothing], [&nothing, &other, &one], [&other, &nothing, &one]] {
            assert_eq!(Resume::from_parts(&parts.map(Clone::clone), DIMS).as_ref(), Ok(&expected));
        }
    }

    #[test]
    fn rows_that_are_missing_or_double_are_found() {
        let [one, other] = two();
        assert_eq!(error(&[]), PartsError::Nothing);
        assert_eq!(error(std::slice::from_ref(&one)), PartsError::Missing { image: 0, token: 1 });
        assert_eq!(error(std::slice::from_ref(&other)), PartsError::Missing { image: 0, token: 0 });
        assert_eq!(
            error(&[one.clone(), other.clone(), one.clone()]),
            PartsError::Twice { image: 0, token: 0 }
        );
        let twice = part(&[(1, 1..3), (1, 2..3)], &[0; 6]);
        assert_eq!(error(&[twice]), PartsError::Twice { image: 1, token: 2 });
        let late = LatentsPart { step: 5, ..other };
        assert_eq!(error(&[one, late]), PartsError::Step { found: 5, expected: 4 });
    }

    #[test]
    fn sizes_that_lie_are_found() {
        let outside = |image, tokens: Range<usize>| {
            let lie = part(&[(image, tokens.clone())], &[0; 2]);
            assert_eq!(error(&[lie]), PartsError::Outside { image, tokens });
        };
        outside(2, 0..1);
        outside(0, 2..4);
        // no row of the next picture either
        outside(0, 3..4);
        outside(0, Range { start: 2, end: 1 });
        outside(usize::MAX, 0..1);
        outside(0, usize::MAX - 1..usize::MAX);
        outside(1, 0..usize::MAX);
        for values in [&[][..], &[0; 3], &[0; 5], &[0; 6]] {
            let found = values.len();
            assert_eq!(error(&[part(&[(0, 0..2)], values)]), PartsError::Values { found, rows: 2 });
        }
        assert_eq!(error(&[part(&[], &[1])]), PartsError::Values { found: 1, rows: 0 });
    }
}
