//! Damaged and lying model files: an error that names the file, never a panic, never more memory
//! than the file's size and a bound.

use super::common;
use dg_core::{GenerateRequest, ImageSize, Seed, SequenceLength, Steps};
use dg_flux::tokenizer::PromptTokenizer;
use dg_flux::watch::Unwatched;
use dg_flux::{ModelError, ModelRepo, ModelSource, Picture, Pipeline, PipelineOptions};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A copy of the smaller test model whose files may be damaged.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        common::copy_tree(&dg_testkit::model_dir("tiny-schnell"), dir.path());
        Self { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn edit(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(file)).expect("a file");
        edit(&mut bytes);
        fs::write(self.path(file), bytes).expect("a file");
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        self.edit(file, |bytes| {
            let text = String::from_utf8(std::mem::take(bytes)).expect("text");
            assert!(text.contains(from), "{file} has no {from}");
            *bytes = text.replace(from, to).into_bytes();
        });
    }

    fn load(&self) -> Result<Pipeline, ModelError> {
        let repo = ModelRepo::open(ModelSource::Folder(self.dir.path().into()), "damaged")?;
        let options = PipelineOptions {
            device: dg_flux::cpu(),
            dtype: dg_core::DType::Float32,
            time_dtype: dg_core::TimeDtype::Model,
            vae_tiling: None,
            release_encoders: false,
            free_memory: None,
            weights_memory: None,
        };
        Pipeline::load(&repo, options)
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let error = self.load().err().expect("a damaged model is refused");
        let text = error.to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{text:?} does not say {words:?}");
        assert_eq!(error.exit(), dg_core::ExitCode::Config);
        assert!(error.hint().is_some());
    }
}

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
const ALL_WEIGHTS: [&str; 4] = [
    WEIGHTS,
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
];
const CONFIGS: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "transformer/config.json",
    "vae/config.json",
];
const TOKENIZERS: [&str; 3] = ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/tokenizer.json"];

/// One step to the smallest picture.
fn one_step(pipeline: &mut Pipeline) -> Picture {
    let size = ImageSize::fit(16, 16).expect("a size").0;
    let mut request = GenerateRequest::new("A red apple, 3 of them: \u{2603} \u{e000}?", size, Seed(7));
    request.num_inference_steps = Steps::try_from(1).expect("steps");
    request.max_sequence_length = SequenceLength::try_from(32).expect("a length");
    let mut pictures = pipeline.generate(&[request], &mut Unwatched).expect("nobody stops it");
    assert_eq!(pictures.len(), 1);
    pictures.remove(0)
}

/// The tokenizers crate panics on these: at load on what is no charsmap, at encode on a broken one.
#[test]
fn a_damaged_charsmap_is_an_error() {
    let file = "tokenizer_2/tokenizer.json";
    for map in ["AAAAAA==", "BAAAAAAAAAA=", "BAAAAP////8=", "no base64", ""] {
        let copy = Copy::new();
        copy.edit(file, |bytes| {
            let mut json: Value = serde_json::from_slice(bytes).expect("JSON");
            let normalizers = json.pointer_mut("/normalizer/normalizers").and_then(|n| n.as_array_mut());
            let mut changed = 0;
            for n in normalizers.expect("a sequence").iter_mut().filter(|n| n["type"] == "Precompiled") {
                n["precompiled_charsmap"] = map.into();
                changed += 1;
            }
            assert_eq!(changed, 1);
            *bytes = json.to_string().into_bytes();
        });
        let source = ModelSource::Folder(copy.dir.path().into());
        let outcome = PromptTokenizer::t5(&source).and_then(|t| t.encode("A red apple: \u{2603}", 32));
        if let Err(error) = outcome {
            assert!(error.to_string().contains(file), "{error}");
        } else {
            assert!(map.len() < 12, "{map:?} is taken for a charsmap");
        }
    }
}

#[test]
fn a_whole_copy_loads() {
    Copy::new().load().expect("nothing is damaged");
}

#[test]
fn missing_pieces_are_named() {
    let copy = Copy::new();
    fs::remove_file(copy.path("vae/diffusion_pytorch_model.safetensors")).expect("removed");
    copy.refused(&["vae/diffusion_pytorch_model.safetensors", "not found"]);
    let copy = Copy::new();
    copy.edit(WEIGHTS, |b| {
        let name = b"proj_out.bias";
        let at = b.windows(name.len()).position(|w| w == name).expect("the name");
        b[at..at + 4].copy_from_slice(b"prxj");
    });
    copy.refused(&[WEIGHTS, "proj_out.bias", "missing"]);
}

#[test]
fn unknown_classes_and_wrong_sizes_are_named() {
    let cases = [
        (
            "model_index.json",
            "FluxPipeline",
            "StableDiffusionPipeline",
            &["model_index.json", "StableDiffusionPipeline"],
        ),
        ("model_index.json", "T5EncoderModel", "UMT5EncoderModel", &["text_encoder_2", "UMT5EncoderModel"]),
        (
            "transformer/config.json",
            "\"num_attention_heads\": 3",
            "\"num_attention_heads\": 0",
            &["num_attention_heads", "is 0"],
        ),
        (
            "transformer/config.json",
            "\"num_attention_heads\": 3",
            "\"num_attention_heads\": 4",
            &["x_embedder.", "expected"],
        ),
        (
            "transformer/config.json",
            "\"num_layers\": 1",
            "\"num_layers\": 99999999999",
            &["num_layers", "99999999999"],
        ),
        (
            "transformer/config.json",
            "\"num_layers\": 1",
            "\"num_layers\": 1048576",
            &["transformer_blocks.1.", "missing"],
        ),
        ("vae/config.json", "\"norm_num_groups\": 8", "\"norm_num_groups\": 7", &["norm_num_groups", "is 7"]),
        (
            "text_encoder_2/config.json",
            "\"d_model\": 32",
            "\"d_model\": 33",
            &["d_model is 33", "joint_attention_dim"],
        ),
        (
            "scheduler/scheduler_config.json",
            "\"use_karras_sigmas\": false",
            "\"use_karras_sigmas\": true",
            &["use_karras_sigmas", "expected false"],
        ),
    ];
    for (file, from, to, words) in cases {
        let copy = Copy::new();
        copy.replace(file, from, to);
        copy.refused(words.as_slice());
    }
}

fn with_header(header: &str, body: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + body, 0);
    bytes
}

/// Files that are no weights.
fn lies() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![0; 7],
        u64::MAX.to_le_bytes().to_vec(),
        (1u64 << 40).to_le_bytes().to_vec(),
        with_header("{}", 100),
        with_header("not json", 0),
        with_header(r#"{"a":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,4]}}"#, 4),
        with_header(r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#, 4),
        with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
        with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}"#, 4),
        with_header(r#"{"a":{"dtype":"Q3","shape":[1],"data_offsets":[0,4]}}"#, 4),
        with_header(r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#, 4),
    ]
}

#[test]
fn lying_headers_are_refused() {
    for lie in lies() {
        let copy = Copy::new();
        copy.edit(WEIGHTS, |b| *b = lie.clone());
        copy.refused(&[WEIGHTS]);
    }
}

#[test]
fn index_files_cannot_lead_elsewhere() {
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    for (name, words) in [
        ("../../etc/passwd", "no safetensors file of this folder"),
        ("/etc/passwd.safetensors", "no safetensors file of this folder"),
        ("absent.safetensors", "not found"),
        ("", "no safetensors file of this folder"),
    ] {
        let copy = Copy::new();
        fs::remove_file(copy.path(WEIGHTS)).expect("removed");
        let map = serde_json::json!({ "weight_map": { "x": name } });
        fs::write(copy.path(index), map.to_string()).expect("written");
        copy.refused(&[words]);
    }
    for broken in ["", "[]", "{\"weight_map\": 3}", "{\"weight_map\": {}}"] {
        let copy = Copy::new();
        fs::remove_file(copy.path(WEIGHTS)).expect("removed");
        fs::write(copy.path(index), broken).expect("written");
        copy.refused(&[index]);
    }
    // a shard that is there but does not hold what the index says
    let copy = Copy::new();
    fs::rename(copy.path(WEIGHTS), copy.path("transformer/a.safetensors")).expect("renamed");
    fs::write(copy.path(index), r#"{"weight_map": {"nowhere.weight": "a.safetensors"}}"#).expect("written");
    copy.refused(&["a.safetensors", "nowhere.weight"]);
}

/// A header may end anywhere, so numbers may begin at any address.
#[test]
fn misaligned_weights_give_the_same_picture() {
    for odd in [1, 2, 3, 7] {
        let copy = Copy::new();
        let aligned = common::on_two_threads(|| one_step(&mut copy.load().expect("nothing is damaged")));
        for file in ALL_WEIGHTS {
            copy.edit(file, |bytes| {
                let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                let end = 8 + header as usize;
                let pad = (8 + odd - end % 8) % 8;
                bytes[..8].copy_from_slice(&(header + pad as u64).to_le_bytes());
                bytes.splice(end..end, vec![b' '; pad]);
                assert_eq!((end + pad) % 8, odd);
            });
        }
        let misaligned = common::on_two_threads(|| one_step(&mut copy.load().expect("it is well formed")));
        assert_eq!(aligned.rgb, misaligned.rgb, "{odd}");
        assert_eq!(aligned.latents_blake3, misaligned.latents_blake3, "{odd}");
    }
}

/// Memory is a process's own: hence the other one.
#[test]
fn lies_cost_no_memory() {
    let mut child = Command::new(std::env::current_exe().expect("a test binary"));
    child.args(["hostile::memory_of_lies", "--exact", "--ignored", "--nocapture"]);
    let output = child.output().expect("starts");
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{failed}");
    assert!(told.contains("1 passed"), "{told}");
}

#[test]
#[ignore = "run by lies_cost_no_memory"]
fn memory_of_lies() {
    let copy = Copy::new();
    common::on_two_threads(|| {
        for file in ALL_WEIGHTS {
            let whole = fs::read(copy.path(file)).expect("a file");
            for lie in lies() {
                fs::write(copy.path(file), lie).expect("written");
                copy.refused(&[file]);
            }
            fs::write(copy.path(file), whole).expect("restored");
        }
        for file in CONFIGS {
            let whole = fs::read(copy.path(file)).expect("a file");
            let config: Value = serde_json::from_slice(&whole).expect("a config");
            for key in config.as_object().expect("an object").keys() {
                for lie in [1 << 20, u64::MAX] {
                    let mut lying = config.clone();
                    enlarge(&mut lying[key], lie);
                    fs::write(copy.path(file), lying.to_string()).expect("written");
                    println!("{file}: {key} {lie}, so far {} MiB", common::memory_peak() >> 20);
                    if lying != config
                        && let Ok(mut pipeline) = copy.load()
                    {
                        one_step(&mut pipeline);
                    }
                }
            }
            fs::write(copy.path(file), whole).expect("restored");
        }
    });
    let peak = common::memory_peak();
    assert!(peak < MEMORY_MAX, "{} MiB", peak >> 20);
}

/// Puts `lie` in the place of every whole number in `value`.
fn enlarge(value: &mut Value, lie: u64) {
    match value {
        Value::Number(n) if n.is_u64() => *value = lie.into(),
        Value::Array(list) => list.iter_mut().for_each(|v| enlarge(v, lie)),
        _ => {}
    }
}

/// What the program, the test model and a small picture need, several times over.
const MEMORY_MAX: u64 = 400 << 20;

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    /// A damaged copy, and what was done to it.
    fn damage(&mut self, whole: &[u8], file: &str) -> (Vec<u8>, String) {
        let mut bytes = whole.to_vec();
        // in weights the header is where lies are dangerous
        let head = if file.ends_with(".safetensors") { whole.len().min(6000) } else { whole.len() };
        match self.below(4) {
            0 => bytes.truncate(self.below(whole.len())),
            1 if file.ends_with(".json") => {
                let mut value: Value = serde_json::from_slice(whole).expect("it is whole");
                let what = self.replace_leaf(&mut value);
                return (value.to_string().into_bytes(), what);
            }
            2 => {
                // a digit for a digit: still well formed, and wrong
                let from = self.below(head);
                if let Some(at) = bytes[from..head].iter().position(u8::is_ascii_digit) {
                    bytes[from + at] = b'0' + self.below(10) as u8;
                    return (bytes, format!("digit at {}", from + at));
                }
            }
            _ => {
                for _ in 0..1 + self.below(3) {
                    bytes[self.below(head)] ^= 1 << self.below(8);
                }
            }
        }
        let first = bytes.iter().zip(whole).position(|(a, b)| a != b).unwrap_or(bytes.len());
        let what = format!("{} of {} bytes, changed from byte {first}", bytes.len(), whole.len());
        (bytes, what)
    }

    /// Puts something else in the place of a value, near the root more often than far from it.
    fn replace_leaf(&mut self, root: &mut Value) -> String {
        let (mut at, mut path) = (root, String::new());
        loop {
            let children = match at {
                Value::Object(map) => map.len(),
                Value::Array(list) => list.len(),
                _ => 0,
            };
            if children == 0 || (!path.is_empty() && self.below(6) == 0) {
                break;
            }
            let child = self.below(children);
            at = match at {
                Value::Object(map) => {
                    let (key, value) = map.iter_mut().nth(child).expect("a child");
                    path += &format!("/{key}");
                    value
                }
                other => {
                    path += &format!("/{child}");
                    &mut other[child]
                }
            };
        }
        let lies =
            ["null", "-1", "0", "1048576", "18446744073709551615", "1e300", "\"\"", "[]", "{}", "true"];
        let lie = lies[self.below(lies.len())];
        *at = serde_json::from_str(lie).expect("JSON");
        format!("{path} = {lie}")
    }
}

/// Truncation anywhere, flipped bits, wrong digits and wrong values in headers, configs and tokenizers: an error or
/// a model that draws something.
#[test]
fn random_damage_never_panics() {
    let rounds = std::env::var("DG_HOSTILE_ROUNDS").map_or(ROUNDS, |n| n.parse().expect("a number"));
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ rounds as u64);
    let files: Vec<&str> = ALL_WEIGHTS.iter().chain(&CONFIGS).chain(&TOKENIZERS).copied().collect();
    let copy = Copy::new();
    let (mut refused, mut loaded) = (0, 0);
    common::on_two_threads(|| {
        for round in 0..rounds {
            let file = files[round % files.len()];
            let whole = fs::read(copy.path(file)).expect("a file");
            let (bytes, what) = random.damage(&whole, file);
            // seen when the test fails
            println!("{round}: {file}: {what}");
            fs::write(copy.path(file), &bytes).expect("written");
            match copy.load() {
                Ok(mut pipeline) => {
                    one_step(&mut pipeline);
                    loaded += 1;
                }
                Err(e) => {
                    assert!(!e.to_string().is_empty());
                    refused += 1;
                }
            }
            fs::write(copy.path(file), &whole).expect("restored");
        }
    });
    println!("{refused} refused, {loaded} loaded");
    assert!(refused > rounds / 3 && loaded > rounds / 20, "{refused} refused, {loaded} loaded");
}

/// Damaged models of one run; `DG_HOSTILE_ROUNDS` gives another number, and other damage.
const ROUNDS: usize = 195;
