//! Models on the hub and in its cache.

pub(crate) use inner::{cached, facts, fetch};

/// How the hub is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct HubAsk<'a> {
    /// Branch, tag or commit.
    pub(crate) revision: Option<&'a str>,
    /// Only what is on this machine.
    pub(crate) local_files_only: bool,
    /// No progress bars.
    pub(crate) silent: bool,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    /// Its hub id.
    pub(crate) id: String,
    /// Folder, revision and size.
    pub(crate) place: String,
    /// Whether all files are there.
    pub(crate) complete: bool,
}

/// What `doctor` tells about the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Folder of the cache.
    pub(crate) cache: Option<std::path::PathBuf>,
    /// Models in it.
    pub(crate) models: usize,
    /// Address of the hub.
    pub(crate) endpoint: String,
}

#[cfg(feature = "hub")]
mod inner {
    use super::{Cached, Facts, HubAsk};
    use crate::failure::Failure;
    use crate::machine;
    use dg_hub::{FileProgress, HubError, HubOptions, Progress, RepoId};
    use indicatif::{ProgressBar, ProgressStyle};
    use std::path::PathBuf;
    use std::sync::Mutex;

    impl From<HubError> for Failure {
        fn from(e: HubError) -> Self {
            Self { exit: e.exit(), message: e.to_string(), hint: Some(e.hint()) }
        }
    }

    /// The folder of a repository, fetched if need be.
    pub(crate) fn fetch(id: &str, ask: &HubAsk<'_>) -> Result<PathBuf, Failure> {
        let mut options = HubOptions::from_env();
        options.revision = ask.revision.map(Into::into);
        options.local_files_only |= ask.local_files_only;
        let id = RepoId::parse(id)?;
        let bars = Bars::default();
        let progress: &dyn Progress = if ask.silent { &() } else { &bars };
        Ok(dg_hub::fetch(&id, &options, progress)?)
    }

    /// The models in the cache.
    pub(crate) fn cached() -> Vec<Cached> {
        let models = dg_hub::cached(&HubOptions::from_env()).into_iter();
        let shown = models.map(|m| Cached {
            id: m.id.to_string(),
            place: format!("{} at {}, {}", m.path.display(), m.revision, machine::bytes(m.bytes)),
            complete: m.complete,
        });
        shown.collect()
    }

    /// What `doctor` tells. Asks nobody.
    pub(crate) fn facts() -> Option<Facts> {
        let options = HubOptions::from_env();
        let models = dg_hub::cached(&options).len();
        let endpoint = options.endpoint.unwrap_or_else(|| "https://huggingface.co".into());
        Some(Facts { cache: options.cache_dir, models, endpoint })
    }

    /// One bar per file.
    #[derive(Default)]
    struct Bars(Mutex<Option<(String, ProgressBar)>>);

    impl Progress for Bars {
        fn advanced(&self, progress: FileProgress<'_>) {
            let Ok(mut shown) = self.0.lock() else { return };
            if shown.as_ref().is_none_or(|(name, _)| name != progress.file) {
                let style = "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta}";
                let style = ProgressStyle::with_template(style).expect("a template of this file");
                let bar = ProgressBar::new(progress.bytes_total).with_style(style);
                *shown = Some((progress.file.into(), bar.with_message(progress.file.to_string())));
            }
            if let Some((_, bar)) = shown.as_ref() {
                bar.set_position(progress.bytes_done);
            }
        }

        fn finished(&self, _file: &str) {
            if let Some((_, bar)) = self.0.lock().ok().and_then(|mut shown| shown.take()) {
                bar.finish();
            }
        }
    }
}

#[cfg(not(feature = "hub"))]
mod inner {
    use super::{Cached, Facts, HubAsk};
    use crate::failure::Failure;
    use std::path::PathBuf;

    /// Refuses.
    pub(crate) fn fetch(id: &str, ask: &HubAsk<'_>) -> Result<PathBuf, Failure> {
        let HubAsk { revision, local_files_only, silent } = ask;
        tracing::debug!("revision {revision:?}, local files only {local_files_only}, silent {silent}");
        Err(Failure::config(format!("model `{id}`: this build cannot ask the hub"))
            .hint("build with `--features hub`, or download the model and name its folder"))
    }

    /// Nothing.
    pub(crate) fn cached() -> Vec<Cached> {
        Vec::new()
    }

    /// Nothing.
    pub(crate) fn facts() -> Option<Facts> {
        None
    }
}
