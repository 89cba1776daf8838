//! The program as a person runs it.

mod args;
mod config;
mod hub;
mod output;
mod place;
mod plan;
mod prompts;
mod ranks;
mod resume;
mod signals;
mod threads;
