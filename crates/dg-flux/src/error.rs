//! What can be wrong with a model on disk.

use crate::parallel::ResumeError;
use crate::watch::Cancelled;
use dg_comm::CommError;
use dg_core::ExitCode;
use std::path::PathBuf;

/// A model folder that is missing, broken or of a kind that this program does not know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The folder or one of its files is not there.
    #[error("{}: not found", .0.display())]
    Missing(PathBuf),
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file does not say what it must.
    #[error("{file}: {reason}")]
    Config {
        /// The file, relative to the model folder.
        file: String,
        /// What is wrong, with the key and its value.
        reason: String,
    },
    /// A component of a class that this program does not implement.
    #[error("{file}: {component} is a `{class}`; this program knows {known}")]
    UnknownClass {
        /// The file that says so.
        file: String,
        /// Component, `transformer` for instance.
        component: String,
        /// The class found.
        class: String,
        /// The class that is implemented.
        known: &'static str,
    },
    /// A weight file is truncated, lies about its contents, or is not safetensors.
    #[error("{file}: {reason}")]
    Weights {
        /// The file, relative to the model folder.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A weight that the model needs is in none of the files.
    #[error("{file}: tensor `{tensor}` is missing")]
    MissingTensor {
        /// Where it was looked for.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// A weight has another shape or number format than the configs say.
    #[error("{file}: tensor `{tensor}` is {found}, expected {expected}")]
    WrongTensor {
        /// The file that holds it.
        file: String,
        /// Its name.
        tensor: String,
        /// What the file says.
        found: String,
        /// What the configs ask for.
        expected: String,
    },
    /// A tokenizer that cannot be used.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The file or folder, relative to the model folder.
        file: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        hint: String,
    },
}

impl ModelError {
    /// The exit code of a program that stops because of this.
    pub fn exit(&self) -> ExitCode {
        ExitCode::Config
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing(path) if path.extension().is_none() => {
                "a model is a folder in diffusers layout (model_index.json, transformer/, vae/, …), a hub id, or `demo`".into()
            }
            Self::Missing(_) | Self::MissingTensor { .. } => {
                "the model folder is incomplete: download it again, or check that all shards are there".into()
            }
            Self::Io { .. } => "check the path and its permissions".into(),
            Self::Config { .. } => "compare the file with the model's original on the hub".into(),
            Self::UnknownClass { .. } => "use a FLUX.1 text-to-image model in diffusers layout".into(),
            Self::Weights { .. } => "the file is damaged or not a safetensors file: download it again".into(),
            Self::WrongTensor { .. } => "weights and config.json belong to different models".into(),
            Self::Tokenizer { hint, .. } => hint.clone(),
        })
    }
}

/// A forward pass that ends without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// Somebody stopped the run.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Another rank cannot be reached, or has ended the job.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The job cannot go on from the checkpoint that it is given.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Weights that lie in a mapped file.
    #[error(transparent)]
    Unread(#[from] Unread),
}

/// Weights of a mapped file cannot be read any more: the disk fails, or the file has been cut short. A touch of them would
/// end the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct Unread {
    /// The file, relative to the model folder.
    pub file: String,
    /// What the system says.
    pub reason: String,
}

/// A run that ends without pictures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Somebody stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Another rank cannot be reached, or has ended the job.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The job cannot go on from the checkpoint that it is given.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// A prompt cannot be read by this model's tokenizer.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The latents hold infinities or NaN.
    #[error("the latents of image {image} are not finite after {steps} steps")]
    NotFinite {
        /// Position in the batch.
        image: usize,
        /// Steps that ran.
        steps: usize,
    },
}

impl From<PassError> for RunError {
    fn from(e: PassError) -> Self {
        match e {
            PassError::Cancelled(e) => Self::Cancelled(e),
            PassError::Comm(e) => Self::Comm(e),
            PassError::Resume(e) => Self::Resume(e),
            PassError::Unread(Unread { file, reason }) => Self::Model(ModelError::Weights { file, reason }),
        }
    }
}

impl RunError {
    /// The exit code of a program that stops because of this.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Cancelled(_) => ExitCode::Interrupted,
            Self::Model(e) => e.exit(),
            Self::Comm(_) | Self::Resume(_) | Self::NotFinite { .. } => ExitCode::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            // what ranks say to each other carries its own hint
            Self::Cancelled(_) | Self::Comm(_) => None,
            Self::Resume(_) => Some("begin the job anew".into()),
            Self::Model(e) => e.hint(),
            Self::NotFinite { .. } => Some(
                "the weights or a config are damaged: `diffgentor models verify`, or download them again"
                    .into(),
            ),
        }
    }
}
