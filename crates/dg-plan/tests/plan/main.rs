//! Plans as their users see them.

mod bytes;
mod keys;
mod memory;
mod published;
mod refusals;
mod resume;
mod scale;
mod support;
mod time;
