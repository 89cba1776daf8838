//! Text embeddings of every case that stores them.

use super::common;
use burn::tensor::Tensor;
use dg_core::DType;
use dg_flux::text::{Prompt, TextEncoder};
use dg_flux::watch::Unwatched;
use dg_kernels::{Precision, to_vec};
use dg_testkit::Golden;
use serde_json::Value;

fn encode(encoder: &mut TextEncoder, clip: &str, t5: &str, tokens: usize) -> (Tensor<3>, Tensor<2>) {
    let prompt = Prompt { clip: clip.into(), t5: t5.into(), tokens };
    let e = encoder.encode(&prompt, &mut Unwatched).expect("nobody stops it");
    (e.text, e.pooled)
}

/// The cases that store no T5 embeddings: those of their prompts are in other cases, or the final latents tell.
const WITHOUT_T5: [&str; 16] = [
    "dev_1000x744",
    "dev_250x186",
    "dev_336x208",
    "dev_512",
    "dev_5steps",
    "dev_64_1step",
    "dev_batch2_images2",
    "dev_batch2_one_generator",
    "dev_batch2_seed_list",
    "dev_guidance_1",
    "dev_guidance_10",
    "dev_images2_seed_list",
    "dev_prompt_2",
    "dev_sigmas",
    "dev_true_cfg_empty_negative",
    "schnell_guidance_ignored",
];

fn check(name: &str, case: &Value, encoder: &mut TextEncoder) {
    let golden = Golden::load(name);
    let requests = common::requests(case);
    let (mut texts, mut pooled) = (Vec::new(), Vec::new());
    for r in &requests {
        let (text, p) = encode(encoder, &r.prompt, r.t5_prompt(), r.max_sequence_length.tokens());
        texts.extend(to_vec(text));
        pooled.extend(to_vec(p));
    }
    common::close(&format!("{name} pooled"), &pooled, golden.tensor("pooled"), 3e-6);
    let without = WITHOUT_T5.contains(&name);
    assert_eq!(golden.find("prompt_embeds").is_none(), without, "{name}: prompt_embeds");
    if let Some(expected) = golden.find("prompt_embeds") {
        common::close(&format!("{name} T5"), &texts, expected, 3e-5);
    }
    let r = &requests[0];
    let Some(negative) = r.active_negative() else {
        assert!(golden.find("negative_pooled").is_none(), "{name} has no negative prompt");
        return;
    };
    let (text, p) = encode(encoder, negative, negative, r.max_sequence_length.tokens());
    common::close(&format!("{name} negative pooled"), &to_vec(p), golden.tensor("negative_pooled"), 3e-6);
    let expected = golden.tensor("negative_prompt_embeds");
    common::close(&format!("{name} negative T5"), &to_vec(text), expected, 3e-5);
}

#[test]
fn embeddings_of_every_float32_case() {
    let manifest = dg_testkit::manifest();
    for model in ["tiny-dev", "tiny-schnell"] {
        let repo = common::repo(model);
        let (mut encoder, _, unused) =
            TextEncoder::load(&repo, &dg_flux::cpu(), Precision::F32).expect("encoders");
        assert_eq!(unused, Vec::<String>::new());
        let cases = super::cases::of(&manifest, model, DType::Float32);
        assert!(cases.len() >= 3);
        for (name, case) in cases {
            check(name, case, &mut encoder);
        }
    }
}
