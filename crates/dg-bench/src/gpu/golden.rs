//! Pictures of a tiny model against those that diffusers made.

use super::Kind;
use super::kernels::error;
use super::part::{Part, Row};
use crate::Failure;
use dg_core::{DType, GenerateRequest, ImageSize, Scale, Seed, SequenceLength, Steps, TimeDtype};
use dg_flux::watch::Unwatched;
use dg_flux::{ModelRepo, ModelSource, Pipeline, PipelineOptions};
use dg_kernels::to_vec;
use dg_testkit::Golden;
use serde_json::{Value, json};
use std::path::Path;

/// What is made, and the largest error of latents as a part of the largest value.
const CASES: [(&str, DType, f64); 2] =
    [("dev_256", DType::Float32, 1e-4), ("dev_bf16", DType::Bfloat16, 0.05)];

pub(super) fn run(kind: Kind, data: &Path, part: &mut Part) -> Result<(), Failure> {
    let manifest = data.join("golden/manifest.json");
    let text = std::fs::read_to_string(&manifest).map_err(|e| format!("{}: {e}", manifest.display()))?;
    let manifest: Value = serde_json::from_str(&text)?;
    let repo = ModelRepo::open(ModelSource::Folder(data.join("tiny-dev")), "tiny-dev")?;
    let device = kind.open()?;
    for (name, dtype, bound) in CASES {
        let request = request(&manifest[name])?;
        let options = PipelineOptions {
            device: device.clone(),
            dtype,
            time_dtype: TimeDtype::Model,
            vae_tiling: None,
            release_encoders: false,
            free_memory: None,
            weights_memory: None,
        };
        let mut pipeline = Pipeline::load(&repo, options)?;
        let latents = pipeline.latents(std::slice::from_ref(&request), &mut Unwatched)?;
        let picture = pipeline.picture(latents.clone(), &request, &Unwatched)?;
        let file = data.join(format!("golden/{name}.safetensors"));
        let golden = Golden::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let golden = golden.tensor(&format!("latents_{}", request.steps()));
        let found = error(&golden.values, &golden.stored_rows(&to_vec(latents)));
        let (width, _, rgb) = dg_testkit::read_png_rgb(&data.join(format!("golden/{name}.png")));
        let difference = dg_testkit::image_difference(&rgb, &picture.rgb);
        let is_good = found <= bound && width == request.size.width() as usize && difference.mean < MEAN_MAX;
        let detail = format!(
            "latents {found:.1e} of the largest value (bound {bound:.0e}), bytes of the picture {:.3} on average, {} at most",
            difference.mean, difference.max
        );
        let numbers = json!({ "error": found, "bound": bound, "byte_mean": difference.mean, "byte_max": difference.max });
        part.put(Row::new(name, is_good, detail, numbers));
    }
    Ok(())
}

fn request(case: &Value) -> Result<GenerateRequest, Failure> {
    let number = |key: &str| case[key].as_f64().ok_or_else(|| format!("the manifest has no {key}"));
    let (size, _) = ImageSize::fit(number("width")? as u32, number("height")? as u32)?;
    let prompt = case["prompt"].as_str().ok_or("the manifest has no prompt")?;
    let mut request = GenerateRequest::new(prompt, size, Seed(number("seed")? as u64));
    request.num_inference_steps = Steps::try_from(number("num_inference_steps")? as u32)?;
    request.guidance_scale = Scale::try_from(number("guidance_scale")?)?;
    request.max_sequence_length = SequenceLength::try_from(number("max_sequence_length")? as u32)?;
    Ok(request)
}

/// Of 255.
const MEAN_MAX: f64 = 1.5;
