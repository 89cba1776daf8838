//! Modulations are the same bits however many steps are computed together.

use super::common;
use burn::tensor::Tensor;
use dg_flux::conditioning::Moment;
use dg_flux::modulation::{Ahead, Modulations, Modulator};
use dg_flux::watch::{Cancelled, Unwatched, Watch};
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelConfig, ModelSource, PassError};
use dg_kernels::{Precision, from_vec, to_vec};

const STEPS: usize = 7;
const ROWS: usize = 3;

fn moments() -> Vec<Moment> {
    let moment = |i: usize| Moment { time: 1000.0 - 37.0 * (i / ROWS) as f32, guidance: 500.0 * i as f32 };
    (0..STEPS * ROWS).map(moment).collect()
}

fn pooled(width: usize) -> Tensor<2> {
    let values = (0..ROWS * width).map(|i| (i as f32 * 0.37).sin()).collect();
    from_vec(values, [ROWS, width], &dg_flux::cpu())
}

fn flat(m: &Modulations) -> Vec<f32> {
    let all = m.double.iter().flatten().chain(&m.single).chain(&m.norm_out).chain([&m.conditioning]);
    all.flat_map(|t| to_vec(t.clone())).collect()
}

fn with_modulator(p: Precision, check: impl FnOnce(&Modulator, &dg_core::shape::TransformerShape)) {
    let source = ModelSource::Folder(dg_testkit::model_dir("tiny-dev"));
    let shape = ModelConfig::read(&source).expect("a config").shape.transformer;
    let files = WeightFiles::open(&source, "transformer", "diffusion_pytorch_model").expect("weights");
    check(&Modulator::load(&files.loader(&dg_flux::cpu(), p), &shape).expect("its weights"), &shape);
}

#[test]
fn ahead_or_not_is_the_same() {
    for p in [Precision::F32, Precision::Bf16] {
        with_modulator(p, |modulator, shape| {
            let width = shape.pooled_width;
            let alone = |i: usize| {
                let row = pooled(width).narrow(0, i % ROWS, 1);
                modulator.forward(&moments()[i..][..1], row, &Unwatched).expect("nobody stops it")
            };
            let step_bytes = ROWS as u64 * Modulations::row_bytes(shape);
            for bytes_max in [0, step_bytes, 3 * step_bytes + 1, 100 * step_bytes] {
                let mut ahead = Ahead::new(modulator, moments(), pooled(width), bytes_max);
                for step in 0..STEPS {
                    let m = ahead.step(step, &Unwatched).expect("nobody stops it");
                    for row in 0..ROWS {
                        let (ours, expected) = (flat(&m.rows(row, 1)), flat(&alone(step * ROWS + row)));
                        assert!(ours == expected, "step {step}, row {row}, {bytes_max} bytes");
                        assert_eq!(4 * ours.len() as u64, Modulations::row_bytes(shape));
                    }
                }
            }
        });
    }
}

#[test]
fn stopping_stops() {
    struct Stopped;
    impl Watch for Stopped {
        fn stop(&self) -> bool {
            true
        }
    }
    with_modulator(Precision::F32, |modulator, shape| {
        let result = modulator.forward(&moments(), pooled(shape.pooled_width), &Stopped);
        assert_eq!(result.err(), Some(PassError::Cancelled(Cancelled)));
    });
}

/// The pages of the weights are given back after use and read again.
#[test]
fn twice_is_the_same() {
    let mut pipeline = common::pipeline(&common::repo("tiny-dev"), dg_core::DType::Float32);
    let case = dg_testkit::manifest()["dev_64_1step"].clone();
    let mut run = || to_vec(pipeline.latents(&common::requests(&case), &mut Unwatched).expect("it runs"));
    assert_eq!(run(), run());
}
