//! Which value wins: built-in < model < TOML < environment < recorded picture < flags.

use crate::cluster::ClusterFile;
use crate::env::{self, EnvError};
use crate::file::{self, FileEntry, FileError};
use crate::setting::{BadValue, Value};
use crate::table::{Key, SETTINGS};
use dg_core::{GenerationDefaults, Recipe};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a value comes from, weakest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The program.
    BuiltIn,
    /// The model's `generation_config.json`.
    Model,
    /// A TOML file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// The request recorded in a picture (`--from_image`).
    Picture,
    /// The command line.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::Model => f.write_str("the model's generation_config.json"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { name } => f.write_str(name),
            Self::Picture => f.write_str("the picture"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A value in a model's `generation_config.json` that its setting does not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("generation_config.json: {0}")]
pub struct BadDefault(pub BadValue);

/// The values of all layers, in any order of adding.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    entries: Vec<(Key, Value, Origin)>,
    warnings: Vec<String>,
}

impl Layers {
    /// Adds the text of a TOML file. The sections of a cluster are checked, and ignored.
    pub fn add_file(&mut self, path: &Path, text: &str) -> Result<(), FileError> {
        self.add_entries(path, &file::read(path, text)?);
        Ok(())
    }

    /// Adds the settings of a file that was read as a cluster's.
    pub fn add_cluster_file(&mut self, file: &ClusterFile) {
        self.add_entries(&file.path, &file.entries);
    }

    fn add_entries(&mut self, path: &Path, entries: &[FileEntry]) {
        let origin = |line| Origin::File { path: path.into(), line };
        self.entries.extend(entries.iter().map(|e| (e.key, e.value.clone(), origin(e.line))));
    }

    /// Adds the settings of an environment.
    pub fn add_env(&mut self, env: impl IntoIterator<Item = (String, String)>) -> Result<(), EnvError> {
        let (entries, warnings) = env::read(env)?;
        self.entries.extend(entries.into_iter().map(|e| (e.key, e.value, Origin::Env { name: e.name })));
        self.warnings.extend(warnings);
        Ok(())
    }

    /// Adds flags.
    pub fn add_flags(&mut self, flags: impl IntoIterator<Item = (Key, Value)>) {
        self.entries.extend(flags.into_iter().map(|(key, value)| (key, value, Origin::Flag)));
    }

    /// Adds what a model says about itself: models without guidance embedding have other built-in
    /// values, and `generation_config.json` stands above those.
    pub fn add_model(&mut self, guidance: bool, defaults: &GenerationDefaults) -> Result<(), BadDefault> {
        if !guidance {
            for (key, n) in [(Key::NumInferenceSteps, 4), (Key::MaxSequenceLength, 256)] {
                self.entries.push((key, Value::Integer(n), Origin::BuiltIn));
            }
        }
        for (key, text) in default_texts(defaults) {
            let Some(text) = text else { continue };
            let value = key.setting().parse(&text).map_err(BadDefault)?;
            self.entries.push((key, value, Origin::Model));
        }
        Ok(())
    }

    /// Adds the request that a picture records. It asks for one picture.
    pub fn add_picture(&mut self, recipe: &Recipe) {
        let r = &recipe.request;
        let integer = |key, n: u64| (key, Value::Integer(n));
        let values = [
            integer(Key::Height, r.size.height().into()),
            integer(Key::Width, r.size.width().into()),
            integer(Key::NumInferenceSteps, u32::from(r.num_inference_steps).into()),
            integer(Key::MaxSequenceLength, u32::from(r.max_sequence_length).into()),
            integer(Key::Seed, r.seed.0),
            integer(Key::NumImagesPerPrompt, 1),
            (Key::GuidanceScale, Value::Number(r.guidance_scale.value())),
            (Key::TrueCfgScale, Value::Number(r.true_cfg_scale.value())),
            (Key::Dtype, Value::Text(recipe.dtype.to_string())),
            (Key::TimeDtype, Value::Text(recipe.time_dtype.to_string())),
            (Key::EnableTf32, Value::Switch(recipe.tf32)),
            (Key::EnableVaeTiling, Value::Switch(recipe.vae_tiling)),
            (Key::Prompt, Value::Text(r.prompt.clone())),
        ];
        let negative = r.negative_prompt.iter().map(|n| (Key::NegativePrompt, Value::Text(n.clone())));
        let stale = recipe.pipefusion.iter().flat_map(|p| {
            let pipeline = (Key::Pipeline, Value::Text("stale".into()));
            [
                integer(Key::NumPipelinePatch, p.patches.into()),
                integer(Key::WarmupSteps, p.warmup.into()),
                pipeline,
            ]
        });
        // an exact picture is made again by an exact pipeline, or not at all
        let exact = recipe.pipefusion.is_none().then(|| (Key::Pipeline, Value::Text("exact".into())));
        let all = values.into_iter().chain(negative).chain(stale).chain(exact);
        self.entries.extend(all.map(|(key, value)| (key, value, Origin::Picture)));
    }

    /// What was noticed while reading.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The value of every setting.
    pub fn resolve(&self) -> Settings {
        let mut values: BTreeMap<Key, (Value, Origin)> = BTreeMap::new();
        for s in SETTINGS {
            if let Ok(value) = s.parse(s.default)
                && !s.default.is_empty()
            {
                values.insert(s.key, (value, Origin::BuiltIn));
            }
        }
        for (key, value, origin) in &self.entries {
            if values.get(key).is_none_or(|(_, held)| held.rank() <= origin.rank()) {
                values.insert(*key, (value.clone(), origin.clone()));
            }
        }
        Settings { values }
    }
}

impl Origin {
    fn rank(&self) -> u8 {
        match self {
            Self::BuiltIn => 0,
            Self::Model => 1,
            Self::File { .. } => 2,
            Self::Env { .. } => 3,
            Self::Picture => 4,
            Self::Flag => 5,
        }
    }
}

/// The winning values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    values: BTreeMap<Key, (Value, Origin)>,
}

impl Settings {
    /// A value, if the setting has one.
    pub fn value(&self, key: Key) -> Option<&Value> {
        self.values.get(&key).map(|(value, _)| value)
    }

    /// Where a value comes from.
    pub fn origin(&self, key: Key) -> Option<&Origin> {
        self.values.get(&key).map(|(_, origin)| origin)
    }

    /// Whether somebody asked for it, rather than the program or the model.
    pub fn is_asked(&self, key: Key) -> bool {
        self.origin(key).is_some_and(|o| o.rank() > Origin::Model.rank())
    }

    /// A whole number that is always there. Panics for another kind of setting.
    pub fn integer(&self, key: Key) -> u64 {
        self.integer_if_any(key).expect("this setting has a built-in whole number")
    }

    /// A whole number that may be absent.
    pub fn integer_if_any(&self, key: Key) -> Option<u64> {
        match self.value(key) {
            Some(Value::Integer(n)) => Some(*n),
            _ => None,
        }
    }

    /// A number that is always there. Panics for another kind of setting.
    pub fn number(&self, key: Key) -> f64 {
        match self.value(key) {
            Some(Value::Number(x)) => *x,
            other => panic!("{key:?} is no number: {other:?}"),
        }
    }

    /// A switch; absent is off.
    pub fn switch(&self, key: Key) -> bool {
        self.switch_if_any(key).unwrap_or(false)
    }

    /// A switch that may be absent.
    pub fn switch_if_any(&self, key: Key) -> Option<bool> {
        match self.value(key) {
            Some(Value::Switch(b)) => Some(*b),
            _ => None,
        }
    }

    /// A text, if the setting has one.
    pub fn text(&self, key: Key) -> Option<&str> {
        match self.value(key) {
            Some(Value::Text(s)) => Some(s),
            _ => None,
        }
    }
}

fn default_texts(d: &GenerationDefaults) -> [(Key, Option<String>); 7] {
    [
        (Key::Height, d.height.map(|n| n.to_string())),
        (Key::Width, d.width.map(|n| n.to_string())),
        (Key::NumInferenceSteps, d.num_inference_steps.map(|n| n.to_string())),
        (Key::GuidanceScale, d.guidance_scale.map(|x| x.to_string())),
        (Key::TrueCfgScale, d.true_cfg_scale.map(|x| x.to_string())),
        (Key::NegativePrompt, d.negative_prompt.clone()),
        (Key::MaxSequenceLength, d.max_sequence_length.map(|n| n.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_stands_above_the_one_before() {
        let mut layers = Layers::default();
        let expect = |layers: &Layers, steps: u64, origin: &str| {
            let s = layers.resolve();
            assert_eq!(s.integer(Key::NumInferenceSteps), steps);
            assert_eq!(s.origin(Key::NumInferenceSteps).unwrap().to_string(), origin);
        };
        // added strongest first: the order of adding does not matter
        expect(&layers, 28, "built in");
        let defaults = GenerationDefaults { num_inference_steps: Some(12), ..Default::default() };
        layers.add_model(false, &GenerationDefaults::default()).unwrap();
        expect(&layers, 4, "built in");
        layers.add_model(true, &defaults).unwrap();
        expect(&layers, 12, "the model's generation_config.json");
        layers.add_env([("DG_T2I_NUM_INFERENCE_STEPS".into(), "14".into())]).unwrap();
        expect(&layers, 14, "DG_T2I_NUM_INFERENCE_STEPS");
        layers.add_file(Path::new("a.toml"), "[generate]\nnum_inference_steps = 13\n").unwrap();
        expect(&layers, 14, "DG_T2I_NUM_INFERENCE_STEPS");
        layers.add_flags([(Key::NumInferenceSteps, Value::Integer(15))]);
        expect(&layers, 15, "flag");
    }

    #[test]
    fn a_model_with_an_impossible_default_is_refused() {
        let defaults = GenerationDefaults { height: Some(0), ..Default::default() };
        let e = Layers::default().add_model(true, &defaults).unwrap_err().to_string();
        assert!(e.contains("generation_config.json: height does not accept `0`"), "{e}");
    }

    #[test]
    fn absent_settings_are_absent() {
        let s = Layers::default().resolve();
        assert_eq!((s.integer_if_any(Key::Seed), s.switch_if_any(Key::EnableVaeTiling)), (None, None));
        assert!(!s.is_asked(Key::Height) && s.text(Key::ModelName) == Some("demo"));
    }
}
