//! Ranks that share a picture, as threads, against one rank.

mod deadlock;
mod engine;
mod failure;
mod keys;
mod matrix;
mod model;
mod overlap;
mod parity;
mod plain;
mod poison;
mod ranks;
mod resume;
mod schedule;
mod stale;
