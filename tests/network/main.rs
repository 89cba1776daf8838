//! The cluster on its network: processes as a person starts them, peers that mean harm, namespaces that lose packets.
//!
//! One test at a time: they measure memory and time. Those that need network namespaces or `nft` and cannot have them
//! say SKIPPED.

mod decoders;
mod forge;
mod guests;
mod hostile;
mod identity;
mod joining;
mod load;
mod mutate;
mod net;
mod nodes;
#[path = "../../crates/dg-net/tests/support/old_session.rs"]
mod old_session;
mod raw;
mod rig;
mod sessions;
