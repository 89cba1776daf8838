//! A model folder, opened: configs read, weight files mapped, nothing loaded.

use crate::config::ModelConfig;
use crate::weights::WeightFiles;
use crate::{ModelError, ModelSource};
use dg_core::{DType, GenerationDefaults, ModelId, ModelShape};
use dg_plan::WeightBytes;

/// A FLUX model in diffusers layout.
pub struct ModelRepo {
    id: ModelId,
    config: ModelConfig,
    defaults: GenerationDefaults,
    source: ModelSource,
    pub(crate) clip: WeightFiles,
    pub(crate) t5: WeightFiles,
    pub(crate) transformer: WeightFiles,
    pub(crate) vae: WeightFiles,
}

const DEFAULTS: &str = "generation_config.json";

/// Small files that, with headers and sizes of the weight files, identify a model.
const IDENTITY: [&str; 10] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.json",
    "tokenizer_2/tokenizer.json",
    "transformer/config.json",
    "vae/config.json",
];

impl ModelRepo {
    /// Reads configs and weight headers. `id` is the name that the model goes by.
    pub fn open(source: ModelSource, id: &str) -> Result<Self, ModelError> {
        if let ModelSource::Folder(root) = &source
            && !root.is_dir()
        {
            return Err(ModelError::Missing(root.clone()));
        }
        let config = ModelConfig::read(&source)?;
        let defaults =
            if source.has(DEFAULTS) { source.json(DEFAULTS)? } else { GenerationDefaults::default() };
        let weights = |component: &str, base: &str| WeightFiles::open(&source, component, base);
        let clip = weights("text_encoder", "model")?;
        let t5 = weights("text_encoder_2", "model")?;
        let transformer = weights("transformer", "diffusion_pytorch_model")?;
        let vae = weights("vae", "diffusion_pytorch_model")?;
        let hash = identity(&source, &[&clip, &t5, &transformer, &vae])?;
        let id = ModelId { id: id.into(), hash };
        Ok(Self { id, config, defaults, source, clip, t5, transformer, vae })
    }

    /// Name and hash.
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    /// Where the files are.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// What the configs say.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sizes.
    pub fn shape(&self) -> &ModelShape {
        &self.config.shape
    }

    /// The model's own defaults.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.components().iter().map(|c| c.mapped_bytes()).sum()
    }

    /// How weights lie in the files.
    pub fn held(&self) -> WeightBytes {
        let encoders = self.encoder_bytes() as f64;
        let values = |c: &WeightFiles| c.mapped_bytes() as f64 / c.bytes_per_value();
        WeightBytes {
            transformer: self.transformer.bytes_per_value(),
            encoders: encoders / (values(&self.clip) + values(&self.t5)),
            decoder: self.vae.bytes_per_value(),
            is_bf16: self.transformer.is_bf16(),
        }
    }

    /// Those of the text encoders among them.
    pub fn encoder_bytes(&self) -> u64 {
        self.clip.mapped_bytes() + self.t5.mapped_bytes()
    }

    /// Bytes of weights that have to be there when those of the transformer and the encoders are read ahead and dropped
    /// behind: the largest two layers that follow each other, and the VAE.
    pub fn window_bytes(&self) -> u64 {
        let t = &self.shape().transformer;
        let blocks = 0..t.double_blocks + t.single_blocks;
        let layers = dg_plan::window_bytes(self.shape(), blocks, &self.held(), true);
        self.vae.mapped_bytes().saturating_add(layers)
    }

    /// Bytes of the copies of weights that a run in `dtype` makes, beside the mapped files.
    pub fn converted_bytes(&self, dtype: DType) -> u64 {
        let precision = crate::pipeline::precision(dtype);
        self.components().iter().map(|c| c.converted_bytes(precision)).sum()
    }

    /// blake3 over every byte of the weight files and the small files. Reads everything.
    pub fn verify(&self) -> Result<String, ModelError> {
        let mut hasher = blake3::Hasher::new();
        small_files(&self.source, &mut hasher)?;
        for file in self.components().iter().flat_map(|c| c.files()) {
            absorb(&mut hasher, &file.name, &file.bytes);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn components(&self) -> [&WeightFiles; 4] {
        [&self.clip, &self.t5, &self.transformer, &self.vae]
    }
}

fn identity(source: &ModelSource, components: &[&WeightFiles]) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    small_files(source, &mut hasher)?;
    for file in components.iter().flat_map(|c| c.files()) {
        absorb(&mut hasher, &file.name, &file.bytes[..file.header_len]);
        hasher.update(&(file.bytes.len() as u64).to_le_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn small_files(source: &ModelSource, hasher: &mut blake3::Hasher) -> Result<(), ModelError> {
    for file in IDENTITY {
        if source.has(file) {
            absorb(hasher, file, &source.small(file)?);
        }
    }
    Ok(())
}

/// Name, length, contents: no two lists of files give the same stream of bytes.
fn absorb(hasher: &mut blake3::Hasher, name: &str, bytes: &[u8]) {
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
