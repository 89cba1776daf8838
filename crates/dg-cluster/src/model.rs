//! Names of models → shapes. Weights are not read, and the hub is not asked.

use crate::failure::Failure;
use dg_core::{ExitCode, GenerationDefaults, ModelShape};
use dg_flux::{ModelConfig, ModelSource};
use std::path::PathBuf;

/// The shape of the model that goes by `name`, and what it says about itself.
pub(crate) fn shape(name: &str) -> Result<(ModelShape, GenerationDefaults), Failure> {
    let source = if name == DEMO { demo()? } else { folder(name) };
    let Some(source) = source else {
        let published = dg_plan::known::published(name).map(|shape| (shape, GenerationDefaults::default()));
        return published.ok_or_else(|| {
            let message = format!("model `{name}` is not on this host, and its shape is not built in");
            let hint = "name `demo`, FLUX.1-dev, FLUX.1-schnell, or a folder with a model_index.json";
            Failure::new(ExitCode::Config, message, hint)
        });
    };
    let file = "generation_config.json";
    let defaults = if source.has(file) { source.json(file)? } else { GenerationDefaults::default() };
    Ok((ModelConfig::read(&source)?.shape, defaults))
}

fn folder(name: &str) -> Option<ModelSource> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let path = match (name.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(name),
    };
    path.is_dir().then_some(ModelSource::Folder(path))
}

#[cfg(feature = "demo")]
fn demo() -> Result<Option<ModelSource>, Failure> {
    Ok(Some(ModelSource::Embedded(dg_demo::files().iter().map(|f| (f.path, f.bytes)).collect())))
}

#[cfg(not(feature = "demo"))]
fn demo() -> Result<Option<ModelSource>, Failure> {
    let hint = "build with `--features demo`, or name another model";
    Err(Failure::new(ExitCode::Config, "the model `demo` is not in this build", hint))
}

/// Name of the built-in model.
pub(crate) const DEMO: &str = "demo";
