//! Plans: how one FLUX run is spread over ranks, what each rank holds and sends, and how long it may take.
//!
//! Pure: no IO, no clock, no tensors. Everything follows from the shapes of the model and the picture, so a layout
//! that cannot run is refused before any file is read.
//!
//! # Layout
//! - [`layout`]: [`Layout`], the order of ranks, coordinates, groups
//! - [`segments`], [`patches`], [`stages`], [`parts`]: who owns which tokens, heads, blocks and weights
//! - [`plan`]: [`Work`] and [`Ask`] in, [`Plan`] out; [`refuse`]: why not, and what instead
//! - [`traffic`]: what is sent by whom, byte for byte; the rules that strategies follow
//! - [`memory`], [`time`]: bytes per rank, predicted seconds
//! - [`links`], [`machine`]: what ranks run on; [`known`]: shapes of published models
//! - [`mod@search`]: all layouts of a number of ranks, ranked
//!
//! ```
//! use dg_core::ImageSize;
//! use dg_plan::{Ask, Class, Layout, Plan, Work, known};
//!
//! let (size, _) = ImageSize::fit(1024, 1024).unwrap();
//! let work = Work::one(known::flux_dev(), size);
//! let plan = Plan::new(&work, &Ask::layout(Layout { ulysses: 4, ..Layout::SERIAL })).unwrap();
//! let step = plan.sent_in_step(0, 1, 0);
//! // 4·(A/N)·(N−1)/N·L with A = 4608·3072·2 bytes
//! assert_eq!(step.total(), 1_210_318_848);
//! assert_eq!(step.messages(Class::UlyssesQkv), 3 * 57);
//! ```
#![forbid(unsafe_code)]

pub mod known;
pub mod layout;
pub mod links;
pub mod machine;
pub mod memory;
pub mod parts;
pub mod patches;
pub mod plan;
pub mod refuse;
pub mod search;
pub mod segments;
pub mod split;
pub mod stages;
pub mod time;
pub mod traffic;

pub use layout::{Coords, Dim, Layout};
pub use links::{LinkKind, Links, LinksError};
pub use machine::{Device, Engine, Machine};
pub use memory::{RankMemory, window_bytes};
pub use parts::{Block, Part};
pub use patches::PatchTable;
pub use plan::{Ask, Passes, Pipeline, Plan, Warning, WeightBytes, Work};
pub use refuse::{Cause, Change, Refusal, Remedy};
pub use search::{Bounds, Candidate, Scale, Scaling, Search, scaling, search};
pub use segments::{HeadSplit, Kind, Segment, SegmentError, SegmentTable};
pub use stages::{Balance, StageError, StageTable};
pub use time::Prediction;
pub use traffic::{Class, Traffic};
