//! Whether all ranks have NCCL, asked before it is used: with it and without it they would not understand each other.

use crate::error::Version;
use dg_comm::{Block, Call, Class, Communicator, Deadline, Result, Tag};

/// The version of NCCL that each rank of `plane`, a communicator of the host, has; `have` is that of this rank. All
/// ranks must ask, before any of them wraps `plane`.
///
/// # Errors
/// Those of [`Communicator::all_gather`].
pub fn versions(
    plane: &dyn Communicator,
    have: Option<Version>,
    deadline: Deadline,
) -> Result<Vec<Option<Version>>> {
    let call = Call::new(Class::Control, Tag::new(u64::MAX), deadline).in_group(GROUP);
    // Versions have six digits, which an f32 holds.
    let own = Block::from_f32(vec![have.map_or(0.0, |version| version.0 as f32)]);
    let all = plane.all_gather(&call, own, &vec![1; plane.size()])?;
    let version = |block: &Block| match block.as_f32() {
        Some([version]) if *version > 0.0 => Some(Version(*version as i32)),
        _ => None,
    };
    Ok(all.iter().map(version).collect())
}

/// A number that no group of ranks has, as that of tickets.
const GROUP: u64 = 0x6e63_636c_0000_0002;

#[cfg(test)]
mod tests {
    use super::*;
    use dg_comm::InProcess;
    use std::time::Duration;

    #[test]
    fn every_rank_hears_of_every_version() {
        let have = [Some(Version(21_803)), None, Some(Version(23_007))];
        std::thread::scope(|scope| {
            for (rank, own) in InProcess::group(3).into_iter().zip(have) {
                scope.spawn(move || {
                    let all = versions(&rank, own, Deadline::after(Duration::from_secs(20)));
                    assert_eq!(all.unwrap(), have);
                    rank.finish().unwrap();
                });
            }
        });
    }
}
