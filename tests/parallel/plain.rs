//! PipeFusion on one rank, written down plainly: what the engine has to compute, without its code.

use crate::engine::{Case, run, schedule};
use crate::model::{model, shape};
use crate::ranks::{bits, distance};
use burn::tensor::Tensor;
use dg_core::{DType, TimeDtype};
use dg_flux::attend::{Attend, Projected};
use dg_flux::conditioning::Moment;
use dg_flux::rope::Rope;
use dg_flux::transformer::Inputs;
use dg_flux::watch::Unwatched;
use dg_flux::{PassError, cpu, latents};
use dg_kernels::{Precision, attention, from_vec, to_vec};
use dg_plan::{Ask, Layout, PatchTable, Pipeline};

/// Key and value of each token of the joint sequence, in each block; nothing before it was first computed.
struct Known {
    layers: Vec<Vec<Option<[Tensor<4>; 2]>>>,
    layer: usize,
    /// Tokens of the pass in hand.
    tokens: Vec<usize>,
}

impl Attend for Known {
    fn attend(
        &mut self,
        parts: Vec<Projected>,
        scale: f32,
        p: Precision,
    ) -> Result<Vec<Tensor<4>>, PassError> {
        let some: Vec<_> = parts.iter().filter(|part| part.q.dims()[1] > 0).collect();
        let all =
            |of: fn(&Projected) -> &Tensor<4>| Tensor::cat(some.iter().map(|p| of(p).clone()).collect(), 1);
        let (q, k, v) = (all(|p| &p.q), all(|p| &p.k), all(|p| &p.v));
        let known = &mut self.layers[self.layer];
        for (i, token) in self.tokens.iter().enumerate() {
            known[*token] = Some([k.clone().narrow(1, i, 1), v.clone().narrow(1, i, 1)]);
        }
        let of = |i: usize| Tensor::cat(known.iter().flatten().map(|both| both[i].clone()).collect(), 1);
        let (output, _) = attention(q, of(0), of(1), scale, p);
        self.layer += 1;
        let mut start = 0;
        let part = |part: &Projected| match part.q.dims() {
            [b, 0, h, d] => from_vec(Vec::new(), [b, 0, h, d], &cpu()),
            [_, n, _, _] => {
                start += n;
                output.clone().narrow(1, start - n, n)
            }
        };
        Ok(parts.iter().map(part).collect())
    }
}

/// All steps: whole ones while warming up, then patch after patch, the text with the first.
fn plain(case: &Case, patches: &PatchTable, warmup: usize) -> Vec<f32> {
    let (s, m, batch, schedule) = (shape(), model(DType::Float32), case.batch(), schedule(case));
    let (encoded, text_tokens) = (case.encoded().positive, case.text as usize);
    let (b, image_tokens) = (batch.len(), batch[0].size.image_tokens());
    let mut ids = vec![[0.0; 3]; text_tokens];
    ids.extend(latents::image_ids(batch[0].size, Precision::F32));
    let rope = Rope::new(&ids, &s.axes_dims_rope, &cpu());
    let whole = PatchTable::new(image_tokens, 1).expect("a patch");
    let blocks = s.double_blocks + s.single_blocks;
    let layers = vec![vec![None; text_tokens + image_tokens]; blocks];
    let mut known = Known { layers, layer: 0, tokens: Vec::new() };
    let mut x = latents::noise(&batch, s.in_channels / 4, &cpu(), Precision::F32);
    for step in 0..schedule.steps() {
        let time = schedule.timestep(step);
        let moment = |guidance| Moment::new(time, guidance, Precision::F32, TimeDtype::Model);
        let moments: Vec<_> = batch.iter().map(|r| moment(r.guidance_scale.value())).collect();
        let modulations = m.modulator.forward(&moments, encoded.pooled.clone(), &Unwatched);
        let modulations = &modulations.expect("nobody stops it");
        let runs = if step < warmup { &whole } else { patches }.runs();
        for run in runs {
            let has_text = run.start == 0;
            let first = if has_text { 0 } else { text_tokens + run.start };
            known.tokens = (first..text_tokens + run.end).collect();
            known.layer = 0;
            let text = match has_text {
                true => encoded.text.clone(),
                false => from_vec(Vec::new(), [b, 0, s.text_width], &cpu()),
            };
            let part = x.clone().narrow(1, run.start, run.len());
            let rope = &rope.slice(first, known.tokens.len());
            let inputs = Inputs { x: part.clone(), text, modulations, rope };
            let v = m.transformer.forward(inputs, &mut known, &mut Unwatched).expect("nobody stops it");
            let stepped = part + v.mul_scalar(schedule.delta(step));
            x = x.slice_assign([0..b, run.clone(), 0..s.in_channels], stepped);
        }
    }
    to_vec(x)
}

#[test]
fn the_engine_computes_pipefusion() {
    for (size, text, images) in [((80, 48), 7, 2), ((64, 64), 1, 1)] {
        let case = Case { steps: 4, ..Case::new(size, text, images) };
        let tokens = case.work().size.image_tokens();
        for (patches, warmup) in [(2, 0), (3, 1), (4, 2), (7, 1), (7, 0), (tokens, 1), (3, 4)] {
            let table = PatchTable::new(tokens, patches).expect("as many tokens as patches");
            let expected = plain(&case, &table, warmup);
            for (pp, ulysses) in [(1, 1), (3, 1), (2, 2)] {
                let layout = Layout { pp, ulysses, ..Layout::SERIAL };
                let pipeline = Pipeline::Stale;
                let ask = Ask { pipeline, patches: Some(patches), warmup, ..Ask::layout(layout) };
                let latents = run(&case, &case.plan(&ask)).latents;
                let what = format!("{layout}, {patches} patches, warm-up {warmup}, {case:?}");
                assert!(bits(&expected) == bits(&latents), "{what}: {:e}", distance(&expected, &latents));
            }
        }
    }
}

#[test]
fn the_engine_of_one_rank_is_the_plain_loop() {
    for (size, text, images) in [((80, 48), 7, 3), ((16, 16), 1, 1), ((144, 208), 77, 2)] {
        let case = Case { steps: 3, ..Case::new(size, text, images) };
        let one = PatchTable::new(case.work().size.image_tokens(), 1).expect("a patch");
        assert!(bits(&plain(&case, &one, 3)) == bits(&case.serial()), "{case:?}");
    }
}
