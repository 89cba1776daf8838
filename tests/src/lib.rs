//! Tests of the whole workspace; the programs in this folder's `[[test]]` tables.
//!
//! - `tidy`: the shape of the workspace
//! - `golden`: numbers and pictures against the reference
//! - `e2e`: the program as a person runs it
//! - `parallel`: ranks that share a picture against one rank
//! - `network`: the cluster of processes against hostile peers, bad networks and load
