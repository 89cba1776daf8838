//! Nodes and ranks over a network: who is who, connections between nodes, and the planes that carry tensors between
//! the processes of CPU ranks.
//!
//! # Layout
//! - [`identity`]: certificates, and what makes one acceptable
//! - [`endpoint`]: QUIC endpoints on which both ends have proved who they are
//! - [`join`]: how a node with a token gets its certificate
//! - [`wire`]: small messages as bytes; [`quiet`]: a limit on lines of log
//! - [`bus`]: actors of two processes that speak over a connection
//! - [`plane`]: communicators between processes
#![forbid(unsafe_code)]

pub mod bus;
pub mod endpoint;
pub mod identity;
pub mod join;
pub mod plane;
pub mod quiet;
pub mod wire;
