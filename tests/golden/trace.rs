//! One forward pass, block by block.

use super::common;
use burn::tensor::Tensor;
use dg_core::{DType, Scale};
use dg_flux::watch::Watch;
use dg_kernels::to_vec;
use dg_testkit::Golden;
use std::collections::BTreeMap;

/// Keeps everything it sees.
#[derive(Default)]
struct Tape {
    seen: BTreeMap<String, Vec<f32>>,
}

impl Watch for Tape {
    fn see(&mut self, name: &str, x: &Tensor<3>) {
        self.seen.insert(name.into(), to_vec(x.clone()));
    }
}

fn run() -> (Tape, Golden) {
    let manifest = dg_testkit::manifest();
    let mut requests = common::requests(&manifest["trace_dev_256"]);
    requests[0].guidance_scale = Scale::try_from(3.5).expect("a scale");
    let mut tape = Tape::default();
    let mut pipeline = common::pipeline(&common::repo("tiny-dev"), DType::Float32);
    pipeline.latents(&requests, &mut tape).expect("nobody stops it");
    (tape, Golden::load("trace_dev_256"))
}

#[test]
fn every_block_of_the_traced_pass() {
    let (tape, golden) = run();
    let same = [
        "clip.embeddings",
        "clip.layer_0",
        "clip.layer_1",
        "clip.last_hidden",
        "t5.block_0",
        "t5.block_1",
        "t5.last_hidden",
        "t5.position_bias",
        "temb",
        "x_embedder",
        "context_embedder",
        "double_0.text",
        "double_0.image",
        "double_1.text",
        "double_1.image",
        "proj_out",
    ];
    for name in same {
        if golden.find(name).is_none() {
            panic!("the golden has no `{name}`, only {:?}", golden.names().collect::<Vec<_>>());
        }
        let ours = tape.seen.get(name).unwrap_or_else(|| panic!("the run shows no `{name}`"));
        let tolerance = if name.starts_with("clip") || name.starts_with("t5") { 3e-5 } else { 1e-5 };
        common::close(name, ours, golden.tensor(name), tolerance);
    }
    // the golden has the two parts of the single blocks' stream apart
    let width = 128;
    for i in 0..4 {
        let stream = &tape.seen[&format!("single_{i}")];
        let (text, image) = stream.split_at(64 * width);
        for (part, values) in [("text", text), ("image", image)] {
            let name = format!("single_{i}.{part}");
            common::close(&name, values, golden.tensor(&name), 1e-5);
        }
    }
}

#[test]
fn rope_table() {
    let golden = Golden::load("trace_dev_256");
    let (size, _) = dg_core::ImageSize::fit(256, 256).expect("a size");
    let mut ids = vec![[0.0; 3]; 64];
    ids.extend(dg_flux::latents::image_ids(size, dg_kernels::Precision::F32));
    let rope = dg_flux::rope::Rope::new(&ids, &[8, 12, 12], &dg_flux::cpu());
    for (name, ours) in [("rope.cos", rope.cos), ("rope.sin", rope.sin)] {
        // the golden repeats every value for both members of its pair
        let twice: Vec<f32> = to_vec(ours).into_iter().flat_map(|x| [x, x]).collect();
        common::close(name, &twice, golden.tensor(name), 1e-7);
    }
}
