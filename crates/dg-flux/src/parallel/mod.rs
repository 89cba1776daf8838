//! One picture on several ranks: the sequence is shared out, and attention brings it together.
//!
//! All ranks have all blocks, and each computes the rows of its own tokens. Only attention needs the others'
//! tokens, so all of this stands behind [`Attend`](crate::attend::Attend), and the transformer does not know of it.
//! Who owns what, who sends what to whom, and in how many bytes is decided by `dg-plan` (its module `traffic` has
//! the rules).
//!
//! # Layout
//! - [`sequence`]: [`Sequence`], attention on one rank of ring × Ulysses
//! - `ulysses`: tokens for heads and back, two exchanges per block; exact
//! - `ring`: keys and values go round, partial results are merged; within rounding
//! - [`share`]: [`Share`], the rows of one rank, and [`gather`], all rows on one rank
//! - `wire`: tensors as messages
//!
//! # Errors
//! A rank that cannot go on must end the others too: run its work in [`on_rank`]. Every call between ranks has a
//! deadline, and each error names the rank that began it.

pub mod job;
mod ring;
pub mod sequence;
pub mod share;
mod ulysses;
mod wire;

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
