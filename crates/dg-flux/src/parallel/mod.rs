//! One picture on several ranks: the sequence, the blocks and the branches of true CFG are shared out.
//!
//! A rank computes the rows of its own tokens in the blocks of its stage. Within a block only attention needs the
//! others' tokens, so that stands behind [`Attend`](crate::attend::Attend), and the transformer does not know of it.
//! Who owns what, who sends what to whom, and in how many bytes is decided by `dg-plan` (its module `traffic` has
//! the rules).
//!
//! # Layout
//! - [`denoise`]: [`Denoiser`], the weights of one rank and its part in all steps; one rank alone is the serial run
//! - [`job`], [`embeds`]: what a rank is told of a job, and what it gets of the prompts
//! - [`checkpoint`]: [`Resume`] and [`LatentsPart`], what a job goes on from and what ranks hand out for that
//! - `units`: what goes through the stages, in which order; `edges`: between stages and between branches
//! - `kept`: keys and values that PipeFusion keeps
//! - [`sequence`]: [`Sequence`], attention on one rank of ring × Ulysses
//! - `ulysses`: tokens for heads and back, two exchanges per block; exact
//! - `ring`: keys and values go round, partial results are merged; within rounding
//! - [`share`]: [`Share`], the rows of one rank, and [`gather`], all rows on one rank
//! - `wire`: tensors as messages
//!
//! # Errors
//! A rank that cannot go on must end the others too: run its work in [`on_rank`]. Every call between ranks has a
//! deadline, and each error names the rank that began it.

pub mod checkpoint;
pub mod denoise;
mod edges;
pub mod embeds;
pub mod job;
mod kept;
mod ring;
pub mod sequence;
pub mod share;
mod ulysses;
mod units;
mod wire;

pub use checkpoint::{LatentsPart, PartsError, Resume, ResumeError, Rows};
pub use denoise::Denoiser;
pub use embeds::Encoded;
pub use job::RankJob;
pub use sequence::{Job, Sequence};
pub use share::{Share, gather};

use crate::PassError;
use dg_comm::Communicator;

/// Does one rank's `work`, then finishes; if it fails, ends the job on all ranks with the cause. A panic ends it
/// too, once the communicator is dropped.
///
/// # Errors
/// That of `work`, or [`dg_comm::CommError::Unread`] if messages for this rank are left.
pub fn on_rank<T>(
    comm: &dyn Communicator,
    work: impl FnOnce() -> Result<T, PassError>,
) -> Result<T, PassError> {
    match work() {
        Ok(result) => {
            comm.finish()?;
            Ok(result)
        }
        Err(error) => {
            // of several aborts the first counts: whoever fails because of another does not hide its name
            comm.abort(&error.to_string());
            Err(error)
        }
    }
}
