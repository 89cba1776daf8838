//! Settings: one TOML schema, environment variables and flags, each value with its origin.
//!
//! Everything is pure: files and the environment are read by the caller and passed in. What a
//! setting is called in TOML, in the environment and on the command line, what it accepts and what
//! it means stands once, in [`table`].
//!
//! # Layout
//! - [`setting`]: [`Setting`], its [`Kind`] and checked [`Value`]s
//! - [`table`]: [`Key`] and the table of all settings
//! - [`mod@file`]: TOML → values; errors show the line
//! - [`mod@env`]: `DG_*` → values
//! - [`cluster`], [`node`], [`mesh`]: the sections of a cluster in the same file, as [`ClusterFile`]
//! - [`field`], [`fields`]: the table of their keys; [`units`]: times, memory and addresses as people write them
//! - [`mod@state`]: where a cluster keeps its state
//! - [`layers`]: [`Layers`], the precedence built-in < model < TOML < environment < flags
//! - [`suggest`]: "did you mean"
//!
//! ```
//! use dg_config::{Key, Layers, Origin};
//! use std::path::Path;
//!
//! let mut layers = Layers::default();
//! layers.add_file(Path::new("run.toml"), "[generate]\nheight = 512\nwidth = 256\n").unwrap();
//! layers.add_env([("DG_T2I_WIDTH".into(), "768".into())]).unwrap();
//! let settings = layers.resolve();
//! assert_eq!((settings.integer(Key::Height), settings.integer(Key::Width)), (512, 768));
//! assert!(matches!(settings.origin(Key::Height), Some(Origin::File { line: 2, .. })));
//! assert_eq!(settings.origin(Key::Width).unwrap().to_string(), "DG_T2I_WIDTH");
//! ```
#![forbid(unsafe_code)]

pub mod cluster;
pub mod env;
pub mod field;
pub mod fields;
pub mod file;
pub mod layers;
pub mod mesh;
pub mod node;
mod section;
pub mod setting;
pub mod state;
pub mod suggest;
pub mod table;
pub mod units;

pub use cluster::ClusterFile;
pub use env::EnvError;
pub use file::FileError;
pub use layers::{BadDefault, Layers, Origin, Settings};
pub use node::{Launch, Node, NodeDevice};
pub use setting::{BadValue, Kind, Setting, Value};
pub use state::state_folder;
pub use table::{Key, SETTINGS};
pub use units::Address;
