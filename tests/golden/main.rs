//! What diffusers makes of the same models, prompts and seeds. Tolerances: docs/numerics.md.

mod batch;
mod cases;
mod common;
mod config;
mod demo;
mod hostile;
mod large;
mod layouts;
mod modulation;
mod noise;
mod portable;
mod schedule;
mod text;
mod tokens;
mod trace;
mod vae;
