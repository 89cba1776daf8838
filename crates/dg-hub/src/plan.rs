//! Which files of a repository a FLUX pipeline needs.
//!
//! Every name is put together here from known parts, or comes from an index file and is checked: what a listing
//! says besides is never asked for.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::HubError;
use crate::id::is_plain_name;

/// A repository that can be asked for its files: the hub, or a folder of the cache.
pub(crate) trait Listing {
    /// Whether there is a file of this name.
    fn has(&self, name: &str) -> bool;
    /// The content of a small file.
    fn read(&self, name: &str) -> Result<Vec<u8>, HubError>;
    /// The error for a file that is needed and not there.
    fn missing(&self, name: &str) -> HubError;
    /// The error for a file that is there and wrong.
    fn broken(&self, name: &str, reason: String) -> HubError;
}

/// The names of all files that the pipeline needs, `model_index.json` first.
pub(crate) fn plan(listing: &dyn Listing) -> Result<Vec<String>, HubError> {
    let mut files = Vec::new();
    need(listing, &mut files, INDEX.to_owned())?;
    let index = read_object(listing, INDEX)?;
    match index.get("_class_name").and_then(Value::as_str) {
        Some(class) if class.starts_with("Flux") => {}
        class => {
            let class = class.unwrap_or("missing");
            return Err(listing.broken(INDEX, format!("`_class_name` is `{class}`, not FluxPipeline")));
        }
    }
    wish(listing, &mut files, "generation_config.json".to_owned());
    for (name, kind) in COMPONENTS {
        if !is_named(index.get(name)) {
            return Err(listing.broken(INDEX, format!("it names no `{name}`")));
        }
        match kind {
            Component::Scheduler => need(listing, &mut files, format!("{name}/scheduler_config.json"))?,
            Component::Tokenizer => tokenizer(listing, &mut files, name)?,
            Component::Weights(stem) => weights(listing, &mut files, name, stem)?,
        }
    }
    if files.len() > FILES_MAX {
        return Err(
            listing.broken(INDEX, format!("the model has {} files, more than {FILES_MAX}", files.len()))
        );
    }
    Ok(files)
}

enum Component {
    Scheduler,
    Tokenizer,
    /// Weights under this name, whole or in shards, and their `config.json`.
    Weights(&'static str),
}

/// `["diffusers", "AutoencoderKL"]`, and not `[null, null]`.
fn is_named(entry: Option<&Value>) -> bool {
    entry.and_then(Value::as_array).is_some_and(|pair| pair.len() == 2 && pair.iter().all(Value::is_string))
}

fn need(listing: &dyn Listing, files: &mut Vec<String>, name: String) -> Result<(), HubError> {
    if !listing.has(&name) {
        return Err(listing.missing(&name));
    }
    files.push(name);
    Ok(())
}

fn wish(listing: &dyn Listing, files: &mut Vec<String>, name: String) -> bool {
    let has = listing.has(&name);
    if has {
        files.push(name);
    }
    has
}

/// `vocab.json` with `merges.txt`, or `tokenizer.json`, or both.
fn tokenizer(listing: &dyn Listing, files: &mut Vec<String>, component: &str) -> Result<(), HubError> {
    let whole = format!("{component}/tokenizer.json");
    let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|name| format!("{component}/{name}"));
    if listing.has(&vocabulary) && listing.has(&merges) {
        files.extend([vocabulary, merges]);
        wish(listing, files, whole);
        return Ok(());
    }
    need(listing, files, whole)
}

fn weights(
    listing: &dyn Listing,
    files: &mut Vec<String>,
    component: &str,
    stem: &str,
) -> Result<(), HubError> {
    need(listing, files, format!("{component}/config.json"))?;
    let single = format!("{component}/{stem}.safetensors");
    let index = format!("{component}/{stem}.safetensors.index.json");
    if wish(listing, files, single.clone()) {
        return Ok(());
    }
    if !wish(listing, files, index.clone()) {
        return Err(listing.missing(&single));
    }
    for shard in shards(listing, &index)? {
        need(listing, files, format!("{component}/{shard}"))?;
    }
    Ok(())
}

/// The shard names of an index, each once.
fn shards(listing: &dyn Listing, index: &str) -> Result<BTreeSet<String>, HubError> {
    let map = read_object(listing, index)?;
    let Some(map) = map.get("weight_map").and_then(Value::as_object) else {
        return Err(listing.broken(index, "it has no `weight_map`".to_owned()));
    };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            Some(name) if is_plain_name(name) && name.ends_with(".safetensors") => {
                shards.insert(name.to_owned())
            }
            _ => {
                return Err(
                    listing.broken(index, format!("`{tensor}` is said to be in {shard}, no name of a shard"))
                );
            }
        };
    }
    if shards.is_empty() {
        return Err(listing.broken(index, "`weight_map` is empty".to_owned()));
    }
    Ok(shards)
}

fn read_object(listing: &dyn Listing, name: &str) -> Result<Value, HubError> {
    let value: Value = serde_json::from_slice(&listing.read(name)?)
        .map_err(|error| listing.broken(name, error.to_string()))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(listing.broken(name, "it is not a JSON object".to_owned()))
    }
}

/// The largest JSON file that is read; FLUX.1-dev's largest index has 0.12 MiB.
pub(crate) const JSON_BYTES_MAX: u64 = 64 << 20;

/// The most files that a model may have; FLUX.1-dev has 20.
const FILES_MAX: usize = 512;

const INDEX: &str = "model_index.json";

const COMPONENTS: [(&str, Component); 7] = [
    ("scheduler", Component::Scheduler),
    ("tokenizer", Component::Tokenizer),
    ("tokenizer_2", Component::Tokenizer),
    ("text_encoder", Component::Weights("model")),
    ("text_encoder_2", Component::Weights("model")),
    ("vae", Component::Weights("diffusion_pytorch_model")),
    ("transformer", Component::Weights("diffusion_pytorch_model")),
];
