//! Model folders with random weights, for this crate and for diffusers alike.

use crate::Failure;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Sizes of the transformer; all other components are the same in every preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Preset {
    /// 8 heads of 128, 2 + 4 blocks
    Medium,
    /// FLUX.1's own width, 24 heads of 128, and one block of each kind
    Block,
}

impl Preset {
    /// Heads, double blocks, single blocks.
    fn sizes(self) -> [usize; 3] {
        match self {
            Self::Medium => [8, 2, 4],
            Self::Block => [24, 1, 1],
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

/// The folder of a preset below the build folder, made on first use.
pub(crate) fn folder(preset: Preset) -> Result<PathBuf, Failure> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = target.join("bench-models").join(preset.name());
    // written last
    if !folder.join("model_index.json").is_file() {
        eprintln!("making {}", folder.display());
        all(&folder, preset)?;
    }
    Ok(folder)
}

const HEAD: usize = 128;
const CLIP: usize = 768;
const T5: usize = 512;
/// That of the demo model, whose tokenizers the folder gets.
const VOCAB: usize = 3826;
const CHANNELS: [usize; 4] = [128, 256, 512, 512];

/// Names and shapes of one component.
#[derive(Default)]
struct Names(BTreeMap<String, Vec<usize>>);

impl Names {
    fn linear(&mut self, name: &str, inp: usize, out: usize) {
        self.0.insert(format!("{name}.weight"), vec![out, inp]);
        self.0.insert(format!("{name}.bias"), vec![out]);
    }

    fn plain(&mut self, name: String, shape: &[usize]) {
        self.0.insert(format!("{name}.weight"), shape.to_vec());
    }

    fn conv(&mut self, name: &str, inp: usize, out: usize, side: usize) {
        self.plain(name.into(), &[out, inp, side, side]);
        self.0.insert(format!("{name}.bias"), vec![out]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.plain(name.into(), &[width]);
        self.0.insert(format!("{name}.bias"), vec![width]);
    }
}

/// Writes all components and their configs.
pub(crate) fn all(folder: &Path, preset: Preset) -> Result<Value, Failure> {
    let [heads, double, single] = preset.sizes();
    write(
        folder,
        "transformer",
        "diffusion_pytorch_model",
        &transformer(preset),
        &json!({
            "_class_name": "FluxTransformer2DModel", "num_attention_heads": heads, "attention_head_dim": HEAD,
            "num_layers": double, "num_single_layers": single, "in_channels": 64, "out_channels": null, "patch_size": 1,
            "joint_attention_dim": T5, "pooled_projection_dim": CLIP, "guidance_embeds": true,
            "axes_dims_rope": [16, 56, 56],
        }),
    )?;
    write(
        folder,
        "vae",
        "diffusion_pytorch_model",
        &vae(),
        &json!({
            "_class_name": "AutoencoderKL", "block_out_channels": CHANNELS, "layers_per_block": 2,
            "norm_num_groups": 32, "latent_channels": 16, "in_channels": 3, "out_channels": 3, "act_fn": "silu",
            "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024, "force_upcast": true,
            "use_quant_conv": false, "use_post_quant_conv": false, "mid_block_add_attention": true,
            "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        }),
    )?;
    write(
        folder,
        "text_encoder",
        "model",
        &clip(),
        &json!({
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu",
            "hidden_size": CLIP, "intermediate_size": 4 * CLIP, "num_attention_heads": 12, "num_hidden_layers": 12,
            "max_position_embeddings": 77, "vocab_size": VOCAB, "layer_norm_eps": 1e-5, "eos_token_id": 3825,
            "bos_token_id": 3824, "pad_token_id": 3825, "projection_dim": CLIP,
        }),
    )?;
    write(
        folder,
        "text_encoder_2",
        "model",
        &t5(),
        &json!({
            "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": T5, "d_kv": 64, "d_ff": 1280,
            "num_heads": 8, "num_layers": 24, "vocab_size": VOCAB, "feed_forward_proj": "gated-gelu",
            "dense_act_fn": "gelu_new", "is_gated_act": true, "is_encoder_decoder": false, "use_cache": false,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1,
            "tie_word_embeddings": false,
        }),
    )?;
    tokenizers(folder)?;
    scheduler_and_index(folder)?;
    Ok(json!({ "made": folder }))
}

/// Those of the demo model, so that `diffgentor t2i` can draw with the folder.
#[cfg(feature = "demo")]
fn tokenizers(folder: &Path) -> Result<(), Failure> {
    for file in dg_demo::files().iter().filter(|f| f.path.starts_with("tokenizer")) {
        let to = folder.join(file.path);
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        fs::write(to, file.bytes)?;
    }
    Ok(())
}

#[cfg(not(feature = "demo"))]
fn tokenizers(_: &Path) -> Result<(), Failure> {
    Err("this build has no demo model, whose tokenizers a folder gets; hint: build it with the feature `demo`".into())
}

fn scheduler_and_index(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder.join("scheduler"))?;
    let scheduler = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true });
    fs::write(folder.join("scheduler/scheduler_config.json"), scheduler.to_string())?;
    let index = json!({
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    Ok(fs::write(folder.join("model_index.json"), index.to_string())?)
}

fn write(folder: &Path, component: &str, base: &str, names: &Names, config: &Value) -> Result<(), Failure> {
    let at = folder.join(component);
    fs::create_dir_all(&at)?;
    fs::write(at.join("config.json"), config.to_string())?;
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut bytes = Vec::new();
    for (name, shape) in &names.0 {
        bytes.push(values(name, shape, &mut random));
    }
    let views: Result<Vec<_>, _> = names
        .0
        .iter()
        .zip(&bytes)
        .map(|((name, shape), b)| TensorView::new(Dtype::F32, shape.clone(), b).map(|v| (name.clone(), v)))
        .collect();
    Ok(serialize_to_file(views?, None, &at.join(format!("{base}.safetensors")))?)
}

/// Uniform values that keep activations of order one: norms around 1, biases small, weights by
/// their number of inputs.
fn values(name: &str, shape: &[usize], random: &mut u64) -> Vec<u8> {
    let inputs: usize = shape.iter().skip(1).product();
    let (centre, spread) = match shape.len() {
        1 if name.ends_with(".weight") => (1.0, 0.1),
        1 => (0.0, 0.1),
        _ => (0.0, (3.0 / inputs as f32).sqrt()),
    };
    let mut value = || {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        centre + spread * ((*random >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..shape.iter().product()).flat_map(|_| value().to_le_bytes()).collect()
}

fn transformer(preset: Preset) -> Names {
    let [heads, double, single] = preset.sizes();
    let d = heads * HEAD;
    let mut n = Names::default();
    for (name, inp) in [("timestep_embedder", 256), ("guidance_embedder", 256), ("text_embedder", CLIP)] {
        n.linear(&format!("time_text_embed.{name}.linear_1"), inp, d);
        n.linear(&format!("time_text_embed.{name}.linear_2"), d, d);
    }
    n.linear("x_embedder", 64, d);
    n.linear("context_embedder", T5, d);
    n.linear("norm_out.linear", d, 2 * d);
    n.linear("proj_out", d, 64);
    for i in 0..double {
        let at = format!("transformer_blocks.{i}");
        for (norm, ff) in [("norm1", "ff"), ("norm1_context", "ff_context")] {
            n.linear(&format!("{at}.{norm}.linear"), d, 6 * d);
            n.linear(&format!("{at}.{ff}.net.0.proj"), d, 4 * d);
            n.linear(&format!("{at}.{ff}.net.2"), 4 * d, d);
        }
        for l in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        {
            n.linear(&format!("{at}.attn.{l}"), d, d);
        }
        for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            n.plain(format!("{at}.attn.{norm}"), &[HEAD]);
        }
    }
    for i in 0..single {
        let at = format!("single_transformer_blocks.{i}");
        n.linear(&format!("{at}.norm.linear"), d, 3 * d);
        n.linear(&format!("{at}.proj_mlp"), d, 4 * d);
        n.linear(&format!("{at}.proj_out"), 5 * d, d);
        for l in ["to_q", "to_k", "to_v"] {
            n.linear(&format!("{at}.attn.{l}"), d, d);
        }
        for norm in ["norm_q", "norm_k"] {
            n.plain(format!("{at}.attn.{norm}"), &[HEAD]);
        }
    }
    n
}

fn resnet(n: &mut Names, at: &str, inp: usize, out: usize) {
    n.norm(&format!("{at}.norm1"), inp);
    n.conv(&format!("{at}.conv1"), inp, out, 3);
    n.norm(&format!("{at}.norm2"), out);
    n.conv(&format!("{at}.conv2"), out, out, 3);
    if inp != out {
        n.conv(&format!("{at}.conv_shortcut"), inp, out, 1);
    }
}

fn vae() -> Names {
    let mut n = Names::default();
    for (part, first, last) in
        [("encoder", (3, CHANNELS[0]), (512, 32)), ("decoder", (16, 512), (CHANNELS[0], 3))]
    {
        n.conv(&format!("{part}.conv_in"), first.0, first.1, 3);
        n.norm(&format!("{part}.conv_norm_out"), last.0);
        n.conv(&format!("{part}.conv_out"), last.0, last.1, 3);
        for j in 0..2 {
            resnet(&mut n, &format!("{part}.mid_block.resnets.{j}"), 512, 512);
        }
        let attention = format!("{part}.mid_block.attentions.0");
        n.norm(&format!("{attention}.group_norm"), 512);
        for l in ["to_q", "to_k", "to_v", "to_out.0"] {
            n.linear(&format!("{attention}.{l}"), 512, 512);
        }
    }
    let (mut down, mut up) = (CHANNELS[0], CHANNELS[3]);
    for i in 0..4 {
        for j in 0..2 {
            let inp = if j == 0 { down } else { CHANNELS[i] };
            resnet(&mut n, &format!("encoder.down_blocks.{i}.resnets.{j}"), inp, CHANNELS[i]);
        }
        for j in 0..3 {
            let inp = if j == 0 { up } else { CHANNELS[3 - i] };
            resnet(&mut n, &format!("decoder.up_blocks.{i}.resnets.{j}"), inp, CHANNELS[3 - i]);
        }
        (down, up) = (CHANNELS[i], CHANNELS[3 - i]);
        if i < 3 {
            n.conv(&format!("encoder.down_blocks.{i}.downsamplers.0.conv"), down, down, 3);
            n.conv(&format!("decoder.up_blocks.{i}.upsamplers.0.conv"), up, up, 3);
        }
    }
    n
}

fn clip() -> Names {
    let mut n = Names::default();
    n.plain("text_model.embeddings.token_embedding".into(), &[VOCAB, CLIP]);
    n.plain("text_model.embeddings.position_embedding".into(), &[77, CLIP]);
    n.norm("text_model.final_layer_norm", CLIP);
    for i in 0..12 {
        let at = format!("text_model.encoder.layers.{i}");
        n.norm(&format!("{at}.layer_norm1"), CLIP);
        n.norm(&format!("{at}.layer_norm2"), CLIP);
        for l in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            n.linear(&format!("{at}.self_attn.{l}"), CLIP, CLIP);
        }
        n.linear(&format!("{at}.mlp.fc1"), CLIP, 4 * CLIP);
        n.linear(&format!("{at}.mlp.fc2"), 4 * CLIP, CLIP);
    }
    n
}

fn t5() -> Names {
    let mut n = Names::default();
    n.plain("shared".into(), &[VOCAB, T5]);
    n.plain("encoder.final_layer_norm".into(), &[T5]);
    n.plain("encoder.block.0.layer.0.SelfAttention.relative_attention_bias".into(), &[32, 8]);
    for i in 0..24 {
        let at = format!("encoder.block.{i}.layer");
        for l in ["q", "k", "v", "o"] {
            n.plain(format!("{at}.0.SelfAttention.{l}"), &[T5, T5]);
        }
        n.plain(format!("{at}.0.layer_norm"), &[T5]);
        n.plain(format!("{at}.1.layer_norm"), &[T5]);
        n.plain(format!("{at}.1.DenseReluDense.wi_0"), &[1280, T5]);
        n.plain(format!("{at}.1.DenseReluDense.wi_1"), &[1280, T5]);
        n.plain(format!("{at}.1.DenseReluDense.wo"), &[T5, 1280]);
    }
    n
}
