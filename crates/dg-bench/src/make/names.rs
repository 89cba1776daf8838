//! Names and shapes of a component's tensors, in the order of its layers.

use super::{CHANNELS, CLIP, HEAD, Sizes, T5};
use safetensors::tensor::Dtype;

/// The tensors of one component.
#[derive(Default)]
pub(super) struct Names(Vec<(String, Vec<usize>)>);

impl Names {
    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// Their bytes in a format.
    pub(super) fn bytes(&self, dtype: Dtype) -> usize {
        let values: usize = self.all().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        values * dtype.bitsize() / 8
    }

    fn linear(&mut self, name: &str, inp: usize, out: usize) {
        self.plain(name.into(), &[out, inp]);
        self.bias(name, out);
    }

    fn plain(&mut self, name: String, shape: &[usize]) {
        self.0.push((format!("{name}.weight"), shape.to_vec()));
    }

    fn bias(&mut self, name: &str, width: usize) {
        self.0.push((format!("{name}.bias"), vec![width]));
    }

    fn conv(&mut self, name: &str, inp: usize, out: usize, side: usize) {
        self.plain(name.into(), &[out, inp, side, side]);
        self.bias(name, out);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.plain(name.into(), &[width]);
        self.bias(name, width);
    }
}

pub(super) fn transformer(sizes: &Sizes) -> Names {
    let d = sizes.heads * HEAD;
    let mut n = Names::default();
    let guidance = sizes.is_distilled.then_some(("guidance_embedder", 256));
    for (name, inp) in [("timestep_embedder", 256), ("text_embedder", CLIP)].into_iter().chain(guidance) {
        n.linear(&format!("time_text_embed.{name}.linear_1"), inp, d);
        n.linear(&format!("time_text_embed.{name}.linear_2"), d, d);
    }
    n.linear("context_embedder", sizes.t5.width, d);
    n.linear("x_embedder", 64, d);
    for i in 0..sizes.double {
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
    for i in 0..sizes.single {
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
    n.linear("norm_out.linear", d, 2 * d);
    n.linear("proj_out", d, 64);
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

pub(super) fn vae() -> Names {
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

pub(super) fn clip(vocab: usize) -> Names {
    let mut n = Names::default();
    n.plain("text_model.embeddings.token_embedding".into(), &[vocab, CLIP]);
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

pub(super) fn t5(t5: &T5) -> Names {
    let mut n = Names::default();
    n.plain("shared".into(), &[t5.vocab, t5.width]);
    n.plain("encoder.final_layer_norm".into(), &[t5.width]);
    n.plain("encoder.block.0.layer.0.SelfAttention.relative_attention_bias".into(), &[32, t5.heads]);
    for i in 0..24 {
        let at = format!("encoder.block.{i}.layer");
        let inner = t5.heads * 64;
        for l in ["q", "k", "v"] {
            n.plain(format!("{at}.0.SelfAttention.{l}"), &[inner, t5.width]);
        }
        n.plain(format!("{at}.0.SelfAttention.o"), &[t5.width, inner]);
        n.plain(format!("{at}.0.layer_norm"), &[t5.width]);
        n.plain(format!("{at}.1.layer_norm"), &[t5.width]);
        n.plain(format!("{at}.1.DenseReluDense.wi_0"), &[t5.mlp, t5.width]);
        n.plain(format!("{at}.1.DenseReluDense.wi_1"), &[t5.mlp, t5.width]);
        n.plain(format!("{at}.1.DenseReluDense.wo"), &[t5.width, t5.mlp]);
    }
    n
}
