//! Shapes of the published models, so that they can be planned without their files.

use dg_core::shape::{ClipShape, ModelShape, T5Shape, TransformerShape, VaeShape};

/// Shape of a published model by its hub id or its short name, in any case of letters.
pub fn published(name: &str) -> Option<ModelShape> {
    let short = name.rsplit('/').next().unwrap_or(name);
    let owner = name.strip_suffix(short).unwrap_or("");
    if !owner.is_empty() && !owner.eq_ignore_ascii_case("black-forest-labs/") {
        return None;
    }
    match short.to_ascii_lowercase().as_str() {
        "flux.1-dev" => Some(flux_dev()),
        "flux.1-schnell" => Some(flux_schnell()),
        _ => None,
    }
}

/// FLUX.1-dev: 24 heads × 128, 19 double and 38 single blocks, guidance embedding.
pub fn flux_dev() -> ModelShape {
    ModelShape {
        transformer: TransformerShape {
            heads: 24,
            head_dim: 128,
            double_blocks: 19,
            single_blocks: 38,
            in_channels: 64,
            text_width: 4096,
            pooled_width: 768,
            guidance_embeds: true,
            axes_dims_rope: vec![16, 56, 56],
        },
        clip: ClipShape {
            width: 768,
            layers: 12,
            heads: 12,
            mlp: 3072,
            vocab: 49408,
            positions: 77,
            eps: 1e-5,
            eos_token_id: 2,
        },
        t5: T5Shape {
            width: 4096,
            layers: 24,
            heads: 64,
            head_dim: 64,
            mlp: 10240,
            vocab: 32128,
            buckets: 32,
            max_distance: 128,
            eps: 1e-6,
        },
        vae: VaeShape {
            channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            groups: 32,
            latent_channels: 16,
            scaling_factor: 0.3611,
            shift_factor: 0.1159,
            sample_size: 1024,
        },
    }
}

/// FLUX.1-schnell: FLUX.1-dev without guidance embedding.
pub fn flux_schnell() -> ModelShape {
    let dev = flux_dev();
    ModelShape { transformer: TransformerShape { guidance_embeds: false, ..dev.transformer }, ..dev }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised_as_the_program_does() {
        assert!(published("black-forest-labs/FLUX.1-dev").unwrap().transformer.guidance_embeds);
        assert!(!published("flux.1-schnell").unwrap().transformer.guidance_embeds);
        assert_eq!(published("someone/FLUX.1-dev"), None);
        assert_eq!(published("demo"), None);
    }
}
