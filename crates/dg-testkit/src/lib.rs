//! What the tests of this workspace share. Not part of any program.
//!
//! # Layout
//! - this file: where the test data is
//! - [`golden`]: [`Golden`], the tensors of one reference case
//! - [`compare`]: differences between numbers and between pictures
//! - [`program`]: runs the built `diffgentor`
//! - [`hub`]: [`HubServer`], a model hub of one repository on this machine
//!
//! ```
//! let manifest = dg_testkit::manifest();
//! assert_eq!(manifest["dev_256"]["kind"], "t2i");
//! let golden = dg_testkit::Golden::load("dev_256");
//! assert_eq!(golden.tensor("pooled").shape, [1, 48]);
//! ```
#![forbid(unsafe_code)]

pub mod compare;
pub mod golden;
pub mod hub;
pub mod program;

use std::path::{Path, PathBuf};

pub use compare::{Difference, image_difference, max_abs_diff, read_png_rgb, sha256_f32, sha256_hex};
pub use golden::{Golden, GoldenTensor};
pub use hub::HubServer;
pub use program::{Output, diffgentor_bin, run};

/// The root of the workspace.
pub fn workspace_dir() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("this crate lies two folders below the root").to_owned()
}

/// `tests/data`.
pub fn data_dir() -> PathBuf {
    workspace_dir().join("tests").join("data")
}

/// The folder of a test model, `tiny-dev` or `tiny-schnell`.
pub fn model_dir(name: &str) -> PathBuf {
    let folder = data_dir().join(name);
    assert!(
        folder.join("model_index.json").is_file(),
        "there is no test model `{name}` in {}",
        data_dir().display()
    );
    folder
}

/// `golden/manifest.json`: the inputs of every case and what came out.
pub fn manifest() -> serde_json::Value {
    golden_json("manifest.json")
}

/// A JSON file of `golden/`: `tok_golden.json`, `schedule_golden.json`, `rng_golden.json`.
pub fn golden_json(name: &str) -> serde_json::Value {
    read_json(&data_dir().join("golden").join(name))
}

/// Reads a JSON file; panics with its name if that fails.
pub fn read_json(path: &Path) -> serde_json::Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
