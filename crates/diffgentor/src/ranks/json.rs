//! A plan for programs.

use super::{Planned, node, usual_step};
use dg_plan::{Part, Plan};
use serde_json::{Value, json};

/// The plan as one object.
pub(super) fn object(p: &Planned) -> Value {
    let (plan, w) = (&p.plan, &p.plan.work);
    json!({
        "schema": SCHEMA,
        "model": {"id": p.model, "dtype": w.dtype},
        "work": {
            "size": w.size.to_string(), "text_tokens": w.text_tokens, "image_tokens": w.size.image_tokens(),
            "steps": w.steps, "images": w.images, "batch_images": plan.batch_images(), "true_cfg": w.true_cfg,
        },
        "layout": plan.layout.reported(plan.patches.runs().len() as u32, plan.warmup as u32),
        "passes": plan.passes,
        "is_exact": plan.is_exact(),
        "warnings": plan.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "segments": plan.segments.segments(),
        "heads": plan.heads,
        "stages": plan.stages,
        "patches": plan.patches,
        "machine": {"device": p.machine.device.name, "links": p.machine.links.to_string()},
        "predicted": plan.predict(&p.machine),
        "ranks": (0..plan.ranks()).map(|rank| of_rank(p, rank)).collect::<Vec<_>>(),
        "candidates": p.search.as_ref().map(|s| &s.candidates),
        "reason": p.search.as_ref().map(|s| &s.reason),
        "scaling": p.scaling,
    })
}

fn of_rank(p: &Planned, rank: u32) -> Value {
    let plan = &p.plan;
    let at = plan.layout.coords(rank);
    let owner = at.sequence(&plan.layout);
    let memory = plan.memory(rank);
    let images = plan.batch_images();
    json!({
        "rank": rank,
        "coords": at.reported(),
        "node": node(&p.machine, rank),
        "text_tokens": plan.segments.text_of(owner),
        "image_tokens": plan.segments.image_of(owner),
        "heads": plan.heads.of(at.ulysses as usize),
        "blocks": plan.stages.ranges()[at.pp as usize],
        "parts": parts(plan, rank),
        "memory": {
            "transformer": memory.transformer, "encoders": memory.encoders, "decoder": memory.decoder,
            "kv_buffers": memory.kv_buffers, "encoding": memory.encoding, "activations": memory.activations,
            "activations_least": memory.activations_least,
            "total": memory.total(), "least": memory.least(),
        },
        "sent_per_step": plan.sent_in_step(rank, images, usual_step(plan)),
        "sent_per_batch": plan.sent(rank, images),
    })
}

/// What it holds besides blocks.
fn parts(plan: &Plan, rank: u32) -> Vec<Part> {
    let is_block = |part: &Part| {
        matches!(
            part,
            Part::Double(_) | Part::DoubleModulation(_) | Part::Single(_) | Part::SingleModulation(_)
        )
    };
    plan.role(rank).into_iter().filter(|part| !is_block(part)).collect()
}

/// Version of the object; grows when a field changes its meaning.
const SCHEMA: u32 = 1;
