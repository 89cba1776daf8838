//! What is decided, as pure state machines: `handle(event) -> actions`. No clock, task or IO.

pub mod queue;
