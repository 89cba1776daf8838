//! Shapes and layouts for the tests.

use dg_core::shape::{ModelShape, TransformerShape};
use dg_core::{DType, ImageSize};
use dg_plan::{Ask, Layout, Links, Machine, Pipeline, Plan, Work, known, machine};
use proptest::prelude::*;

/// FLUX.1-dev at `side` × `side` pixels.
pub(crate) fn dev(side: u32) -> Work {
    Work::one(known::flux_dev(), ImageSize::fit(side, side).unwrap().0)
}

/// A model of 9 heads × 16 and 3 + 6 blocks: every degree up to 8 is legal.
pub(crate) fn nine_heads() -> ModelShape {
    let dev = known::flux_dev();
    let transformer = TransformerShape {
        heads: 9,
        head_dim: 16,
        double_blocks: 3,
        single_blocks: 6,
        in_channels: 64,
        text_width: 40,
        pooled_width: 24,
        ..dev.transformer
    };
    ModelShape { transformer, ..dev }
}

/// A layout of the degrees dp, cfg, pp, ring, ulysses.
pub(crate) fn layout([dp, cfg, pp, ring, ulysses]: [u32; 5]) -> Layout {
    Layout { dp, cfg, pp, ring, ulysses }
}

pub(crate) fn plan(work: &Work, degrees: [u32; 5]) -> Plan {
    Plan::new(work, &Ask::layout(layout(degrees))).unwrap()
}

pub(crate) fn on(device: &str, links: &str) -> Machine {
    Machine::new(machine::device(device).unwrap(), Links::parse(links).unwrap())
}

/// Any plan of the small model that can run.
pub(crate) fn any_plan() -> impl Strategy<Value = Plan> {
    let degrees = (1u32..4, 1u32..3, 1u32..6, 1u32..6, 1u32..9);
    let sizes = (1u32..12, 1u32..12, 1usize..80, 1usize..6, 1usize..4);
    let modes = (any::<bool>(), 0usize..4, 0usize..3, prop::sample::select(PIPELINES.to_vec()));
    (degrees, sizes, modes).prop_filter_map("cannot run", |(degrees, sizes, modes)| {
        let (dp, cfg, pp, ring, ulysses) = degrees;
        let (rows, columns, text_tokens, steps, images) = sizes;
        let (true_cfg, extra_patches, warmup, pipeline) = modes;
        let size = ImageSize::fit(16 * columns, 16 * rows).unwrap().0;
        let work = Work {
            text_tokens,
            steps,
            images,
            request_images: images,
            batch: images,
            true_cfg,
            dtype: DType::Float32,
            ..Work::one(nine_heads(), size)
        };
        let ask = Ask {
            patches: Some(pp as usize + extra_patches),
            warmup,
            pipeline,
            ..Ask::layout(Layout { dp, cfg, pp, ring, ulysses })
        };
        Plan::new(&work, &ask).ok()
    })
}

const PIPELINES: [Pipeline; 3] = [Pipeline::Auto, Pipeline::Exact, Pipeline::Stale];
