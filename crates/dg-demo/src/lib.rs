//! The demo model: a small FLUX that draws icons, as bytes inside the program.
//!
//! It is an ordinary diffusers folder (`model/` beside this source; `docs/demo-model.md` is its card, and
//! `model/NOTICE.md` has the licences of what it was trained on). The bytes lie in the program's read-only data,
//! so they cost no memory until they are touched and are shared by all processes that run it.
//!
//! # Layout
//! [`files`] lists the folder; each [`DemoFile`] is one file of it.
//!
//! ```
//! let index = dg_demo::files().iter().find(|file| file.path == "model_index.json").unwrap();
//! assert!(index.bytes.starts_with(b"{"));
//! ```
#![forbid(unsafe_code)]

/// One file of the demo model.
#[derive(Clone, Copy, Debug)]
pub struct DemoFile {
    /// Path inside the model folder, with `/` between folders.
    pub path: &'static str,
    /// Content. Weight files begin at a multiple of 64 bytes, so that tensors can be used in place.
    pub bytes: &'static [u8],
}

/// All files of the demo model.
pub fn files() -> &'static [DemoFile] {
    FILES
}

/// Puts its content at a multiple of 64 bytes: a cache line, and more than any element needs.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

/// A file of `model/` at an address that is a multiple of 64.
macro_rules! aligned {
    ($path:literal) => {{
        static CONTENT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../model/", $path)));
        DemoFile { path: $path, bytes: &CONTENT.0 }
    }};
}

/// A file of `model/` wherever it falls.
macro_rules! plain {
    ($path:literal) => {
        DemoFile { path: $path, bytes: include_bytes!(concat!("../model/", $path)) }
    };
}

static FILES: &[DemoFile] = &[
    plain!("generation_config.json"),
    plain!("model_index.json"),
    plain!("scheduler/scheduler_config.json"),
    plain!("text_encoder/config.json"),
    aligned!("text_encoder/model.safetensors"),
    plain!("text_encoder_2/config.json"),
    aligned!("text_encoder_2/model.safetensors"),
    plain!("tokenizer/merges.txt"),
    plain!("tokenizer/tokenizer.json"),
    plain!("tokenizer/vocab.json"),
    plain!("tokenizer_2/tokenizer.json"),
    plain!("transformer/config.json"),
    aligned!("transformer/diffusion_pytorch_model.safetensors"),
    plain!("vae/config.json"),
    aligned!("vae/diffusion_pytorch_model.safetensors"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn walk(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("the model folder is readable").flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_in_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("model");
        let mut on_disk = BTreeSet::new();
        walk(&folder, "", &mut on_disk);
        on_disk.remove("NOTICE.md");
        let inside: BTreeSet<String> = files().iter().map(|file| file.path.to_owned()).collect();
        assert_eq!(inside, on_disk);
        for file in files() {
            let content = std::fs::read(folder.join(file.path)).expect("it is there");
            assert!(file.bytes == content, "{} differs", file.path);
        }
    }

    #[test]
    fn weights_are_aligned_safetensors() {
        let weights: Vec<_> = files().iter().filter(|file| file.path.ends_with(".safetensors")).collect();
        assert_eq!(weights.len(), 4);
        for file in weights {
            assert_eq!(file.bytes.as_ptr().addr() % 64, 0, "{}", file.path);
            let length = u64::from_le_bytes(file.bytes[..8].try_into().expect("eight bytes"));
            assert_eq!(file.bytes[8], b'{', "{}", file.path);
            assert!((length as usize) < file.bytes.len(), "{}", file.path);
        }
    }
}
