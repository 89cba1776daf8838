//! What is decided, as pure state machines: `handle(event) -> actions`. No clock, task or IO.
//!
//! - [`queue`]: which job goes to which replica and when, and what happens when a rank dies
//! - `replica`: the jobs and ranks of one replica
//! - [`ends`]: how a job ended, from how it ended on each of its ranks
//! - [`cluster`]: the same and more for ranks on many nodes: leases, epochs, checkpoints, placement

pub mod cluster;
pub mod ends;
pub mod queue;
mod replica;
