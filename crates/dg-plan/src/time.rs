//! How long denoising takes: a model, not a measurement. Encoding, decoding and loading are left out.
//!
//! A block costs a token 12·D² multiplications in its linear layers, double or single, and attention 2·S·D more, so a
//! pass of s tokens is 24·D²·s + 4·s·S·D operations per block. The rank with most tokens and heads sets the pace. What
//! is sent is [`traffic`](crate::traffic); an exchange is fully exposed, a hop of a ring only as far as it outlasts the
//! attention it hides behind, an edge of a pipeline only if the stages run dry. [`Engine`] has the fixed costs.

use crate::layout::Dim;
use crate::machine::{Engine, Machine};
use crate::plan::{Passes, Plan};
use serde::Serialize;

/// Predicted times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Prediction {
    /// A step of one batch once all ranks are busy.
    pub step_s: f64,
    /// Of it, computing on the busiest rank.
    pub compute_s: f64,
    /// Of it, the rest: messages that nothing hides, fixed costs, waiting for stages.
    pub exposed_s: f64,
    /// A synchronous step of PipeFusion; otherwise `step_s`.
    pub warm_step_s: f64,
    /// Denoising of all pictures of the run.
    pub run_s: f64,
}

/// One block in one pass, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct BlockTime {
    compute: f64,
    exposed: f64,
}

impl BlockTime {
    fn total(self) -> f64 {
        self.compute + self.exposed
    }
}

impl Plan {
    /// Predicts the run on `machine`.
    pub fn predict(&self, machine: &Machine) -> Prediction {
        let images = self.work.images.div_ceil(self.layout.dp as usize);
        let batch = self.batch_images();
        let model = Model { plan: self, machine };
        let full = model.batch(batch);
        let rest = match images % batch {
            0 => 0.0,
            rest => model.batch(rest).run_s,
        };
        Prediction { run_s: (images / batch) as f64 * full.run_s + rest, ..full }
    }
}

struct Model<'a> {
    plan: &'a Plan,
    machine: &'a Machine,
}

impl Model<'_> {
    /// One batch of `images` pictures.
    fn batch(&self, images: usize) -> Prediction {
        let steps = self.plan.work.steps as f64;
        let p = match self.plan.passes {
            Passes::Whole => self.whole(images),
            Passes::Streams => self.streams(images),
            Passes::Patches => self.patches(images),
        };
        let floor = self.host();
        let (step, warm) = (p.step_s.max(floor), p.warm_step_s.max(floor));
        let warmup = (self.plan.warmup as f64).min(steps);
        // what the last step takes to leave the pipeline is in `run_s`
        let run_s = p.run_s + warmup * warm + (steps - warmup) * step;
        Prediction { step_s: step, warm_step_s: warm, exposed_s: step - p.compute_s, run_s, ..p }
    }

    fn whole(&self, images: usize) -> Prediction {
        let passes = (self.plan.branches() * self.plan.work.blocks()) as f64;
        let block = self.block(None, images);
        let step_s = passes * block.total() + self.noise(images);
        Prediction { step_s, warm_step_s: step_s, compute_s: passes * block.compute, ..Prediction::default() }
    }

    /// Streams follow one another; a stream's next step begins when its last one is through all stages.
    fn streams(&self, images: usize) -> Prediction {
        let streams = (images * self.plan.branches()) as f64;
        let (block, hop) = (self.block(None, 1), self.hop(None, 1));
        let most = self.plan.stages.most_blocks() as f64;
        let through = self.through(block, hop);
        let step_s = (streams * most * block.total()).max(streams * hop).max(through) + self.noise(1);
        Prediction {
            step_s,
            warm_step_s: step_s,
            compute_s: streams * most * block.compute,
            run_s: through - most * block.total(),
            ..Prediction::default()
        }
    }

    /// Patches follow one another; a patch's next step begins when its last one is through all stages.
    fn patches(&self, images: usize) -> Prediction {
        let branches = self.plan.branches() as f64;
        let count = self.plan.patches.runs().len();
        let most = self.plan.stages.most_blocks() as f64;
        let (first, later) = (self.block(Some(0), images), self.block(Some(count - 1), images));
        let sum = |of: fn(BlockTime) -> f64| of(first) + (count - 1) as f64 * of(later);
        let hop = self.hop(Some(count - 1), images);
        let through = branches * self.through(later, hop);
        let busy = branches * most * sum(BlockTime::total);
        let step_s = busy.max(branches * count as f64 * hop).max(through) + self.noise(images);
        let whole = self.through(self.block(None, images), self.hop(None, images));
        Prediction {
            step_s,
            warm_step_s: branches * whole + self.noise(images),
            compute_s: branches * most * sum(|block| block.compute),
            run_s: through - branches * most * later.total(),
            ..Prediction::default()
        }
    }

    /// One pass through all stages and back to the first.
    fn through(&self, block: BlockTime, hop: f64) -> f64 {
        let edges = if self.plan.layout.pp == 1 { 0.0 } else { f64::from(self.plan.layout.pp) };
        self.plan.work.blocks() as f64 * block.total() + edges * hop
    }

    /// Tokens of a pass.
    fn tokens(&self, patch: Option<usize>) -> usize {
        let text = self.plan.work.text_tokens;
        match patch {
            None => text + self.plan.patches.tokens(),
            Some(p) => {
                let has_text = p == 0 || self.machine.engine.text_with_every_patch;
                self.plan.patches.runs()[p].len() + if has_text { text } else { 0 }
            }
        }
    }

    /// One block of a pass of `images` pictures on the busiest rank.
    fn block(&self, patch: Option<usize>, images: usize) -> BlockTime {
        let (plan, machine) = (self.plan, self.machine);
        let t = &plan.work.shape.transformer;
        let width = t.width() as f64;
        let tokens = self.tokens(patch);
        let own = tokens.div_ceil(plan.layout.sequence_ranks()) as f64 * images as f64;
        let queries = tokens.div_ceil(plan.layout.ring as usize) as f64 * images as f64;
        let channels = (plan.heads.largest() * t.head_dim) as f64;
        let rate = machine.device.flops / machine.engine.slowdown;
        let linear = 24.0 * width * width * own / rate;
        let attention = 4.0 * queries * plan.segments.tokens() as f64 * channels / rate;
        let exposed = self.exchanges(own * width) + self.ring(queries * channels, attention);
        BlockTime { compute: linear + attention, exposed }
    }

    /// The all-to-alls of a block: q, k, v in and the output back of `values` values each.
    fn exchanges(&self, values: f64) -> f64 {
        let Some(crossing) = self.machine.links.crossing(&self.plan.layout, Dim::Ulysses) else { return 0.0 };
        let Engine { exchanges, exchange_s, .. } = self.machine.engine;
        let members = f64::from(self.plan.layout.ulysses);
        let to_each = 4.0 * values * self.value_bytes() / members;
        let outside = to_each * (members - crossing.inside) / crossing.bandwidth(crossing.block);
        let inside = to_each * (crossing.inside - 1.0) / self.machine.links.innermost().bandwidth;
        outside.max(inside) + exchanges * (exchange_s + crossing.kind.latency_s)
    }

    /// The hops of a ring in one block, K and V of `values` values each, as far as `attention` does not hide them.
    fn ring(&self, values: f64, attention: f64) -> f64 {
        let Some(crossing) = self.machine.links.crossing(&self.plan.layout, Dim::Ring) else { return 0.0 };
        let degree = f64::from(self.plan.layout.ring);
        let senders = crossing.block / crossing.inside;
        let bytes = 2.0 * values * self.value_bytes();
        let hop = bytes / crossing.bandwidth(senders) + crossing.kind.latency_s;
        let hidden = if self.machine.engine.ring_overlaps { attention / degree } else { 0.0 };
        (degree - 1.0) * ((hop - hidden).max(0.0) + self.machine.engine.hop_s)
    }

    /// From one stage to the next.
    fn hop(&self, patch: Option<usize>, images: usize) -> f64 {
        let Some(crossing) = self.machine.links.crossing(&self.plan.layout, Dim::Pp) else { return 0.0 };
        let ranks = self.plan.layout.sequence_ranks();
        let own = self.tokens(patch).div_ceil(ranks) * images * self.plan.work.shape.transformer.width();
        let bytes = own as f64 * self.value_bytes();
        bytes / crossing.bandwidth(ranks as f64) + crossing.kind.latency_s
    }

    /// The exchange between branches.
    fn noise(&self, images: usize) -> f64 {
        let Some(crossing) = self.machine.links.crossing(&self.plan.layout, Dim::Cfg) else { return 0.0 };
        let ranks = self.plan.layout.sequence_ranks();
        let tokens = self.plan.patches.tokens().div_ceil(ranks) * images;
        let values = tokens * self.plan.work.shape.transformer.in_channels;
        values as f64 * self.value_bytes() / crossing.bandwidth(ranks as f64) + crossing.kind.latency_s
    }

    /// What a step takes at least.
    fn host(&self) -> f64 {
        let ring = if self.plan.layout.ring > 1 { self.machine.engine.host_ring_s } else { 0.0 };
        let blocks = self.plan.branches() * self.plan.stages.most_blocks() * self.plan.patches.runs().len();
        blocks as f64 * (self.machine.engine.host_block_s + ring)
    }

    fn value_bytes(&self) -> f64 {
        self.plan.work.dtype.bytes() as f64
    }
}
