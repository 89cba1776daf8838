//! A batch is so many single runs, bit for bit.

use super::common;
use dg_core::{DType, GenerateRequest, ImageSize, Scale, Seed, SequenceLength, StepEvent, Steps};
use dg_flux::RunError;
use dg_flux::parallel::{LatentsPart, RankJob, Resume};
use dg_flux::watch::{Unwatched, Watch};
use proptest::prelude::*;

fn request(prompt: &str, seed: u64, (w, h): (u32, u32), cfg: f64) -> GenerateRequest {
    let (size, _) = ImageSize::fit(w, h).expect("a size");
    let mut r = GenerateRequest::new(prompt, size, Seed(seed));
    r.num_inference_steps = Steps::try_from(2).expect("steps");
    r.max_sequence_length = SequenceLength::try_from(24).expect("a length");
    r.true_cfg_scale = Scale::try_from(cfg).expect("a scale");
    r.guidance_scale = Scale::try_from(1.0 + (seed % 7) as f64).expect("a scale");
    r.negative_prompt = Some(format!("not {prompt}"));
    r
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn of_n_equals_n_single_runs(
        seeds in prop::collection::vec(any::<u64>(), 2..5),
        columns in 1u32..6, rows in 1u32..6,
        cfg in prop_oneof![Just(1.0), Just(2.5)],
        bf16 in any::<bool>(),
    ) {
        let dtype = if bf16 { DType::Bfloat16 } else { DType::Float32 };
        let prompts = ["a red fox", "", "two teacups, 猫", "house"];
        let batch: Vec<GenerateRequest> = seeds
            .iter()
            .zip(prompts)
            .map(|(seed, prompt)| request(prompt, *seed, (16 * columns, 16 * rows), cfg))
            .collect();
        let mut pipeline = common::pipeline(&common::repo("tiny-dev"), dtype);
        let together = common::on_two_threads(|| pipeline.generate(&batch, &mut Unwatched)).expect("runs");
        for (one, expected) in batch.iter().zip(&together) {
            let alone = pipeline.generate(std::slice::from_ref(one), &mut Unwatched).expect("runs");
            prop_assert_eq!(&alone[0], expected);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let batch = [request("a red fox", 3, (208, 112), 2.0)];
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let mut pipeline = common::pipeline(&common::repo("tiny-dev"), DType::Float32);
            pipeline.generate(&batch, &mut Unwatched).expect("runs")
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn stopping_stops() {
    struct After(std::cell::Cell<u32>);
    impl Watch for After {
        fn stop(&self) -> bool {
            self.0.set(self.0.get() + 1);
            self.0.get() > 9
        }
    }
    let mut pipeline = common::pipeline(&common::repo("tiny-dev"), DType::Float32);
    let batch = [request("x", 0, (64, 64), 1.0)];
    let mut watch = After(std::cell::Cell::new(0));
    assert!(matches!(pipeline.generate(&batch, &mut watch), Err(RunError::Cancelled(_))));
    assert!(watch.0.get() < 12, "asked {} times", watch.0.get());
    assert!(pipeline.generate(&batch, &mut Unwatched).is_ok());
}

/// Takes the latents of all steps.
#[derive(Default)]
struct Taking {
    parts: Vec<LatentsPart>,
    /// Whether prompts were encoded.
    has_encoded: bool,
}

impl Watch for Taking {
    fn wants_latents(&self, _: usize) -> bool {
        true
    }

    fn latents(&mut self, part: LatentsPart) {
        self.parts.push(part);
    }

    fn event(&mut self, event: StepEvent) {
        self.has_encoded |= matches!(event, StepEvent::TextEncoded { .. });
    }
}

#[test]
fn a_batch_goes_on_to_the_same_pictures() {
    let repo = common::repo("tiny-dev");
    let batch = [request("a red fox", 3, (64, 48), 2.0), request("house", 4, (64, 48), 2.0)];
    let dims = [2, batch[0].size.image_tokens(), repo.shape().transformer.in_channels];
    for dtype in [DType::Float32, DType::Bfloat16] {
        let mut pipeline = common::pipeline(&repo, dtype);
        let mut run = |resume: Option<Resume>| {
            let job = RankJob::alone(repo.shape(), &batch, dtype);
            let job = RankJob { resume: resume.map(Into::into), ..job };
            let mut watch = Taking::default();
            let pictures = pipeline.generate_on(&batch, &job, &mut watch).expect("runs");
            (pictures.expect("the only rank decodes"), watch)
        };
        let (pictures, whole) = run(None);
        assert!(whole.has_encoded && whole.parts.len() == 2);
        for part in whole.parts {
            let step = part.step;
            let (same, watch) = run(Some(Resume::from_parts(&[part], dims).expect("all rows")));
            assert_eq!(pictures, same, "after step {step}");
            // what is only decoded needs no prompt
            assert_eq!((watch.has_encoded, watch.parts.len()), (step < 2, 2 - step));
        }
    }
}
