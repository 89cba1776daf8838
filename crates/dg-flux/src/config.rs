//! The configs of a diffusers folder, read into [`ModelShape`] and [`ScheduleConfig`].

use crate::{ModelError, ModelSource};
use dg_core::ModelShape;
use dg_core::shape::{ClipShape, T5Shape, TransformerShape, VaeShape};
use serde::Deserialize;
use serde_json::Value;

/// Everything that the JSON files of a model say.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Sizes.
    pub shape: ModelShape,
    /// Noise schedule.
    pub schedule: ScheduleConfig,
}

/// Noise schedule: FlowMatchEulerDiscrete.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ScheduleConfig {
    /// Shift of a model without dynamic shifting.
    pub shift: f64,
    /// Whether the shift follows from the number of image tokens.
    pub use_dynamic_shifting: bool,
    /// μ at `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// μ at `max_image_seq_len` tokens.
    pub max_shift: f64,
    /// Tokens at `base_shift`.
    pub base_image_seq_len: f64,
    /// Tokens at `max_shift`.
    pub max_image_seq_len: f64,
    /// Timesteps of the training, 1000.
    pub num_train_timesteps: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256.0,
            max_image_seq_len: 4096.0,
            num_train_timesteps: 1000.0,
        }
    }
}

const INDEX: &str = "model_index.json";
/// Largest count or width that a config may ask for: larger ones are damage, not models.
const SIZE_MAX: usize = 1 << 20;
/// Largest shift of the schedule; FLUX's own are below 4.
const SHIFT_MAX: f64 = 100.0;

impl ModelConfig {
    /// Reads and checks all configs.
    pub fn read(source: &ModelSource) -> Result<Self, ModelError> {
        check_classes(source)?;
        let transformer = transformer(source)?;
        let (clip, t5, vae) = (clip(source)?, t5(source)?, vae(source)?);
        let pairs = [
            (
                "text_encoder_2/config.json",
                "d_model",
                t5.width,
                "joint_attention_dim",
                transformer.text_width,
            ),
            (
                "text_encoder/config.json",
                "hidden_size",
                clip.width,
                "pooled_projection_dim",
                transformer.pooled_width,
            ),
            (
                "vae/config.json",
                "4 · latent_channels",
                4 * vae.latent_channels,
                "in_channels",
                transformer.in_channels,
            ),
        ];
        for (file, name, value, other, wanted) in pairs {
            if value != wanted {
                let reason = format!("{name} is {value}, but the transformer's {other} is {wanted}");
                return Err(ModelError::Config { file: file.into(), reason });
            }
        }
        Ok(Self { shape: ModelShape { transformer, clip, t5, vae }, schedule: schedule(source)? })
    }
}

fn check_classes(source: &ModelSource) -> Result<(), ModelError> {
    let index = source.config(INDEX)?;
    let pipeline = index.get("_class_name").and_then(Value::as_str).unwrap_or("(none)");
    if pipeline != "FluxPipeline" {
        return Err(unknown_class(INDEX, "the pipeline", pipeline, "FluxPipeline"));
    }
    for (component, known) in [
        ("transformer", "FluxTransformer2DModel"),
        ("vae", "AutoencoderKL"),
        ("scheduler", "FlowMatchEulerDiscreteScheduler"),
        ("text_encoder", "CLIPTextModel"),
        ("text_encoder_2", "T5EncoderModel"),
    ] {
        let class = index.get(component).and_then(|v| v.get(1)).and_then(Value::as_str).unwrap_or("(none)");
        if class != known {
            return Err(unknown_class(INDEX, component, class, known));
        }
    }
    Ok(())
}

fn unknown_class(file: &str, component: &str, class: &str, known: &'static str) -> ModelError {
    ModelError::UnknownClass { file: file.into(), component: component.into(), class: class.into(), known }
}

/// One JSON object and the helpers that name file and key in errors.
struct Fields {
    file: &'static str,
    map: serde_json::Map<String, Value>,
}

impl Fields {
    fn read(source: &ModelSource, file: &'static str) -> Result<Self, ModelError> {
        match source.config(file)? {
            Value::Object(map) => Ok(Self { file, map }),
            _ => Err(ModelError::Config { file: file.into(), reason: "it is no JSON object".into() }),
        }
    }

    fn bad(&self, key: &str, wanted: &str) -> ModelError {
        let found = self.map.get(key).map_or_else(|| "absent".into(), Value::to_string);
        ModelError::Config {
            file: self.file.into(),
            reason: format!("`{key}` is {found}, expected {wanted}"),
        }
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let n = self.map.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        n.filter(|n| (1..=SIZE_MAX).contains(n)).ok_or_else(|| self.bad(key, "a size from 1 to 1048576"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        if self.map.get(key).is_none_or(Value::is_null) { Ok(default) } else { self.size(key) }
    }

    /// A count that may be 0.
    fn count(&self, key: &str) -> Result<usize, ModelError> {
        if self.map.get(key).and_then(Value::as_u64) == Some(0) { Ok(0) } else { self.size(key) }
    }

    fn positive_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        let x = self.number_or(key, default)?;
        self.must(x > 0.0 && x.is_finite(), key, "a number above 0")?;
        Ok(x)
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.bad(key, "a number")),
        }
    }

    fn sizes(&self, key: &str) -> Result<Vec<usize>, ModelError> {
        let bad = || self.bad(key, "a list of 1 to 16 sizes");
        let list = self.map.get(key).and_then(Value::as_array).filter(|l| (1..=16).contains(&l.len()));
        let size = |v: &Value| v.as_u64().map(|n| n as usize).filter(|n| (1..=SIZE_MAX).contains(n));
        list.ok_or_else(bad)?.iter().map(|v| size(v).ok_or_else(bad)).collect()
    }

    fn text_or<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.map.get(key).and_then(Value::as_str).unwrap_or(default)
    }

    fn must(&self, holds: bool, key: &str, wanted: &str) -> Result<(), ModelError> {
        if holds { Ok(()) } else { Err(self.bad(key, wanted)) }
    }
}

fn transformer(source: &ModelSource) -> Result<TransformerShape, ModelError> {
    let f = Fields::read(source, "transformer/config.json")?;
    let class = f.text_or("_class_name", "FluxTransformer2DModel");
    if class != "FluxTransformer2DModel" {
        return Err(unknown_class(f.file, "transformer", class, "FluxTransformer2DModel"));
    }
    let shape = TransformerShape {
        heads: f.size("num_attention_heads")?,
        head_dim: f.size("attention_head_dim")?,
        double_blocks: f.count("num_layers")?,
        single_blocks: f.count("num_single_layers")?,
        in_channels: f.size("in_channels")?,
        text_width: f.size("joint_attention_dim")?,
        pooled_width: f.size("pooled_projection_dim")?,
        guidance_embeds: f.map.get("guidance_embeds").and_then(Value::as_bool).unwrap_or(false),
        axes_dims_rope: if f.map.contains_key("axes_dims_rope") {
            f.sizes("axes_dims_rope")?
        } else {
            vec![16, 56, 56]
        },
    };
    let axes = &shape.axes_dims_rope;
    let fits = axes.len() == 3
        && axes.iter().sum::<usize>() == shape.head_dim
        && axes.iter().all(|a| a.is_multiple_of(2));
    f.must(fits, "axes_dims_rope", "three even sizes whose sum is attention_head_dim")?;
    let blocks = shape.double_blocks + shape.single_blocks;
    f.must(blocks > 0, "num_layers", "more than 0, or num_single_layers more than 0")?;
    f.must(shape.heads <= SIZE_MAX / shape.head_dim, "num_attention_heads", "a width of at most 1048576")?;
    f.must(f.size_or("patch_size", 1)? == 1, "patch_size", "1")?;
    f.must(
        f.size_or("out_channels", shape.in_channels)? == shape.in_channels,
        "out_channels",
        "in_channels",
    )?;
    Ok(shape)
}

fn clip(source: &ModelSource) -> Result<ClipShape, ModelError> {
    let f = Fields::read(source, "text_encoder/config.json")?;
    let shape = ClipShape {
        width: f.size("hidden_size")?,
        layers: f.size("num_hidden_layers")?,
        heads: f.size("num_attention_heads")?,
        mlp: f.size("intermediate_size")?,
        vocab: f.size_or("vocab_size", 49408)?,
        positions: f.size_or("max_position_embeddings", 77)?,
        eps: f.positive_or("layer_norm_eps", 1e-5)?,
        // absent: the default of transformers' CLIPTextConfig
        eos_token_id: match f.map.get("eos_token_id") {
            None => 49407,
            Some(v) => {
                let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
                id.ok_or_else(|| f.bad("eos_token_id", "a token id"))?
            }
        },
    };
    f.must(f.text_or("hidden_act", "quick_gelu") == "quick_gelu", "hidden_act", "\"quick_gelu\"")?;
    f.must(shape.positions >= 2, "max_position_embeddings", "at least 2")?;
    f.must(shape.width.is_multiple_of(shape.heads), "num_attention_heads", "a divisor of hidden_size")?;
    Ok(shape)
}

fn t5(source: &ModelSource) -> Result<T5Shape, ModelError> {
    let f = Fields::read(source, "text_encoder_2/config.json")?;
    let feed = f.text_or("feed_forward_proj", "gated-gelu");
    f.must(feed == "gated-gelu", "feed_forward_proj", "\"gated-gelu\"")?;
    let shape = T5Shape {
        width: f.size("d_model")?,
        layers: f.size("num_layers")?,
        heads: f.size("num_heads")?,
        head_dim: f.size("d_kv")?,
        mlp: f.size("d_ff")?,
        vocab: f.size("vocab_size")?,
        buckets: f.size_or("relative_attention_num_buckets", 32)?,
        max_distance: f.size_or("relative_attention_max_distance", 128)?,
        eps: f.positive_or("layer_norm_epsilon", 1e-6)?,
    };
    let buckets = shape.buckets >= 4 && shape.buckets.is_multiple_of(4);
    f.must(buckets, "relative_attention_num_buckets", "a multiple of 4")?;
    f.must(
        shape.max_distance > shape.buckets / 4,
        "relative_attention_max_distance",
        "more than buckets / 4",
    )?;
    Ok(shape)
}

fn vae(source: &ModelSource) -> Result<VaeShape, ModelError> {
    let f = Fields::read(source, "vae/config.json")?;
    let class = f.text_or("_class_name", "AutoencoderKL");
    if class != "AutoencoderKL" {
        return Err(unknown_class(f.file, "vae", class, "AutoencoderKL"));
    }
    let shape = VaeShape {
        channels: f.sizes("block_out_channels")?,
        layers_per_block: f.size_or("layers_per_block", 1)?,
        groups: f.size_or("norm_num_groups", 32)?,
        latent_channels: f.size("latent_channels")?,
        scaling_factor: f.number_or("scaling_factor", 0.18215)?,
        shift_factor: f.number_or("shift_factor", 0.0)?,
        sample_size: f.size_or("sample_size", 32)?,
    };
    let off = |key: &str| f.map.get(key).and_then(Value::as_bool) == Some(false);
    f.must(off("use_quant_conv") && off("use_post_quant_conv"), "use_post_quant_conv", "false")?;
    f.must(shape.channels.len() == 4, "block_out_channels", "four sizes (FLUX packs latents of 1/8 size)")?;
    f.must(
        shape.channels.iter().all(|c| c.is_multiple_of(shape.groups)),
        "norm_num_groups",
        "a divisor of all block_out_channels",
    )?;
    f.must(shape.scaling_factor != 0.0, "scaling_factor", "a number other than 0")?;
    f.must(f.text_or("act_fn", "silu") == "silu", "act_fn", "\"silu\"")?;
    Ok(shape)
}

fn schedule(source: &ModelSource) -> Result<ScheduleConfig, ModelError> {
    let f = Fields::read(source, "scheduler/scheduler_config.json")?;
    for key in [
        "invert_sigmas",
        "stochastic_sampling",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    ] {
        f.must(f.map.get(key).and_then(Value::as_bool) != Some(true), key, "false")?;
    }
    f.must(f.map.get("shift_terminal").is_none_or(Value::is_null), "shift_terminal", "null")?;
    f.must(
        f.text_or("time_shift_type", "exponential") == "exponential",
        "time_shift_type",
        "\"exponential\"",
    )?;
    let config: ScheduleConfig = source.json(f.file)?;
    f.must(config.shift > 0.0 && config.shift <= SHIFT_MAX, "shift", "a number above 0 and up to 100")?;
    for (key, shift) in [("base_shift", config.base_shift), ("max_shift", config.max_shift)] {
        f.must(shift.abs() <= SHIFT_MAX / 10.0, key, "a number from -10 to 10")?;
    }
    f.must(
        config.max_image_seq_len > config.base_image_seq_len,
        "max_image_seq_len",
        "more than base_image_seq_len",
    )?;
    f.must(config.num_train_timesteps == 1000.0, "num_train_timesteps", "1000")?;
    Ok(config)
}
