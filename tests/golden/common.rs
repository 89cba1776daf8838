//! Models, requests and comparisons that the suites share.

use dg_core::{DType, GenerateRequest, ImageSize, NoiseIndex, Scale, Seed, SequenceLength, Steps, TimeDtype};
use dg_flux::{FreeMemory, ModelRepo, ModelSource, Pipeline, PipelineOptions};
use dg_testkit::GoldenTensor;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A model of `tests/data`, opened.
pub(crate) fn repo(name: &str) -> ModelRepo {
    ModelRepo::open(ModelSource::Folder(dg_testkit::model_dir(name)), name).expect("a test model")
}

/// The model in the program.
pub(crate) fn demo() -> ModelRepo {
    let files = dg_demo::files().iter().map(|f| (f.path, f.bytes)).collect();
    ModelRepo::open(ModelSource::Embedded(files), "demo").expect("the demo model")
}

/// A loaded model.
pub(crate) fn pipeline(repo: &ModelRepo, dtype: DType) -> Pipeline {
    pipeline_with(repo, dtype, [None, None])
}

/// A loaded model that asks for the memory that is free, and for what of it weights may take.
pub(crate) fn pipeline_with(repo: &ModelRepo, dtype: DType, memory: [Option<FreeMemory>; 2]) -> Pipeline {
    let (device, time_dtype, vae_tiling) = (dg_flux::cpu(), TimeDtype::Model, None);
    let [free_memory, weights_memory] = memory;
    let release_encoders = true;
    let options = PipelineOptions {
        device,
        dtype,
        time_dtype,
        vae_tiling,
        release_encoders,
        free_memory,
        weights_memory,
    };
    Pipeline::load(repo, options).expect("a test model")
}

/// Runs `f` in a pool of two threads.
pub(crate) fn on_two_threads<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads").install(f)
}

/// The requests of a case of the manifest: one per image, prompt-major.
pub(crate) fn requests(case: &Value) -> Vec<GenerateRequest> {
    let number = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("{key}"));
    let (size, _) = ImageSize::fit(number("width") as u32, number("height") as u32).expect("a size");
    let prompts: Vec<&str> = match &case["prompt"] {
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        one => vec![one.as_str().expect("a prompt")],
    };
    let per_prompt = case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize;
    let image = |i: usize| {
        let mut r = GenerateRequest::new(prompts[i / per_prompt], size, Seed(0));
        // a list gives every image a seed; one number is one generator for the whole batch
        (r.seed, r.noise_index) = match &case["seed"] {
            Value::Array(seeds) => (Seed(seeds[i].as_u64().expect("a seed")), NoiseIndex::default()),
            seed => (Seed(seed.as_u64().expect("a seed")), NoiseIndex::try_from(i as u32).expect("an index")),
        };
        r.num_inference_steps = Steps::try_from(number("num_inference_steps") as u32).expect("steps");
        r.guidance_scale = Scale::try_from(number("guidance_scale")).expect("a scale");
        r.max_sequence_length =
            SequenceLength::try_from(number("max_sequence_length") as u32).expect("a length");
        r.prompt_2 = case["prompt_2"].as_str().map(Into::into);
        r.negative_prompt = case["negative_prompt"].as_str().map(Into::into);
        if let Some(scale) = case["true_cfg_scale"].as_f64() {
            r.true_cfg_scale = Scale::try_from(scale).expect("a scale");
        }
        r.sigmas = case["sigmas"].as_array().map(|l| l.iter().filter_map(Value::as_f64).collect());
        r
    };
    (0..prompts.len() * per_prompt).map(image).collect()
}

/// Panics unless all stored values of `golden` are met to within `tolerance`.
#[track_caller]
pub(crate) fn close(what: &str, ours: &[f32], golden: &GoldenTensor, tolerance: f32) {
    let worst = golden.max_abs_diff(ours);
    println!("{what}: {worst:.1e} of {tolerance:.1e}");
    assert!(worst <= tolerance, "{what}: largest difference {worst:e}, allowed {tolerance:e}");
}

/// Copies a folder and all in it.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
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

/// The most memory that this process ever had, in bytes.
pub(crate) fn memory_peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a Linux process");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
