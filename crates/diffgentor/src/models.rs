//! Names of models → opened models, and the `models` command.

use crate::args::ModelsAction;
use crate::failure::Failure;
use crate::hub::{self, HubAsk};
use crate::output::printer::print;
use crate::{engine, known, machine};
use dg_config::suggest;
use dg_core::{ExitCode, GenerationDefaults, ModelShape, Recipe};
use dg_flux::{ModelConfig, ModelRepo, ModelSource};
use std::path::{Path, PathBuf};

/// What a model's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The model in the program.
    Demo,
    /// A folder in diffusers layout.
    Folder(PathBuf),
    /// A repository on the hub.
    Hub(String),
}

/// Opens the model that goes by `name`: configs and headers, no weights.
pub(crate) fn open(name: &str, ask: &HubAsk<'_>) -> Result<ModelRepo, Failure> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match place(name, home.as_deref(), &|p| p.is_dir())? {
        Place::Demo => {
            let source = engine::demo().ok_or_else(|| {
                Failure::config("the model `demo` is not in this build")
                    .hint("build with `--features demo`, or name a folder or a hub id")
            })?;
            Ok(ModelRepo::open(source, DEMO)?)
        }
        Place::Folder(path) => {
            let repo = ModelRepo::open(ModelSource::Folder(path.clone()), &folder_id(&path))?;
            known::remember(&repo.id().hash, &path);
            Ok(repo)
        }
        Place::Hub(id) => Ok(ModelRepo::open(ModelSource::Folder(hub::fetch(&id, ask)?), &id)?),
    }
}

/// The shape of the model that goes by `name`, and what it says about itself. Configs are enough: weights need not be
/// there, and published models need no files at all.
pub(crate) fn shape(name: &str, ask: &HubAsk<'_>) -> Result<(ModelShape, GenerationDefaults), Failure> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let source = match place(name, home.as_deref(), &|p| p.is_dir())? {
        Place::Folder(path) => ModelSource::Folder(path),
        Place::Hub(id) => match dg_plan::known::published(&id) {
            Some(shape) => return Ok((shape, GenerationDefaults::default())),
            None => ModelSource::Folder(hub::fetch(&id, ask)?),
        },
        Place::Demo => {
            let repo = open(name, ask)?;
            return Ok((repo.shape().clone(), repo.defaults().clone()));
        }
    };
    let file = "generation_config.json";
    let defaults = if source.has(file) { source.json(file)? } else { GenerationDefaults::default() };
    Ok((ModelConfig::read(&source)?.shape, defaults))
}

/// Opens the model of a recorded picture: by its name, or else where its hash was seen before.
pub(crate) fn open_recorded(recipe: &Recipe, ask: &HubAsk<'_>) -> Result<ModelRepo, Failure> {
    let model = &recipe.model;
    if let Some(path) = known::recall(&model.hash) {
        return Ok(ModelRepo::open(ModelSource::Folder(path), &model.id)?);
    }
    if model.id == DEMO || model.id.contains('/') || Path::new(&model.id).is_dir() {
        return open(&model.id, ask);
    }
    let message = format!("the picture's model `{}` has not been used on this machine", model.id);
    Err(Failure::config(message).hint("name its folder with --model_name"))
}

/// Decides what `name` stands for. What looks like a path is never looked up on the hub; otherwise a
/// folder that exists wins over a hub id.
fn place(name: &str, home: Option<&Path>, is_dir: &dyn Fn(&Path) -> bool) -> Result<Place, Failure> {
    if name == DEMO {
        return Ok(Place::Demo);
    }
    let below_home = name.strip_prefix("~/").or_else(|| (name == "~").then_some(""));
    let path = match (below_home, home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(name),
    };
    if is_dir(&path) {
        return Ok(Place::Folder(path));
    }
    let is_path = name.starts_with(['/', '~', '.']) || name.ends_with('/');
    if is_path {
        return Err(Failure::config(format!("model `{name}`: there is no such folder"))
            .hint("check the path; a model is a folder with a model_index.json"));
    }
    if let Some(owner_and_name) = hub_id(name) {
        return Ok(Place::Hub(owner_and_name));
    }
    let near = suggest::closest(name, SHORT_NAMES.into_iter().chain([DEMO]));
    let failure = Failure::config(format!("model `{name}` is neither a folder nor a hub id"));
    Err(match near {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint("give `demo`, a folder, a hub id such as black-forest-labs/FLUX.1-dev, or FLUX.1-dev or FLUX.1-schnell"),
    })
}

/// The hub id that `name` is or stands for.
fn hub_id(name: &str) -> Option<String> {
    if let Some(short) = SHORT_NAMES.iter().find(|short| short.eq_ignore_ascii_case(name)) {
        return Some(format!("black-forest-labs/{short}"));
    }
    (name.split('/').count() == 2).then(|| name.to_string())
}

/// A folder's own name, whatever path leads to it.
fn folder_id(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    real.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// `models list` and `models verify`.
pub(crate) fn command(action: &ModelsAction, json: bool) -> Result<ExitCode, Failure> {
    match action {
        ModelsAction::List => list(json),
        ModelsAction::Verify { model } => {
            let repo = open(model, &HubAsk { local_files_only: true, ..HubAsk::default() })?;
            let (checksum, bytes) = (repo.verify()?, repo.weight_bytes());
            let id = repo.id();
            print(&match json {
                true => serde_json::json!({
                    "model": id.id, "hash": id.hash, "blake3": checksum, "weight_bytes": bytes,
                })
                .to_string(),
                false => format!("{}  {}  {}", checksum, id.id, machine::bytes(bytes)),
            });
        }
    }
    Ok(ExitCode::Ok)
}

fn list(json: bool) {
    let demo = engine::demo().map(|_| (DEMO.to_string(), "built in".to_string(), true));
    let folders = known::all().into_iter().map(|k| (folder_id(&k.path), k.path.display().to_string(), true));
    let cached = hub::cached().into_iter().map(|m| (m.id, m.place, m.complete));
    for (name, place, complete) in demo.into_iter().chain(cached).chain(folders) {
        let line = match (json, complete) {
            (true, _) => serde_json::json!({"model": name, "place": place, "complete": complete}).to_string(),
            (false, true) => format!("{name}  {place}"),
            (false, false) => format!("{name}  {place}  (incomplete)"),
        };
        if !print(&line) {
            return;
        }
    }
}

/// Name of the built-in model.
pub(crate) const DEMO: &str = "demo";
const SHORT_NAMES: [&str; 2] = ["FLUX.1-dev", "FLUX.1-schnell"];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, dirs: &[&str], expect: Result<Place, &str>) {
        let is_dir = |p: &Path| dirs.iter().any(|d| Path::new(d) == p);
        match (place(name, Some(Path::new("/home/u")), &is_dir), expect) {
            (Ok(place), Ok(expect)) => assert_eq!(place, expect, "{name}"),
            (Err(e), Err(part)) => {
                let text = format!("{} {}", e.message, e.hint.clone().unwrap_or_default());
                assert!(text.contains(part) && e.exit == ExitCode::Config, "{name}: {text}");
            }
            (got, expect) => panic!("{name}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn names_have_one_meaning() {
        let folder = |p: &str| Ok(Place::Folder(p.into()));
        let hub = |id: &str| Ok(Place::Hub(id.into()));
        check("demo", &["demo"], Ok(Place::Demo));
        check("./demo", &["./demo"], folder("./demo"));
        check("a/b", &["a/b"], folder("a/b"));
        check("a/b", &[], hub("a/b"));
        check("~/m", &["/home/u/m"], folder("/home/u/m"));
        check("FLUX.1-dev", &[], hub("black-forest-labs/FLUX.1-dev"));
        check("flux.1-schnell", &[], hub("black-forest-labs/FLUX.1-schnell"));
        for path in ["./a/b", "../a", "~/m", "/m", "a/"] {
            check(path, &[], Err("there is no such folder"));
        }
        check("a/b/c", &[], Err("neither a folder nor a hub id"));
        check("FLUX.1-schnel", &[], Err("did you mean `FLUX.1-schnell`"));
    }
}
