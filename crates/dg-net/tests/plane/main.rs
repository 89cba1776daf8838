//! Communicators between processes: conformant, and hard to disturb.

mod behaviour;
mod certificates;
mod conformance;
mod hello;
mod hostile;
mod mesh;
mod processes;
mod raw;
