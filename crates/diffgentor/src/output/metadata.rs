//! What a picture records: enough to make it again, nothing about when, where or how fast.

use dg_core::Recipe;
use serde::{Deserialize, Serialize};

/// The JSON under `dg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// All that determines the pixels.
    pub(crate) recipe: Recipe,
    /// The program that made it.
    pub(crate) version: String,
    /// blake3 of the RGB bytes as the file decodes, in formats without checksums (JPEG and WebP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decoded_blake3: Option<String>,
}

impl Record {
    /// A record by this program.
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self { recipe, version: VERSION.into(), decoded_blake3: None }
    }

    /// Whether a file with these RGB bytes is damaged, as far as the record can tell.
    pub(crate) fn contradicts(&self, pixels_blake3: &str) -> bool {
        self.decoded_blake3.as_ref().is_some_and(|recorded| recorded != pixels_blake3)
    }

    /// As JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record has no maps with keys that are not text")
    }

    /// Out of JSON, if it is a record.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// The text that A1111 and its successors write, which viewers and sites read.
pub(crate) fn infotext(recipe: &Recipe) -> String {
    let r = &recipe.request;
    let negative = r.active_negative().map(|n| format!("\nNegative prompt: {n}")).unwrap_or_default();
    let hash: String = recipe.model.hash.chars().take(HASH_CHARS).collect();
    format!(
        "{}{negative}\nSteps: {}, Sampler: Euler, CFG scale: {}, Guidance: {}, Seed: {}, Size: {}, \
         Model hash: {hash}, Model: {}, Version: {VERSION}",
        r.prompt,
        r.steps(),
        r.true_cfg_scale.value(),
        r.guidance_scale.value(),
        r.seed.0,
        r.size,
        recipe.model.id,
    )
}

/// Name and version of this program.
const VERSION: &str = concat!("diffgentor ", env!("CARGO_PKG_VERSION"));
/// Characters of the model hash that the infotext shows, as A1111 does.
const HASH_CHARS: usize = 10;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dg_core::{DType, GenerateRequest, ImageSize, ModelId, Scale, Seed, TimeDtype};

    pub(crate) fn recipe(prompt: &str) -> Recipe {
        let (size, _) = ImageSize::fit(32, 16).unwrap();
        Recipe {
            request: GenerateRequest::new(prompt, size, Seed(42)),
            model: ModelId { id: "demo".into(), hash: "0123456789abcdef".into() },
            dtype: DType::Float32,
            time_dtype: TimeDtype::Model,
            tf32: false,
            vae_tiling: false,
            pipefusion: None,
        }
    }

    #[test]
    fn infotext_has_the_usual_fields() {
        let mut recipe = recipe("a cat");
        let line = "Steps: 28, Sampler: Euler, CFG scale: 1, Guidance: 3.5, Seed: 42, Size: 32x16, \
                    Model hash: 0123456789, Model: demo, Version: diffgentor 0.1.0";
        assert_eq!(infotext(&recipe), format!("a cat\n{line}"));
        recipe.request.negative_prompt = Some("dog".into());
        assert!(!infotext(&recipe).contains("dog"));
        recipe.request.true_cfg_scale = Scale::try_from(2.0).unwrap();
        assert!(infotext(&recipe).starts_with("a cat\nNegative prompt: dog\nSteps"));
    }

    #[test]
    fn records_survive_json() {
        let record = Record::new(recipe("猫\0\n\"'"));
        assert_eq!(Record::from_json(&record.to_json()), Some(record));
        assert_eq!(Record::from_json("{}"), None);
    }
}
