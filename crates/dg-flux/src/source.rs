//! Where a model's files come from: a folder, or bytes in the program.

use crate::ModelError;
use bytes::Bytes;
use dg_map::MappedFile;
use std::path::PathBuf;

/// Largest tokenizer or index that is read, in bytes. The biggest real one is T5's tokenizer, 2.4 MB.
pub const JSON_BYTES_MAX: u64 = 64 << 20;
/// Largest config that is read, in bytes: real ones have a few kilobytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A model's files, by path relative to its root.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A folder in diffusers layout.
    Folder(PathBuf),
    /// Files that are part of the program: relative path and contents.
    Embedded(Vec<(&'static str, &'static [u8])>),
}

impl ModelSource {
    /// Whether `file` is there.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Self::Folder(root) => root.join(file).is_file(),
            Self::Embedded(files) => files.iter().any(|(path, _)| *path == file),
        }
    }

    /// The root, for messages.
    pub fn root(&self) -> PathBuf {
        match self {
            Self::Folder(root) => root.clone(),
            Self::Embedded(_) => PathBuf::from("(built in)"),
        }
    }

    /// Maps a file of any size. Nothing is read until it is looked at.
    pub fn map(&self, file: &str) -> Result<Bytes, ModelError> {
        Ok(self.weights(file)?.0)
    }

    /// The same with its map, if it is one.
    pub(crate) fn weights(&self, file: &str) -> Result<(Bytes, Option<MappedFile>), ModelError> {
        match self {
            Self::Folder(root) => {
                let path = root.join(file);
                match MappedFile::open(&path) {
                    Ok(map) => Ok((map.bytes(), Some(map))),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(ModelError::Missing(path)),
                    Err(source) => Err(ModelError::Io { path, source }),
                }
            }
            Self::Embedded(files) => match files.iter().find(|(path, _)| *path == file) {
                Some((_, bytes)) => Ok((Bytes::from_static(bytes), None)),
                None => Err(ModelError::Missing(self.root().join(file))),
            },
        }
    }

    /// A small file: refused above [`JSON_BYTES_MAX`].
    pub fn small(&self, file: &str) -> Result<Bytes, ModelError> {
        self.limited(file, JSON_BYTES_MAX)
    }

    /// A JSON object of any form: refused above [`CONFIG_BYTES_MAX`], because a value of unknown form
    /// takes many times the memory of its text.
    pub fn config(&self, file: &str) -> Result<serde_json::Value, ModelError> {
        self.limited(file, CONFIG_BYTES_MAX)?;
        self.json(file)
    }

    fn limited(&self, file: &str, bytes_max: u64) -> Result<Bytes, ModelError> {
        let bytes = self.map(file)?;
        if bytes.len() as u64 > bytes_max {
            let reason = format!("{} bytes, more than {bytes_max}", bytes.len());
            return Err(ModelError::Config { file: file.into(), reason });
        }
        Ok(bytes)
    }

    /// A JSON file.
    pub fn json<T: serde::de::DeserializeOwned>(&self, file: &str) -> Result<T, ModelError> {
        serde_json::from_slice(&self.small(file)?)
            .map_err(|e| ModelError::Config { file: file.into(), reason: e.to_string() })
    }
}
