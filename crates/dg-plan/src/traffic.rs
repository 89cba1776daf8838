//! What is sent, by whom, to whom, in how many bytes and messages.
//!
//! These are the rules that the strategies follow and that the byte counters of a run are compared with. `b` is the
//! size of a value of the run's dtype, `d` the channels of a head, D = heads·d the width, C the channels of a packed
//! latent token; `s(o)` the tokens of owner `o` in a pass and `h(u)` the heads of Ulysses member `u`. A batch of B
//! pictures multiplies every count. Ranks that hold the same coordinates but for one are that dimension's group. The
//! volumes are those of the table in the xDiT paper (arXiv 2411.01738, §4) where shares are even.
//!
//! **Empty messages** are neither sent nor counted: both ends know every length from the tables. Nothing but payload
//! is counted.
//!
//! **Passes.** A *pass* takes a part of the sequence through the blocks of a stage. Without a pipeline a step has one
//! pass per branch (the positive one first), of the whole sequence and the whole batch. In the exact pipeline a step
//! has one pass per picture and branch, of the whole sequence. In PipeFusion, a warm-up step is like one without a
//! pipeline, through one stage after the other; a stale step has one pass per patch and branch, patches outside,
//! and the pass of patch 0 takes all the text along, so the text stream is computed once per step and its K and V
//! of that step serve the later patches in each layer.
//!
//! # Ulysses: `ulysses_qkv`, `ulysses_out`
//! Two uneven all-to-alls per block and pass within the Ulysses group. After q and k are normed and rotated, member
//! `u` sends each other member `u'` the heads of `u'` for its own tokens, q, k and v in one message: 3·s(u)·h(u')·d·b.
//! Each then has all tokens of the group in canonical order (text, then image, ascending), for its own heads. After
//! attention `u` sends each `u'` the output for the tokens of `u'`: s(u')·h(u)·d·b. (DeepSpeed-Ulysses, arXiv
//! 2309.14509, with q, k, v in one exchange.)
//!
//! # Ring: `ring_kv`
//! After the Ulysses exchange place `r` of the ring holds the K and V of block `r`: the tokens of its whole Ulysses
//! group, for its own heads. In hop h = 0 … R−2 it sends the block that was first at place r−h to place r+1 and to
//! nobody else, K and V in one message: 2·Σs·h(u)·d·b over the owners of that block. R−1 messages per block of the
//! transformer and pass. (Ring Attention, arXiv 2310.01889.) Inside PipeFusion each place keeps the K and V buffer
//! of the *whole* image for its heads, and in a stale step only the K and V of the pass's own tokens (with
//! patch 0, those of the text too) go round. That is exact: what is not sent is bit for bit the same in every
//! place's buffer. So a stale step sends the bytes of a synchronous one, in M times as many messages.
//!
//! # Pipeline: `pipe_hidden`, `pipe_text`, `pipe_latents`
//! Each edge of the pipeline joins ranks that differ in the stage only, so a rank sends its own share: after each pass
//! stage `s` sends stage s+1 its image tokens, s·D·b, as `pipe_hidden`, and if the pass has text, in a message of its
//! own, its text tokens as `pipe_text`. The last stage runs the scheduler and holds x; after a step it sends stage
//! 0 the new latents of its image tokens, s·C·b, as `pipe_latents`: one message per patch when stale, one per
//! picture in the exact pipeline, one in all otherwise, and none after the last step. Stage 0 draws the first noise
//! itself. (PipeFusion, arXiv 2405.14430, without recomputing text for every patch.)
//!
//! # CFG: `cfg_noise`
//! With a degree of 2, the two ranks of the last stage that hold the same tokens send each other their noise
//! prediction, s·C·b, every step, in as many messages as `pipe_latents` has; both then combine n + s·(p − n) and step
//! the scheduler alike.
//!
//! # Before and after: `embeds`, `gather`
//! Once per batch the first rank of a replica encodes the prompts and sends every other rank of the replica one
//! message: for each picture and each branch that the rank computes, the pooled CLIP vector, and to ranks of the first
//! stage the T5 rows of the text tokens they own. After the last step, the ranks of the last stage in branch 0 send
//! the final latents of their image tokens, s·C·b, to the one that decodes: one message, in the exact pipeline
//! one per picture.
//!
//! # Going on
//! A job that goes on from a checkpoint sends nothing of the steps that are done, and the rest as ever; the checkpoint
//! is with every rank already. If all steps are done, nobody needs the prompts: `gather` alone is sent.
//!
//! # Data parallel
//! Replicas send one another nothing.

use crate::layout::{Coords, Dim};
use crate::plan::{Passes, Plan};
use dg_core::report::Sent;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A class of messages, as the report names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// q, k and v on their way to the ranks that have their heads.
    UlyssesQkv,
    /// Attention output on its way back to the ranks that have its tokens.
    UlyssesOut,
    /// K and V going round.
    RingKv,
    /// Image tokens between stages.
    PipeHidden,
    /// Text tokens between stages.
    PipeText,
    /// New latents from the last stage to the first.
    PipeLatents,
    /// Noise predictions between branches.
    CfgNoise,
    /// Final latents to the rank that decodes.
    Gather,
    /// Prompt embeddings to the ranks that need them.
    Embeds,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 9] = [
        Self::UlyssesQkv,
        Self::UlyssesOut,
        Self::RingKv,
        Self::PipeHidden,
        Self::PipeText,
        Self::PipeLatents,
        Self::CfgNoise,
        Self::Gather,
        Self::Embeds,
    ];

    /// Name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::UlyssesQkv => "ulysses_qkv",
            Self::UlyssesOut => "ulysses_out",
            Self::RingKv => "ring_kv",
            Self::PipeHidden => "pipe_hidden",
            Self::PipeText => "pipe_text",
            Self::PipeLatents => "pipe_latents",
            Self::CfgNoise => "cfg_noise",
            Self::Gather => "gather",
            Self::Embeds => "embeds",
        }
    }
}

/// What one rank sends, by class. A class without a message is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic(pub BTreeMap<Class, Sent>);

impl Traffic {
    /// Bytes of a class.
    pub fn bytes(&self, class: Class) -> u64 {
        self.0.get(&class).map_or(0, |sent| sent.bytes)
    }

    /// Messages of a class.
    pub fn messages(&self, class: Class) -> u64 {
        self.0.get(&class).map_or(0, |sent| sent.messages)
    }

    /// Bytes of all classes.
    pub fn total(&self) -> u64 {
        self.0.values().map(|sent| sent.bytes).sum()
    }

    /// Adds what `other` has, `times` times.
    pub fn add(&mut self, other: &Self, times: u64) {
        if times == 0 {
            return;
        }
        for (class, theirs) in &other.0 {
            let ours = self.0.entry(*class).or_default();
            ours.bytes += theirs.bytes * times;
            ours.messages += theirs.messages * times;
            for (peer, bytes) in &theirs.to {
                *ours.to.entry(*peer).or_default() += bytes * times;
            }
        }
    }

    /// Bytes by name of the class, as the report has them in `predicted`.
    pub fn predicted(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(class, sent)| (class.name().to_string(), sent.bytes)).collect()
    }

    fn send(&mut self, class: Class, to: u32, bytes: u64, times: u64) {
        if bytes * times == 0 {
            return;
        }
        let sent = self.0.entry(class).or_default();
        sent.bytes += bytes * times;
        sent.messages += times;
        *sent.to.entry(to).or_default() += bytes * times;
    }
}

/// Equal passes of a step.
struct Pass {
    /// The patch, or the whole sequence.
    patch: Option<usize>,
    /// Pictures of one pass.
    images: u64,
    /// How many such passes.
    times: u64,
}

/// One rank as a sender.
struct Sender<'a> {
    plan: &'a Plan,
    rank: u32,
    at: Coords,
    owner: usize,
}

impl Plan {
    /// What `rank` sends for a batch of `images` pictures of its replica, from prompts to latents.
    pub fn sent(&self, rank: u32, images: usize) -> Traffic {
        self.sent_from(rank, images, 0)
    }

    /// The same for a job that goes on after `step` steps.
    pub fn sent_from(&self, rank: u32, images: usize, step: usize) -> Traffic {
        let steps = self.work.steps;
        let warm = if self.passes == Passes::Patches { self.warmup.min(steps) } else { steps };
        let (warm, stale) = (warm.saturating_sub(step), steps.saturating_sub(step.max(warm)));
        // the last step differs from its like
        let (last_is_warm, warm, stale) = match stale {
            0 => (true, warm.saturating_sub(1), 0),
            stale => (false, warm, stale - 1),
        };
        let mut sum = Traffic::default();
        // who only decodes needs no prompt
        sum.add(&self.sent_before(rank, images), u64::from(step == 0 || step < steps));
        sum.add(&self.sent_in(rank, images, false, false), warm as u64);
        sum.add(&self.sent_in(rank, images, true, false), stale as u64);
        sum.add(&self.sent_in(rank, images, !last_is_warm, true), u64::from(step < steps));
        sum.add(&self.sent_after(rank, images), 1);
        sum
    }

    /// What `rank` sends in step `step`, from 0.
    pub fn sent_in_step(&self, rank: u32, images: usize, step: usize) -> Traffic {
        self.sent_in(rank, images, self.is_stale(step), step + 1 == self.work.steps)
    }

    /// What `rank` sends before the first step: embeddings.
    pub fn sent_before(&self, rank: u32, images: usize) -> Traffic {
        let mut traffic = Traffic::default();
        if rank != self.encoder_rank(rank) {
            return traffic;
        }
        let t = &self.work.shape.transformer;
        let dp = self.layout.coords(rank).dp;
        let ranks = u32::try_from(self.layout.replica_ranks()).unwrap_or(u32::MAX);
        for to in (0..ranks).map(|r| dp * ranks + r).filter(|r| *r != rank) {
            let coords = self.layout.coords(to);
            let rows = if coords.pp == 0 { self.segments.text_of(coords.sequence(&self.layout)) } else { 0 };
            let values = t.pooled_width + rows * t.text_width;
            traffic.send(Class::Embeds, to, self.bytes(values * images * self.branches()), 1);
        }
        traffic
    }

    /// What `rank` sends after the last step: final latents.
    pub fn sent_after(&self, rank: u32, images: usize) -> Traffic {
        let mut traffic = Traffic::default();
        let sender = Sender::new(self, rank);
        let decoder = self.decoder_rank(rank);
        if sender.is_last_stage() && sender.at.cfg == 0 && rank != decoder {
            let values = self.segments.image_of(sender.owner) * self.work.shape.transformer.in_channels;
            sender.latents(&mut traffic, Class::Gather, decoder, values, images as u64);
        }
        traffic
    }

    fn sent_in(&self, rank: u32, images: usize, stale: bool, last_step: bool) -> Traffic {
        let mut traffic = Traffic::default();
        let sender = Sender::new(self, rank);
        for pass in self.passes_of_step(images as u64, stale) {
            sender.ulysses(&mut traffic, &pass);
            sender.ring(&mut traffic, &pass);
            sender.hidden(&mut traffic, &pass);
        }
        if sender.is_last_stage() {
            sender.ends_of_step(&mut traffic, images as u64, stale, last_step);
        }
        traffic
    }

    fn passes_of_step(&self, images: u64, stale: bool) -> Vec<Pass> {
        let branches = self.branches() as u64;
        match (self.passes, stale) {
            (Passes::Patches, true) => {
                let patches = 0..self.patches.runs().len();
                patches.map(|p| Pass { patch: Some(p), images, times: branches }).collect()
            }
            (Passes::Streams, _) => vec![Pass { patch: None, images: 1, times: images * branches }],
            _ => vec![Pass { patch: None, images, times: branches }],
        }
    }

    fn bytes(&self, values: usize) -> u64 {
        values as u64 * self.work.dtype.bytes()
    }
}

impl<'a> Sender<'a> {
    fn new(plan: &'a Plan, rank: u32) -> Self {
        let at = plan.layout.coords(rank);
        Self { plan, rank, at, owner: at.sequence(&plan.layout) }
    }

    fn is_last_stage(&self) -> bool {
        self.at.pp + 1 == self.plan.layout.pp
    }

    /// Blocks of the transformer that this rank computes.
    fn blocks(&self) -> u64 {
        self.plan.stages.ranges()[self.at.pp as usize].len() as u64
    }

    fn peer(&self, dim: Dim, place: u32) -> u32 {
        self.plan.layout.rank(self.at.with(dim, place))
    }

    fn tokens(&self, owner: usize, pass: &Pass) -> usize {
        match pass.patch {
            Some(patch) => self.plan.segments.tokens_in(owner, patch),
            None => self.plan.segments.tokens_of(owner),
        }
    }

    /// Values that the heads of member `ulysses` have per token.
    fn channels(&self, ulysses: u32) -> usize {
        self.plan.heads.of(ulysses as usize).len() * self.plan.work.shape.transformer.head_dim
    }

    fn ulysses(&self, traffic: &mut Traffic, pass: &Pass) {
        let members = (0..self.plan.layout.ulysses).filter(|place| *place != self.at.ulysses);
        let times = pass.times * self.blocks();
        for place in members {
            let to = self.peer(Dim::Ulysses, place);
            let theirs = self.at.with(Dim::Ulysses, place).sequence(&self.plan.layout);
            let qkv = 3 * self.tokens(self.owner, pass) * self.channels(place);
            let out = self.tokens(theirs, pass) * self.channels(self.at.ulysses);
            traffic.send(Class::UlyssesQkv, to, pass.images * self.plan.bytes(qkv), times);
            traffic.send(Class::UlyssesOut, to, pass.images * self.plan.bytes(out), times);
        }
    }

    fn ring(&self, traffic: &mut Traffic, pass: &Pass) {
        let (degree, members) = (self.plan.layout.ring, self.plan.layout.ulysses as usize);
        let next = self.peer(Dim::Ring, (self.at.ring + 1) % degree);
        for hop in 0..degree - 1 {
            let origin = ((self.at.ring + degree - hop) % degree) as usize;
            let owners = origin * members..(origin + 1) * members;
            let tokens: usize = owners.map(|owner| self.tokens(owner, pass)).sum();
            let block = 2 * tokens * self.channels(self.at.ulysses);
            let times = pass.times * self.blocks();
            traffic.send(Class::RingKv, next, pass.images * self.plan.bytes(block), times);
        }
    }

    fn hidden(&self, traffic: &mut Traffic, pass: &Pass) {
        if self.is_last_stage() {
            return;
        }
        let segments = &self.plan.segments;
        let (text, image) = match pass.patch {
            Some(0) => (segments.text_of(self.owner), segments.image_in(self.owner, 0)),
            Some(patch) => (0, segments.image_in(self.owner, patch)),
            None => (segments.text_of(self.owner), segments.image_of(self.owner)),
        };
        let next = self.peer(Dim::Pp, self.at.pp + 1);
        let width = self.plan.work.shape.transformer.width();
        for (class, tokens) in [(Class::PipeHidden, image), (Class::PipeText, text)] {
            traffic.send(class, next, pass.images * self.plan.bytes(tokens * width), pass.times);
        }
    }

    /// Noise predictions to the other branch and new latents to the first stage.
    fn ends_of_step(&self, traffic: &mut Traffic, images: u64, stale: bool, last_step: bool) {
        let channels = self.plan.work.shape.transformer.in_channels;
        let segments = &self.plan.segments;
        let shares: Vec<usize> = match stale {
            true => (0..segments.patches()).map(|p| segments.image_in(self.owner, p)).collect(),
            false => vec![segments.image_of(self.owner)],
        };
        for tokens in shares {
            if self.plan.layout.cfg == 2 {
                let other = self.peer(Dim::Cfg, 1 - self.at.cfg);
                self.latents(traffic, Class::CfgNoise, other, tokens * channels, images);
            }
            if self.plan.layout.pp > 1 && !last_step {
                let first = self.peer(Dim::Pp, 0);
                self.latents(traffic, Class::PipeLatents, first, tokens * channels, images);
            }
        }
    }

    /// Something of the latents' shape: picture by picture in the exact pipeline, else the batch at once.
    fn latents(&self, traffic: &mut Traffic, class: Class, to: u32, values: usize, images: u64) {
        debug_assert_ne!(to, self.rank);
        let bytes = self.plan.bytes(values);
        match self.plan.passes {
            Passes::Streams => traffic.send(class, to, bytes, images),
            _ => traffic.send(class, to, bytes * images, 1),
        }
    }
}
