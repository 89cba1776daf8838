//! What is to be computed, how it is to be laid out, and the plan that follows.

use crate::layout::{Coords, Layout};
use crate::memory::RankMemory;
use crate::parts::Part;
use crate::patches::PatchTable;
use crate::refuse::{self, Refusal};
use crate::segments::{HeadSplit, SegmentTable};
use crate::stages::{Balance, StageTable};
use dg_core::{DType, ImageSize, ModelShape};
use serde::{Deserialize, Serialize};

/// The work of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Sizes of the model.
    pub shape: ModelShape,
    /// Size of the pictures.
    pub size: ImageSize,
    /// T, tokens of the prompt.
    pub text_tokens: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Pictures of the run.
    pub images: usize,
    /// Pictures of one request (`num_images_per_prompt`).
    pub request_images: usize,
    /// Pictures that are computed together, over all replicas.
    pub batch: usize,
    /// Whether true CFG is on: a scale above 1 and a negative prompt.
    pub true_cfg: bool,
    /// Format of activations and messages, and of weights where `weights` does not say otherwise.
    pub dtype: DType,
    /// How weights are held, if that is known.
    pub weights: Option<WeightBytes>,
}

/// Average bytes of a weight of each component as it is held: files may have another format than the arithmetic, and
/// more than one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightBytes {
    /// Of the transformer.
    pub transformer: f64,
    /// Of both text encoders.
    pub encoders: f64,
    /// Of the VAE.
    pub decoder: f64,
    /// Whether the transformer's are bfloat16: a run in bfloat16 makes copies of others.
    pub is_bf16: bool,
}

impl Work {
    /// One picture of `size` in 28 steps with 512 text tokens, bfloat16, without true CFG.
    pub fn one(shape: ModelShape, size: ImageSize) -> Self {
        Self {
            shape,
            size,
            text_tokens: 512,
            steps: 28,
            images: 1,
            request_images: 1,
            batch: 1,
            true_cfg: false,
            dtype: DType::Bfloat16,
            weights: None,
        }
    }

    /// Forward passes that a step needs per picture.
    pub fn branches(&self) -> usize {
        1 + usize::from(self.true_cfg)
    }

    /// Whether the transformer's weights are used as they lie in their files.
    pub(crate) fn is_in_place(&self) -> bool {
        self.dtype == DType::Float32 || self.weights.is_none_or(|weights| weights.is_bf16)
    }

    /// Blocks of the transformer.
    pub fn blocks(&self) -> usize {
        self.shape.transformer.double_blocks + self.shape.transformer.single_blocks
    }
}

/// How a pipeline of stages is kept full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pipeline {
    /// Exact if a request alone fills the stages, else stale.
    #[default]
    Auto,
    /// Independent streams (pictures and CFG branches) follow one another through the stages: the serial picture.
    Exact,
    /// Patches of one picture follow one another, against keys and values of the step before: PipeFusion.
    Stale,
}

/// How forward passes go through the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Passes {
    /// One stage: a pass is the whole batch of one branch.
    Whole,
    /// Exact pipeline: a pass is one picture in one branch.
    Streams,
    /// PipeFusion: while warming up as [`Whole`](Self::Whole), then a pass is one patch of the batch of one branch.
    Patches,
}

/// The layout that is asked for, and what bounds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Degrees.
    pub layout: Layout,
    /// Ranks that there are; absent, as many as the product of the degrees.
    pub num_gpus: Option<u64>,
    /// Patches, M; absent, as many as stages.
    pub patches: Option<usize>,
    /// Synchronous steps before the pipeline goes stale.
    pub warmup: usize,
    /// How stages are kept full.
    pub pipeline: Pipeline,
    /// How blocks are shared out.
    pub balance: Balance,
    /// Bytes that one rank may use; absent, not checked.
    pub memory_bytes: Option<u64>,
    /// Whether weights lie in mapped files, as on the CPU: those that do not fit are read again in each step.
    pub streams: bool,
}

impl Ask {
    /// Asks for `layout` with defaults for the rest.
    pub fn layout(layout: Layout) -> Self {
        Self {
            layout,
            num_gpus: None,
            patches: None,
            warmup: 1,
            pipeline: Pipeline::Auto,
            balance: Balance::Time,
            memory_bytes: None,
            streams: false,
        }
    }
}

/// Something that works but is probably not what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Warning {
    /// More replicas than pictures.
    #[error("data_parallel_degree {dp} is more than the {images} pictures of the run: {} replicas stay idle", dp - images)]
    IdleReplicas {
        /// Replicas.
        dp: usize,
        /// Pictures of the run.
        images: usize,
    },
    /// Fewer patches than stages.
    #[error(
        "num_pipeline_patch {patches} is less than the {stages} pipeline stages: stages wait for one another"
    )]
    FewPatches {
        /// Patches.
        patches: usize,
        /// Stages.
        stages: usize,
    },
    /// Encoders that cannot stay.
    #[error(
        "rank {rank} has no room for the text encoders beside the rest: they are loaded for each batch anew"
    )]
    ReloadsEncoders {
        /// The rank that encodes.
        rank: u32,
    },
    /// Weights that cannot stay.
    #[error("rank {rank} has no room for all of its weights: some are read from the disk in each step")]
    StreamsWeights {
        /// The rank that needs most.
        rank: u32,
    },
    /// Ranks that own no token.
    #[error("the sequence has {tokens} tokens for {owners} ranks that share it: some own none")]
    EmptyShares {
        /// Tokens of the largest pass.
        tokens: usize,
        /// U·R.
        owners: usize,
    },
}

/// A layout that can run, with all its tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The work.
    pub work: Work,
    /// The degrees.
    pub layout: Layout,
    /// How passes go through the ranks.
    pub passes: Passes,
    /// Synchronous steps of PipeFusion; 0 otherwise.
    pub warmup: usize,
    /// Owners of all tokens.
    pub segments: SegmentTable,
    /// Heads of the members of a Ulysses group.
    pub heads: HeadSplit,
    /// Blocks of the stages.
    pub stages: StageTable,
    /// Patches of the image tokens.
    pub patches: PatchTable,
    /// What works but is odd.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Checks a layout and makes its tables.
    ///
    /// # Errors
    /// A [`Refusal`] that names every degree, their product against the number of ranks, and the nearest layouts
    /// that can run. Nothing but shapes is needed to find out.
    pub fn new(work: &Work, ask: &Ask) -> Result<Self, Refusal> {
        let plan = Self::unbounded(work, ask)?;
        match ask.memory_bytes {
            Some(have) => refuse::check_memory(plan, ask, have),
            None => Ok(plan),
        }
    }

    /// [`new`](Self::new) without the memory check.
    pub(crate) fn unbounded(work: &Work, ask: &Ask) -> Result<Self, Refusal> {
        let layout = ask.layout;
        let passes = refuse::check_degrees(work, ask)?;
        let stages = StageTable::new(&work.shape, layout.pp as usize, &ask.balance)
            .map_err(|e| refuse::stages(work, ask, e))?;
        let asked = ask.patches.unwrap_or(layout.pp as usize);
        let patches = if passes == Passes::Patches { asked } else { 1 };
        let patches = PatchTable::new(work.size.image_tokens(), patches)
            .ok_or_else(|| refuse::patches(work, ask, asked))?;
        let segments = SegmentTable::even(work.text_tokens, &patches, layout.sequence_ranks());
        let heads = HeadSplit::new(work.shape.transformer.heads, layout.ulysses as usize);
        let warmup = if passes == Passes::Patches { ask.warmup } else { 0 };
        let work = work.clone();
        let mut plan =
            Self { work, layout, passes, warmup, segments, heads, stages, patches, warnings: Vec::new() };
        plan.warnings = plan.find_warnings();
        Ok(plan)
    }

    fn find_warnings(&self) -> Vec<Warning> {
        let (dp, images) = (self.layout.dp as usize, self.work.images);
        let (patches, stages) = (self.patches.runs().len(), self.layout.pp as usize);
        let owners = self.segments.owners();
        let is_empty = |owner: usize| self.segments.tokens_of(owner) == 0;
        let idle = (dp > images).then_some(Warning::IdleReplicas { dp, images });
        let few = (self.passes == Passes::Patches && patches < stages)
            .then_some(Warning::FewPatches { patches, stages });
        let empty = (0..owners)
            .any(is_empty)
            .then_some(Warning::EmptyShares { tokens: self.segments.tokens(), owners });
        [idle, few, empty].into_iter().flatten().collect()
    }

    /// Number of ranks.
    pub fn ranks(&self) -> u32 {
        u32::try_from(self.layout.ranks()).unwrap_or(u32::MAX)
    }

    /// Branches that a rank computes itself, one pass after the other: 2 when true CFG is on and its branches do
    /// not have ranks of their own.
    pub fn branches(&self) -> usize {
        self.work.branches() / self.layout.cfg as usize
    }

    /// Pictures that a replica has in hand at a time: ⌈batch / dp⌉, no more than it gets at all.
    pub fn batch_images(&self) -> usize {
        let dp = self.layout.dp as usize;
        self.work.batch.div_ceil(dp).min(self.work.images.div_ceil(dp)).max(1)
    }

    /// Whether step `step`, from 0, runs patch by patch.
    pub fn is_stale(&self, step: usize) -> bool {
        self.passes == Passes::Patches && step >= self.warmup
    }

    /// Whether every picture is the one that a serial run makes: exactly, or within rounding under Ring.
    pub fn is_exact(&self) -> bool {
        self.passes != Passes::Patches || self.warmup >= self.work.steps
    }

    /// Whether a job can go on from its latents after `step` steps, from 1, and give the picture that it would have
    /// given otherwise.
    ///
    /// Latents are all that a step of the whole sequence needs. A stale step of PipeFusion also attends to keys and
    /// values of the step before, which are in no checkpoint. A step that warms up makes all of them anew, so the next
    /// one has to be such a step: the last of them is computed again. Final latents are only decoded.
    pub fn resumes_at(&self, step: usize) -> bool {
        (1..=self.work.steps).contains(&step) && (step == self.work.steps || !self.is_stale(step))
    }

    /// The rank that encodes the prompts of `rank`'s replica: its first.
    pub fn encoder_rank(&self, rank: u32) -> u32 {
        self.layout.rank(Coords { dp: self.layout.coords(rank).dp, ..Coords::default() })
    }

    /// The rank that decodes the pictures of `rank`'s replica: the first of the last stage in the first branch,
    /// where the last latents are.
    pub fn decoder_rank(&self, rank: u32) -> u32 {
        let dp = self.layout.coords(rank).dp;
        self.layout.rank(Coords { dp, pp: self.layout.pp - 1, ..Coords::default() })
    }

    /// What `rank` must hold: the blocks of its stage, the embedders if it is the first, the end if it is the last,
    /// and encoders or decoder if it is the one that has them.
    pub fn role(&self, rank: u32) -> Vec<Part> {
        let stage = self.layout.coords(rank).pp as usize;
        let mut parts = self.stages.parts(&self.work.shape, stage);
        if rank == self.encoder_rank(rank) {
            parts.extend([Part::Clip, Part::T5]);
        }
        if rank == self.decoder_rank(rank) {
            parts.push(Part::VaeDecoder);
        }
        parts
    }

    /// The largest need of any rank, [`RankMemory::least`], and a rank that has it. Of each stage the first and the
    /// last rank of one replica are looked at: the others differ from them by a token at most, and have neither
    /// encoders nor decoder.
    pub fn largest_memory(&self) -> (u32, RankMemory) {
        let (ring, ulysses) = (self.layout.ring - 1, self.layout.ulysses - 1);
        let ends =
            |pp: u32| [Coords { pp, ..Coords::default() }, Coords { pp, ring, ulysses, ..Coords::default() }];
        let ranks = (0..self.layout.pp).flat_map(ends).map(|coords| self.layout.rank(coords));
        let needs = ranks.map(|rank| (rank, self.memory(rank)));
        needs.max_by_key(|(rank, need)| (need.least(), std::cmp::Reverse(*rank))).unwrap_or_default()
    }
}
