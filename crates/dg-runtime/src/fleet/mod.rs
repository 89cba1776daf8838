//! The cluster as processes: a head, an agent per node, a rank per device, and clients.
//!
//! Decisions are those of [`logic::cluster`](crate::logic::cluster); here they are carried out. The head and the agents
//! are actors that speak over a [control bus](dg_net::bus); a rank is a process that its agent starts, joined to it by a
//! socket pair, and its ranks of a job find each other over a [tensor plane](dg_net::plane). Clients ask the head over
//! streams of their own.
//!
//! ```text
//!  client ── QUIC ── head ── QUIC ── agent ── socket pair ── rank: actor and compute thread
//!                                      └──── socket pair ── rank ═══ tensor plane ═══ ranks of other nodes
//! ```
//!
//! # Layout
//! - [`protocol`]: what they say to each other; [`job`]: what a job is, as it travels; `pipe`: frames between agent and rank
//! - [`head`], [`agent`], [`rank`]: the three kinds of processes
//! - `counter`: numbers of starts; `lock`: who has which folder; [`client`]: asking a head; [`places`]: which clusters are up on this host; [`private`]: a cluster
//!   for one program
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

pub mod agent;
pub mod client;
mod counter;
pub mod head;
pub mod job;
mod lock;
mod pipe;
pub mod places;
pub mod private;
pub mod protocol;
pub mod rank;
pub(crate) use rank::is_out_of_memory;

use dg_flux::ModelRepo;
use std::sync::Arc;

/// Opens the model that goes by a name on this node: built in, a folder, or in the hub's cache. The error is for reading.
pub type OpenModel = Arc<dyn Fn(&str) -> Result<ModelRepo, String> + Send + Sync>;
