//! Damaged and lying model files: an error that names the file, never a panic, never more memory
//! than the file's size and a bound.

use dg_flux::{ModelError, ModelRepo, ModelSource, Pipeline, PipelineOptions};
use std::fs;
use std::path::{Path, PathBuf};

/// A copy of the smaller test model whose files may be damaged.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        copy_tree(&dg_testkit::model_dir("tiny-schnell"), dir.path());
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

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let (source, target) = entry.map(|e| (e.path(), to.join(e.file_name()))).expect("an entry");
        if source.is_dir() {
            copy_tree(&source, &target);
        } else {
            fs::copy(source, target).expect("a copy");
        }
    }
}

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

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

#[test]
fn lying_headers_are_refused() {
    let with_header = |header: &str, body: usize| -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + body, 0);
        bytes
    };
    let lies = [
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
    ];
    for lie in lies {
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

/// Truncation anywhere, and flipped bits in header and configs: an error or a working model.
#[test]
fn random_damage_never_panics() {
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % n as u64) as usize
    };
    let files = [
        WEIGHTS,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder_2/config.json",
        "scheduler/scheduler_config.json",
    ];
    let copy = Copy::new();
    let (mut refused, mut loaded) = (0, 0);
    for round in 0..240 {
        let file = files[round % files.len()];
        let whole = fs::read(copy.path(file)).expect("a file");
        let mut bytes = whole.clone();
        if round % 3 == 0 {
            bytes.truncate(next(whole.len()));
        } else {
            // the header is where lies are dangerous
            let head = whole.len().min(6000);
            for _ in 0..1 + next(3) {
                bytes[next(head)] ^= 1 << next(8);
            }
        }
        fs::write(copy.path(file), &bytes).expect("written");
        match copy.load() {
            Ok(_) => loaded += 1,
            Err(e) => {
                assert!(!e.to_string().is_empty());
                refused += 1;
            }
        }
        fs::write(copy.path(file), &whole).expect("restored");
    }
    assert!(refused > 100, "{refused} refused, {loaded} loaded");
}
