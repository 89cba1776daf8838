//! Plans.
#![forbid(unsafe_code)]

pub mod known;
pub mod layout;
pub mod parts;
pub mod patches;
pub mod segments;
pub mod split;
pub mod stages;

pub use layout::{Coords, Dim, Layout};
pub use parts::{Block, Part};
pub use patches::PatchTable;
pub use segments::{HeadSplit, Kind, Segment, SegmentError, SegmentTable};
pub use stages::{Balance, StageError, StageTable};
