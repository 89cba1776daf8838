//! Names of models → shapes, and whether a model is on this host. Weights are not read, and the hub is not asked.

use crate::failure::Failure;
use dg_core::{ExitCode, GenerationDefaults, ModelShape};
use dg_flux::{ModelConfig, ModelRepo, ModelSource};
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

/// Where on this host the model is that goes by `name`: in words, or nothing if it may only be on the hub.
pub(crate) fn find(name: &str) -> Result<Option<String>, Failure> {
    if name == DEMO {
        return Ok(demo()?.map(|_| "built in".into()));
    }
    if let Some(source) = folder(name) {
        ModelConfig::read(&source)?;
        return Ok(Some("a folder".into()));
    }
    let is_published = dg_plan::known::published(name).is_some();
    let is_id = name.split('/').count() == 2 && !name.starts_with(['/', '.', '~']);
    match is_published || is_id {
        true => Ok(cached(name)),
        false => shape(name).map(|_| None),
    }
}

/// Opens the model that goes by `name` on this host: built in, a folder, or in the hub's cache.
pub(crate) fn open(name: &str) -> Result<ModelRepo, Failure> {
    if name == DEMO
        && let Some(source) = demo()?
    {
        return Ok(ModelRepo::open(source, DEMO)?);
    }
    if let Some(source) = folder(name) {
        let root = source.root();
        let real = root.canonicalize().unwrap_or(root);
        let id = real.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        return Ok(ModelRepo::open(source, &id)?);
    }
    let id = if name.contains('/') { name.to_owned() } else { format!("black-forest-labs/{name}") };
    let Some(path) = cached_at(&id) else {
        let message = format!("the model `{name}` is neither a folder nor in the hub's cache of this host");
        let hint = "download it there: `diffgentor t2i --model_name …` does, or name its folder";
        return Err(Failure::new(ExitCode::Config, message, hint));
    };
    Ok(ModelRepo::open(ModelSource::Folder(path), &id)?)
}

#[cfg(feature = "hub")]
fn cached_at(name: &str) -> Option<PathBuf> {
    let id = dg_hub::RepoId::parse(name).ok()?;
    let models = dg_hub::cached(&dg_hub::HubOptions::from_env());
    let found = models.into_iter().find(|model| model.id.as_str() == id.as_str() && model.complete)?;
    Some(found.path)
}

#[cfg(not(feature = "hub"))]
fn cached_at(_: &str) -> Option<PathBuf> {
    None
}

#[cfg(feature = "hub")]
fn cached(name: &str) -> Option<String> {
    let id = dg_hub::RepoId::parse(name).ok()?;
    let models = dg_hub::cached(&dg_hub::HubOptions::from_env());
    let found = models.into_iter().find(|model| model.id.as_str() == id.as_str() && model.complete)?;
    Some(format!("in the hub's cache, {}", found.path.display()))
}

#[cfg(not(feature = "hub"))]
fn cached(_: &str) -> Option<String> {
    None
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
