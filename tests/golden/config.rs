//! What a key means when it is absent.

use dg_flux::{ModelConfig, ModelSource};
use serde_json::Value;

/// Files of the smaller model with `edit` applied to the config of `component`.
fn edited(component: &str, edit: impl Fn(&mut serde_json::Map<String, Value>)) -> ModelConfig {
    let root = dg_testkit::model_dir("tiny-schnell");
    let files = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "transformer/config.json",
        "vae/config.json",
    ];
    let read = |path: &'static str| {
        let mut json = dg_testkit::read_json(&root.join(path));
        if path.starts_with(&format!("{component}/")) {
            edit(json.as_object_mut().expect("an object"));
        }
        let bytes: &'static [u8] = json.to_string().into_bytes().leak();
        (path, bytes)
    };
    ModelConfig::read(&ModelSource::Embedded(files.map(read).to_vec())).expect("a config")
}

#[test]
fn absent_keys_have_the_defaults_of_diffusers_and_transformers() {
    let whole = edited("none", |_| ());
    let without = |component: &str, key: &str| {
        edited(component, |map| {
            assert!(map.remove(key).is_some(), "{component} has no {key}");
        })
    };
    // the test model states each of them with the library's default
    for (component, key) in [
        ("text_encoder", "layer_norm_eps"),
        ("text_encoder", "max_position_embeddings"),
        ("text_encoder", "eos_token_id"),
        ("text_encoder_2", "layer_norm_epsilon"),
        ("text_encoder_2", "relative_attention_num_buckets"),
        ("text_encoder_2", "relative_attention_max_distance"),
    ] {
        assert_eq!(without(component, key).shape, whole.shape, "{key}");
    }
    assert_eq!(without("scheduler", "base_shift").schedule, whole.schedule);
    assert_eq!(without("vae", "sample_size").shape.vae.sample_size, 32);
    assert_eq!(without("vae", "shift_factor").shape.vae.shift_factor, 0.0);
}
