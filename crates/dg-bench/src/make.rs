//! Model folders with random weights, for this crate and for diffusers alike.

mod names;
mod random;

use crate::Failure;
use names::Names;
use random::Tensor;
use safetensors::tensor::{Dtype, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Small models, in f32: sizes of the transformer, all other components are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Preset {
    /// 8 heads of 128, 2 + 4 blocks
    Medium,
    /// FLUX.1's own width, 24 heads of 128, and one block of each kind
    Block,
}

/// Models of the published sizes, in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// FLUX.1-schnell
    Schnell,
    /// FLUX.1-dev
    Dev,
}

/// What a model is made from.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    heads: usize,
    double: usize,
    single: usize,
    is_distilled: bool,
    clip_vocab: usize,
    t5: T5,
    dtype: Dtype,
    /// Largest weight file of the transformer and of T5.
    shard_bytes: [usize; 2],
}

/// T5's sizes; heads are of 64.
#[derive(Clone, Copy, Debug)]
struct T5 {
    width: usize,
    heads: usize,
    mlp: usize,
    vocab: usize,
}

impl Preset {
    fn sizes(self) -> Sizes {
        let [heads, double, single] = match self {
            Self::Medium => [8, 2, 4],
            Self::Block => [24, 1, 1],
        };
        Sizes {
            heads,
            double,
            single,
            is_distilled: true,
            clip_vocab: VOCAB,
            t5: T5 { width: 512, heads: 8, mlp: 1280, vocab: VOCAB },
            dtype: Dtype::F32,
            shard_bytes: [usize::MAX; 2],
        }
    }

    /// Where [`folder`] puts it.
    fn name(self) -> &'static str {
        match self {
            Self::Medium => "medium",
            Self::Block => "block",
        }
    }
}

impl Shape {
    fn sizes(self) -> Sizes {
        Sizes {
            heads: 24,
            double: 19,
            single: 38,
            is_distilled: self == Self::Dev,
            clip_vocab: 49_408,
            t5: T5 { width: 4096, heads: 64, mlp: 10_240, vocab: 32_128 },
            dtype: Dtype::BF16,
            // as published: 3 and 2 files
            shard_bytes: [10_000_000_000, 5_000_000_000],
        }
    }
}

/// The folder of a preset below the build folder, made on first use.
pub(crate) fn folder(preset: Preset) -> Result<PathBuf, Failure> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = target.join("bench-models").join(preset.name());
    // written last
    if !folder.join("model_index.json").is_file() {
        eprintln!("making {}", folder.display());
        all(&folder, preset.sizes())?;
    }
    Ok(folder)
}

const HEAD: usize = 128;
const CLIP: usize = 768;
/// That of the demo model, whose tokenizers the folder gets.
const VOCAB: usize = 3826;
const CHANNELS: [usize; 4] = [128, 256, 512, 512];

/// A small model in `folder`.
pub(crate) fn preset(folder: &Path, preset: Preset) -> Result<Value, Failure> {
    all(folder, preset.sizes())
}

/// A model of a published size in `folder`, which must be empty, or not there, or what an earlier run has not finished.
/// Where it fails nothing stays.
pub(crate) fn full(folder: &Path, shape: Shape) -> Result<Value, Failure> {
    let sizes = shape.sizes();
    let need = bytes(&sizes);
    let mark = begin(folder)?;
    let made = disk_free(folder)
        .map_or(Ok(()), |free| check_room(folder, free, need))
        .and_then(|()| all(folder, sizes))
        .inspect_err(|_| {
            if let Err(error) = clear(folder) {
                eprintln!("{error}: what is half made stays there");
            }
        })?;
    fs::remove_file(&mark).map_err(|e| at(&mark, e))?;
    Ok(json!({ "made": made["made"], "bytes": need }))
}

/// Claims `folder` by a file that says that it is not finished.
fn begin(folder: &Path) -> Result<PathBuf, Failure> {
    let mark = folder.join(".being-made");
    if mark.exists() {
        eprintln!("removing what an interrupted run has left in {}", folder.display());
        clear(folder)?;
    } else if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(
            format!("{} is not empty; hint: remove it, or name another folder", folder.display()).into()
        );
    }
    fs::create_dir_all(folder).map_err(|e| at(folder, e))?;
    fs::write(&mark, "dg-bench make-model\n").map_err(|e| at(&mark, e))?;
    Ok(mark)
}

/// Removes all that is in `folder`.
fn clear(folder: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(folder).map_err(|e| at(folder, e))? {
        let path = entry?.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| at(&path, e))?;
    }
    Ok(())
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    format!("{}: {error}", path.display()).into()
}

fn put(path: &Path, content: impl AsRef<[u8]>) -> Result<(), Failure> {
    fs::write(path, content).map_err(|e| at(path, e))
}

/// Bytes of all weights.
fn bytes(sizes: &Sizes) -> u64 {
    let parts =
        [names::transformer(sizes), names::t5(&sizes.t5), names::clip(sizes.clip_vocab), names::vae()];
    parts.iter().map(|names| names.bytes(sizes.dtype)).sum::<usize>() as u64
}

fn check_room(folder: &Path, free: u64, need: u64) -> Result<(), Failure> {
    if free >= need + need / 100 {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(format!(
        "the disk of {} has {:.1} GB free, the model takes {:.1} GB; hint: name a folder on another disk",
        folder.display(),
        gb(free),
        gb(need)
    )
    .into())
}

/// Bytes free for this user on the file system of `path`, or of its nearest parent that exists.
fn disk_free(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let stat = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok())?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Writes all components and their configs.
fn all(folder: &Path, sizes: Sizes) -> Result<Value, Failure> {
    let Sizes { heads, double, single, is_distilled, clip_vocab, t5, dtype, shard_bytes } = sizes;
    let [large, middle] = shard_bytes;
    tokenizers(folder)?;
    let write = |component: &str, base: &str, names: &Names, shard_bytes: usize, config: &Value| {
        write(&folder.join(component), base, names, (dtype, shard_bytes), config)
    };
    write(
        "transformer",
        "diffusion_pytorch_model",
        &names::transformer(&sizes),
        large,
        &json!({
            "_class_name": "FluxTransformer2DModel", "num_attention_heads": heads, "attention_head_dim": HEAD,
            "num_layers": double, "num_single_layers": single, "in_channels": 64, "out_channels": null, "patch_size": 1,
            "joint_attention_dim": t5.width, "pooled_projection_dim": CLIP, "guidance_embeds": is_distilled,
            "axes_dims_rope": [16, 56, 56],
        }),
    )?;
    write(
        "vae",
        "diffusion_pytorch_model",
        &names::vae(),
        usize::MAX,
        &json!({
            "_class_name": "AutoencoderKL", "block_out_channels": CHANNELS, "layers_per_block": 2,
            "norm_num_groups": 32, "latent_channels": 16, "in_channels": 3, "out_channels": 3, "act_fn": "silu",
            "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024, "force_upcast": true,
            "use_quant_conv": false, "use_post_quant_conv": false, "mid_block_add_attention": true,
            "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        }),
    )?;
    write(
        "text_encoder",
        "model",
        &names::clip(clip_vocab),
        usize::MAX,
        &json!({
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu",
            "hidden_size": CLIP, "intermediate_size": 4 * CLIP, "num_attention_heads": 12, "num_hidden_layers": 12,
            "max_position_embeddings": 77, "vocab_size": clip_vocab, "layer_norm_eps": 1e-5, "eos_token_id": 3825,
            "bos_token_id": 3824, "pad_token_id": 3825, "projection_dim": CLIP,
        }),
    )?;
    write(
        "text_encoder_2",
        "model",
        &names::t5(&t5),
        middle,
        &json!({
            "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": t5.width, "d_kv": 64, "d_ff": t5.mlp,
            "num_heads": t5.heads, "num_layers": 24, "vocab_size": t5.vocab, "feed_forward_proj": "gated-gelu",
            "dense_act_fn": "gelu_new", "is_gated_act": true, "is_encoder_decoder": false, "use_cache": false,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1,
            "tie_word_embeddings": false,
        }),
    )?;
    scheduler_and_index(folder, is_distilled)?;
    Ok(json!({ "made": folder }))
}

/// Those of the demo model, so that `diffgentor t2i` can draw with the folder.
#[cfg(feature = "demo")]
fn tokenizers(folder: &Path) -> Result<(), Failure> {
    for file in dg_demo::files().iter().filter(|f| f.path.starts_with("tokenizer")) {
        let to = folder.join(file.path);
        fs::create_dir_all(to.parent().unwrap_or(folder)).map_err(|e| at(&to, e))?;
        put(&to, file.bytes)?;
    }
    Ok(())
}

#[cfg(not(feature = "demo"))]
fn tokenizers(_: &Path) -> Result<(), Failure> {
    Err("this build has no demo model, whose tokenizers a folder gets; hint: build it with the feature `demo`".into())
}

fn scheduler_and_index(folder: &Path, is_distilled: bool) -> Result<(), Failure> {
    let scheduler = folder.join("scheduler");
    fs::create_dir_all(&scheduler).map_err(|e| at(&scheduler, e))?;
    let to = scheduler.join("scheduler_config.json");
    let scheduler =
        json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": is_distilled });
    put(&to, scheduler.to_string())?;
    let index = json!({
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    put(&folder.join("model_index.json"), index.to_string())
}

/// One component: config, and weights in one file or in shards of at most so many bytes, in the order of the layers.
fn write(
    folder: &Path,
    base: &str,
    names: &Names,
    (dtype, shard_bytes): (Dtype, usize),
    config: &Value,
) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|e| at(folder, e))?;
    put(&folder.join("config.json"), config.to_string())?;
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, shape) in names.all() {
        let tensor = Tensor::new(name, shape, dtype);
        if filled > 0 && filled + tensor.bytes() > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes();
        shards.last_mut().ok_or("no shard")?.push(tensor);
    }
    let count = shards.len();
    if count == 1 {
        return save(&folder.join(format!("{base}.safetensors")), shards.remove(0));
    }
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = format!("{base}-{:05}-of-{count:05}.safetensors", i + 1);
        eprintln!("writing {}", folder.join(&file).display());
        weight_map.extend(shard.iter().map(|tensor| (tensor.name().to_owned(), file.clone())));
        save(&folder.join(&file), shard)?;
    }
    let index = json!({ "metadata": { "total_size": names.bytes(dtype) }, "weight_map": weight_map });
    put(&folder.join(format!("{base}.safetensors.index.json")), index.to_string())
}

fn save(path: &Path, tensors: Vec<Tensor>) -> Result<(), Failure> {
    let views = tensors.into_iter().map(|tensor| (tensor.name().to_owned(), tensor));
    serialize_to_file(views, None, path).map_err(|e| Failure::from(format!("{}: {e}", path.display())))?;
    readable(path).map_err(|e| at(path, e))
}

/// What safetensors writes is for its owner alone.
#[cfg(unix)]
fn readable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
