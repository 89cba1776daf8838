//! [`Builder`]: a cluster from a model, a file of settings, or a few words.

use crate::asked::{self, BadBalance};
use crate::{Cluster, StartError};
use dg_config::{FileError, Key, Layers, Value};
use dg_core::ImageSize;
use dg_flux::{ModelError, ModelRepo, ModelSource};
use dg_plan::{Bounds, Layout, Links, Machine, Refusal, Work, machine};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// What a [`Cluster`] is made of. What is said here wins over the file.
#[derive(Default)]
pub struct Builder {
    layers: Layers,
    model: Option<(ModelSource, String)>,
    trace: bool,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file of settings that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of settings that is wrong; says where.
    #[error(transparent)]
    File(#[from] FileError),
    /// A setting that is wrong.
    #[error(transparent)]
    Balance(#[from] BadBalance),
    /// No model, or one whose name is not that of a folder.
    #[error("no model: `{0}` is not a folder")]
    NoModel(String),
    /// The model is missing or broken.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The ranks cannot share the work like that.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// No layout of that many ranks can run.
    #[error("num_gpus = {ranks}: {reason}")]
    NoLayout {
        /// As asked.
        ranks: u64,
        /// Why not.
        reason: String,
    },
    /// The ranks do not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl BuildError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { .. } => Some("check the path and its permissions".into()),
            Self::File(e) => e.hint.clone(),
            Self::Balance(e) => Some(e.hint()),
            Self::NoModel(_) => {
                Some("give it with Builder::model, or a folder in diffusers layout as `[model] path`".into())
            }
            Self::Model(e) => e.hint(),
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::NoLayout { .. } => Some("use another number of ranks, or give degrees".into()),
            Self::Start(e) => e.hint(),
        }
    }
}

impl Builder {
    /// Adds the settings of a TOML file: `[parallel]`, `[model]`, and of `[generate]` what a plan depends on.
    ///
    /// # Errors
    /// [`BuildError::Io`], [`BuildError::File`].
    pub fn from_toml(mut self, path: impl AsRef<Path>) -> Result<Self, BuildError> {
        let path = path.as_ref();
        let io = |source| BuildError::Io { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > TOML_BYTES_MAX {
            let what = format!("{size} bytes, more than {TOML_BYTES_MAX}");
            return Err(io(std::io::Error::new(std::io::ErrorKind::FileTooLarge, what)));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        self.layers.add_file(path, &text)?;
        Ok(self)
    }

    /// The model, and the name that it goes by.
    #[must_use]
    pub fn model(mut self, source: ModelSource, id: impl Into<String>) -> Self {
        self.model = Some((source, id.into()));
        self
    }

    /// The degrees; their product is the number of ranks.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        let degree = |key, n: u32| (key, Value::Integer(n.into()));
        self.layers.add_flags([
            degree(Key::DataParallelDegree, layout.dp),
            degree(Key::PipefusionDegree, layout.pp),
            degree(Key::RingDegree, layout.ring),
            degree(Key::UlyssesDegree, layout.ulysses),
            (Key::UseCfgParallel, Value::Switch(layout.cfg > 1)),
        ]);
        self
    }

    /// The number of ranks. If no degree is given, the best layout that keeps the picture is looked for.
    #[must_use]
    pub fn ranks(mut self, ranks: u32) -> Self {
        self.layers.add_flags([(Key::NumGpus, Value::Integer(ranks.into()))]);
        self
    }

    /// Threads of each rank. Default: the processors of this machine, shared out.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.layers.add_flags([(Key::Threads, Value::Integer(threads.get() as u64))]);
        self
    }

    /// Writes down every message and job of every rank, for [`Cluster::trace`].
    #[must_use]
    pub fn trace(mut self) -> Self {
        self.trace = true;
        self
    }

    /// Starts the ranks as threads of this process. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`BuildError`], before any weight is read if the layout cannot run.
    pub async fn start(self) -> Result<Cluster, BuildError> {
        let settings = self.layers.resolve();
        let (source, id) = match self.model {
            Some(model) => model,
            None => {
                let name = settings.text(Key::ModelName).unwrap_or_default().to_string();
                let folder = PathBuf::from(&name);
                if !folder.is_dir() {
                    return Err(BuildError::NoModel(name));
                }
                (ModelSource::Folder(folder), name)
            }
        };
        let repo = ModelRepo::open(source, &id)?;
        let mut ask = asked::ask(&settings)?;
        if let Some(ranks) = asked::ranks_to_fill(&settings) {
            ask.layout = best(&repo, &settings, ranks, &ask)?;
        }
        if let Some(have) = ask.num_gpus.filter(|n| *n != ask.layout.ranks()) {
            return Err(refused(&repo, &settings, &ask).unwrap_or_else(|| {
                let reason = format!("the degrees need {}", ask.layout.ranks());
                BuildError::NoLayout { ranks: have, reason }
            }));
        }
        let options = asked::options(&settings, ask, self.trace);
        Ok(Cluster::start(repo, options).await?)
    }
}

/// One request of the settings' size.
fn work(repo: &ModelRepo, settings: &dg_config::Settings) -> Option<Work> {
    let (width, height) = (settings.integer(Key::Width) as u32, settings.integer(Key::Height) as u32);
    let (size, _) = ImageSize::fit(width, height).ok()?;
    let images = settings.integer(Key::NumImagesPerPrompt) as usize;
    Some(Work {
        images,
        request_images: images,
        batch: settings.integer(Key::BatchSize) as usize,
        true_cfg: settings.number(Key::TrueCfgScale) > 1.0 && settings.text(Key::NegativePrompt).is_some(),
        dtype: asked::dtype(settings, asked::device(settings)),
        weights: Some(repo.held()),
        ..Work::one(repo.shape().clone(), size)
    })
}

fn refused(repo: &ModelRepo, settings: &dg_config::Settings, ask: &dg_plan::Ask) -> Option<BuildError> {
    let refusal = dg_plan::Plan::new(&work(repo, settings)?, ask).err()?;
    Some(BuildError::Refused(Box::new(refusal)))
}

/// The fastest layout of CPU ranks, exact unless a stale pipeline is asked for.
fn best(
    repo: &ModelRepo,
    settings: &dg_config::Settings,
    ranks: u64,
    ask: &dg_plan::Ask,
) -> Result<Layout, BuildError> {
    let none = |reason: &str| BuildError::NoLayout { ranks, reason: reason.into() };
    let work = work(repo, settings).ok_or_else(|| none("the picture has no legal size"))?;
    let cpu = machine::device("cpu").ok_or_else(|| none("no such device"))?;
    let links = Links::parse("memory").map_err(|e| none(&e.to_string()))?;
    let bounds = Bounds { pipeline: ask.pipeline, ..Bounds::default() };
    let found = dg_plan::search(&work, ranks, &Machine::new(cpu, links), &bounds);
    let chosen = found.chosen.and_then(|i| found.candidates.get(i));
    chosen.map(|candidate| candidate.layout).ok_or_else(|| none(&found.reason))
}

/// Largest file of settings.
const TOML_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Builder {
        let files = dg_demo::files().iter().map(|file| (file.path, file.bytes)).collect();
        Builder::default().model(ModelSource::Embedded(files), "demo")
    }

    /// A file of settings in a folder of its own.
    fn file(name: &str, text: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("dg-builder-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn error(builder: Builder) -> BuildError {
        builder.start().await.err().expect("it cannot start")
    }

    #[tokio::test]
    async fn a_file_and_words_make_a_cluster() {
        let path = file("good", "[parallel]\npipefusion_degree = 2\nthreads = 1\n");
        let degrees = Layout { pp: 2, ulysses: 2, ..Layout::SERIAL };
        let cluster = demo().from_toml(&path).unwrap().start().await.unwrap();
        assert_eq!((cluster.status().len(), cluster.replicas()), (2, 1));
        let cluster = demo().from_toml(&path).unwrap().layout(degrees).start().await.unwrap();
        assert_eq!(cluster.status()[3].coords, [0, 0, 1, 0, 1]);
        let found = demo().ranks(2).threads(NonZeroUsize::MIN).trace().start().await.unwrap();
        assert!(found.status().len() == 2 && found.trace().is_some());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn what_cannot_start_is_told() {
        let nine = error(demo().layout(Layout { ulysses: 9, ..Layout::SERIAL })).await;
        assert!(nine.to_string().contains("8 attention heads") && nine.hint().is_some(), "{nine}");
        let three = error(demo().layout(Layout { ulysses: 2, ..Layout::SERIAL }).ranks(3)).await;
        assert!(three.to_string().contains("need 2 ranks, num_gpus is 3"), "{three}");
        assert!(matches!(error(Builder::default()).await, BuildError::NoModel(name) if name == "demo"));
        let bad = file("bad", "[parallel]\nulises_degree = 2\n");
        let BuildError::File(e) = demo().from_toml(&bad).err().unwrap() else { panic!("a bad key") };
        assert_eq!((e.line, e.column), (2, 1));
        assert!(matches!(demo().from_toml("none.toml"), Err(BuildError::Io { .. })));
        std::fs::remove_dir_all(bad.parent().unwrap()).unwrap();
    }
}
