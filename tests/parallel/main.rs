//! Ranks that share a picture, as threads, against one rank.

mod engine;
mod failure;
mod model;
mod parity;
mod ranks;
mod schedule;
