//! What is decided, as pure state machines: `handle(event) -> actions`. No clock, task or IO.
//!
//! - [`queue`]: which job goes to which replica and when, and what happens when a rank dies
//! - `replica`: the jobs and ranks of one replica
//! - [`ends`]: how a job ended, from how it ended on each of its ranks

pub mod ends;
pub mod queue;
mod replica;
