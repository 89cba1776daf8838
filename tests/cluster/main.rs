//! Clusters of processes as a person runs them, and what they do when something is killed.
//!
//! One cluster at a time: its processes fill a small machine. `DG_KILLS` and `DG_SOAK_SECONDS` ask for more.

mod agents;
mod failures;
mod hangs;
mod heads;
mod kills;
mod orders;
mod parity;
mod pictures;
mod proc;
mod random;
mod refusals;
mod rig;
mod soak;
