//! The vocabulary that all crates share: what is asked for, what is reported, how a run ends.
//!
//! No IO, no async, no tensors. Everything here is parsed once at the edge and is valid from then on.
//!
//! # Layout
//! - [`request`]: [`GenerateRequest`], one image to make, and [`Recipe`], all that determines its pixels
//! - [`size`]: [`ImageSize`], a size that FLUX can draw
//! - [`scalar`]: [`Seed`], [`Steps`], [`Scale`], [`SequenceLength`], [`NoiseIndex`]: checked numbers
//! - [`dtype`]: number formats of the run
//! - [`shape`]: [`ModelShape`], the sizes of a model and the bytes that follow from them
//! - [`event`]: [`StepEvent`], what a running job tells
//! - [`report`]: the machine-readable report of a run
//! - [`exit`]: [`ExitCode`], how a program ends
//!
//! ```
//! use dg_core::{GenerateRequest, ImageSize, Seed};
//!
//! let (size, note) = ImageSize::fit(1000, 744).unwrap();
//! assert_eq!((size.width(), size.height()), (992, 736));
//! assert!(note.is_some());
//! let request = GenerateRequest::new("red apple", size, Seed(7));
//! assert_eq!(request.size.image_tokens(), 62 * 46);
//! ```
#![forbid(unsafe_code)]

pub mod dtype;
pub mod event;
pub mod exit;
pub mod report;
pub mod request;
pub mod scalar;
pub mod shape;
pub mod size;

pub use dtype::{DType, TimeDtype};
pub use event::StepEvent;
pub use exit::ExitCode;
pub use request::{GenerateRequest, GenerationDefaults, ModelId, PipeFusion, Recipe};
pub use scalar::{BadNumber, NoiseIndex, Scale, Seed, SequenceLength, Steps};
pub use shape::ModelShape;
pub use size::{BadSize, ImageSize, Rounded};
