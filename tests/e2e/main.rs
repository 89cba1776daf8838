//! The programs as a person runs them.

mod args;
mod certs;
mod cluster;
mod config;
mod deploy;
mod gpu;
mod hub;
mod live;
mod mixed;
mod output;
mod place;
mod plan;
mod prompts;
mod ranks;
mod resume;
mod signals;
mod sshd;
mod threads;
