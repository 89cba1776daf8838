//! Layouts that cannot run: why, and what can.

use crate::layout::Layout;
use crate::plan::{Ask, Passes, Pipeline, Plan, Warning, Work};
use crate::search::valid_layouts;
use crate::stages::StageError;
use dg_core::ExitCode;

/// A layout that is refused before anything is read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{cause}: {}", product(.asked, *.num_gpus))]
pub struct Refusal {
    /// What is wrong.
    pub cause: Cause,
    /// What was asked for.
    pub asked: Layout,
    /// Ranks that there are.
    pub num_gpus: u64,
    /// Layouts for that many ranks that can run, the nearest first; at most three.
    pub nearest: Vec<Layout>,
}

/// Why a layout is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Cause {
    /// The product of the degrees is not the number of ranks.
    #[error("the degrees need {need} ranks, num_gpus is {have}")]
    Product {
        /// Product of all degrees.
        need: u64,
        /// Ranks that there are.
        have: u64,
    },
    /// More ranks than can be numbered.
    #[error("the degrees need {need} ranks, more than {RANKS_MAX}")]
    TooMany {
        /// Product of all degrees.
        need: u64,
    },
    /// A degree of 0.
    #[error("a degree is 0")]
    ZeroDegree,
    /// The CFG degree is not 1 or 2.
    #[error("cfg {cfg}: true CFG has two branches")]
    CfgDegree {
        /// As asked.
        cfg: u32,
    },
    /// CFG parallel without a second branch.
    #[error(
        "use_cfg_parallel: there is one branch only, because true CFG is off (guidance_scale is an input of \
         guidance-distilled FLUX, not a second pass)"
    )]
    NoSecondBranch,
    /// A Ulysses member would have no head.
    #[error("ulysses_degree {ulysses} is more than the model's {heads} attention heads")]
    Heads {
        /// As asked.
        ulysses: u32,
        /// Heads of the model.
        heads: usize,
    },
    /// A stage would have no block, or the given stages do not fit.
    #[error(transparent)]
    Stages(StageError),
    /// A patch would have no token.
    #[error("num_pipeline_patch {patches} is more than the picture's {tokens} image tokens")]
    Patches {
        /// As asked, or the number of stages.
        patches: usize,
        /// Image tokens.
        tokens: usize,
    },
    /// The exact pipeline has too little to do.
    #[error(
        "pipeline exact: pictures of a request × branches of a rank = {images} × {branches} = {} streams, fewer than \
         the {stages} stages",
        images * branches
    )]
    Unfilled {
        /// Pictures of a request.
        images: usize,
        /// Branches that one rank computes.
        branches: usize,
        /// Stages.
        stages: usize,
    },
    /// A rank would need more memory than it has.
    #[error("rank {rank} needs {:.2} GiB, {:.2} GiB are there", gib(*need), gib(*have))]
    Memory {
        /// The rank that needs most.
        rank: u32,
        /// Its need in bytes.
        need: u64,
        /// What it may use, in bytes.
        have: u64,
        /// What would need less.
        remedies: Vec<Remedy>,
    },
}

/// Something that would need less memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// What to change.
    pub what: Change,
    /// The largest need of a rank after it, in bytes.
    pub need: u64,
}

/// A change of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This batch size.
    Batch(usize),
    /// This layout: more Ulysses or Ring.
    Sequence(Layout),
    /// This layout: more pipeline stages.
    Pipefusion(Layout),
}

impl Refusal {
    /// How a program that asked for it ends.
    pub fn exit(&self) -> ExitCode {
        ExitCode::Infeasible
    }

    /// What to do instead.
    pub fn hint(&self) -> String {
        let nearest: Vec<String> = self.nearest.iter().map(|l| format!("`{l}`")).collect();
        let layouts = match nearest.is_empty() {
            true => format!("no layout of {} ranks can run", self.num_gpus),
            false => format!("nearest layouts of {} ranks: {}", self.num_gpus, nearest.join(", ")),
        };
        match &self.cause {
            Cause::Product { need, .. } => format!("set num_gpus to {need}, or change degrees; {layouts}"),
            Cause::NoSecondBranch => {
                format!(
                    "set true_cfg_scale above 1 and a negative_prompt, or leave CFG parallel out; {layouts}"
                )
            }
            Cause::Unfilled { stages, .. } => format!(
                "ask for at least {stages} pictures per prompt, or use --pipeline stale, which changes the picture \
                 a little; {layouts}"
            ),
            Cause::TooMany { .. } => "use smaller degrees".into(),
            Cause::Patches { tokens, .. } => format!(
                "use at most {tokens} patches (--num_pipeline_patch; as many as stages if not given); {layouts}"
            ),
            Cause::Memory { remedies, .. } if remedies.is_empty() => "use more ranks".into(),
            Cause::Memory { remedies, .. } => {
                let lines: Vec<String> = remedies.iter().map(ToString::to_string).collect();
                lines.join("; ")
            }
            _ => layouts,
        }
    }
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.what {
            Change::Batch(batch) => write!(f, "batch_size {batch}")?,
            Change::Sequence(layout) => write!(f, "more ulysses or ring: `{layout}`")?,
            Change::Pipefusion(layout) => write!(f, "pipefusion: `{layout}`")?,
        }
        write!(f, " needs {:.2} GiB per rank", gib(self.need))
    }
}

/// All degrees and their product against the number of ranks.
fn product(l: &Layout, num_gpus: u64) -> String {
    format!(
        "ulysses × ring × pipefusion × data × (2 if cfg) = {} × {} × {} × {} × {} = {}, num_gpus = {num_gpus}",
        l.ulysses,
        l.ring,
        l.pp,
        l.dp,
        l.cfg,
        l.ranks()
    )
}

fn refusal(work: &Work, ask: &Ask, cause: Cause) -> Refusal {
    let num_gpus = ask.num_gpus.unwrap_or_else(|| ask.layout.ranks());
    let nearest = nearest(work, &ask.layout, num_gpus);
    Refusal { cause, asked: ask.layout, num_gpus, nearest }
}

/// The three valid layouts of `ranks` ranks that differ least from `asked`, counted in doublings of a degree.
fn nearest(work: &Work, asked: &Layout, ranks: u64) -> Vec<Layout> {
    let doublings = |a: u32, b: u32| (f64::from(a.max(1)).log2() - f64::from(b).log2()).abs();
    let distance = |l: &Layout| {
        doublings(asked.dp, l.dp)
            + doublings(asked.cfg, l.cfg)
            + doublings(asked.pp, l.pp)
            + doublings(asked.ring, l.ring)
            + doublings(asked.ulysses, l.ulysses)
    };
    let mut all = valid_layouts(work, ranks);
    // replicas without a picture are legal, but no advice
    all.retain(|l| l != asked && l.dp as usize <= work.images.max(asked.dp as usize));
    all.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then_with(|| b.ulysses.cmp(&a.ulysses)));
    all.truncate(NEAREST);
    all
}

/// The checks that need no table; gives how passes will go.
pub(crate) fn check_degrees(work: &Work, ask: &Ask) -> Result<Passes, Refusal> {
    let l = ask.layout;
    let refuse = |cause: Cause| Err(refusal(work, ask, cause));
    if l.ranks() == 0 {
        return refuse(Cause::ZeroDegree);
    }
    let have = ask.num_gpus.unwrap_or_else(|| l.ranks());
    if l.ranks() > RANKS_MAX {
        return refuse(Cause::TooMany { need: l.ranks() });
    }
    if have != l.ranks() {
        return refuse(Cause::Product { need: l.ranks(), have });
    }
    if l.cfg > 2 {
        return refuse(Cause::CfgDegree { cfg: l.cfg });
    }
    if l.cfg == 2 && !work.true_cfg {
        return refuse(Cause::NoSecondBranch);
    }
    let heads = work.shape.transformer.heads;
    if l.ulysses as usize > heads {
        return refuse(Cause::Heads { ulysses: l.ulysses, heads });
    }
    let (stages, images) = (l.pp as usize, work.request_images);
    let branches = work.branches() / l.cfg as usize;
    let is_filled = images * branches >= stages;
    match (stages, ask.pipeline) {
        (1, Pipeline::Stale) if ask.patches.is_some_and(|n| n > 1) => Ok(Passes::Patches),
        (1, _) => Ok(Passes::Whole),
        (_, Pipeline::Stale) => Ok(Passes::Patches),
        (_, Pipeline::Exact) if !is_filled => refuse(Cause::Unfilled { images, branches, stages }),
        (_, Pipeline::Auto) if !is_filled => Ok(Passes::Patches),
        _ => Ok(Passes::Streams),
    }
}

pub(crate) fn stages(work: &Work, ask: &Ask, e: StageError) -> Refusal {
    refusal(work, ask, Cause::Stages(e))
}

pub(crate) fn patches(work: &Work, ask: &Ask, patches: usize) -> Refusal {
    refusal(work, ask, Cause::Patches { patches, tokens: work.size.image_tokens() })
}

/// Refuses a plan of which a rank needs more than `have` bytes even if its encoders do not stay, and, if that can be,
/// its other weights neither.
pub(crate) fn check_memory(mut plan: Plan, ask: &Ask, have: u64) -> Result<Plan, Refusal> {
    let (rank, memory) = plan.largest_memory();
    let need = memory.least();
    let streams = ask.streams && plan.work.is_in_place();
    if need > have && streams && memory.streamed_least() <= have {
        plan.warnings.push(Warning::StreamsWeights { rank });
        return Ok(plan);
    }
    if need > have {
        let remedies = remedies(&plan, ask, need);
        return Err(refusal(&plan.work, ask, Cause::Memory { rank, need, have, remedies }));
    }
    if plan.memory(0).total() > have {
        plan.warnings.push(Warning::ReloadsEncoders { rank: 0 });
    }
    Ok(plan)
}

/// What needs less than `need`: a batch of one, and the thriftiest layouts of as many ranks (of twice as many,
/// if this many have none), with and without pipeline stages.
fn remedies(plan: &Plan, ask: &Ask, need: u64) -> Vec<Remedy> {
    let of = |work: &Work, layout: Layout| {
        let ask = Ask { layout, num_gpus: None, ..ask.clone() };
        Plan::unbounded(work, &ask).ok().map(|p| p.largest_memory().1.least()).filter(|n| *n < need)
    };
    let mut found = Vec::new();
    let smaller = plan.layout.dp as usize;
    if plan.work.batch > smaller {
        let work = Work { batch: smaller, ..plan.work.clone() };
        found.extend(of(&work, plan.layout).map(|need| Remedy { what: Change::Batch(smaller), need }));
    }
    for is_pipeline in [false, true] {
        let thrifty = |ranks: u64| {
            let all = valid_layouts(&plan.work, ranks).into_iter().filter(|l| (l.pp > 1) == is_pipeline);
            all.filter(|l| is_pipeline || l.sequence_ranks() > plan.layout.sequence_ranks())
                .filter_map(|l| Some((l, of(&plan.work, l)?)))
                .min_by_key(|(_, need)| *need)
        };
        let ranks = plan.layout.ranks();
        let change = if is_pipeline { Change::Pipefusion } else { Change::Sequence };
        let best = thrifty(ranks).or_else(|| thrifty(2 * ranks));
        found.extend(best.map(|(layout, need)| Remedy { what: change(layout), need }));
    }
    found
}

pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

/// Layouts that are offered instead.
const NEAREST: usize = 3;
/// Ranks that fit their type.
const RANKS_MAX: u64 = u32::MAX as u64;
