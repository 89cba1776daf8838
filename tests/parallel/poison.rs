//! A rank reads the weights of its role and the rows of its tokens, and nothing else: all the rest may be NaN, or not
//! there at all.

use crate::engine::{Case, Setup, blocks, run_jobs};
use crate::model::{Job, Whole, shape, weights};
use crate::ranks::{bits, distance, plan as sequence_plan, run_each, tables};
use burn::tensor::Tensor;
use dg_core::shape::{ModelShape, TransformerShape};
use dg_core::{ImageSize, TimeDtype};
use dg_flux::parallel::Denoiser;
use dg_flux::rope::Rope;
use dg_flux::weights::WeightFiles;
use dg_flux::{ModelError, ModelSource, cpu};
use dg_kernels::{Precision, from_vec, to_vec};
use dg_plan::{Ask, Balance, Kind, Layout, Part, Pipeline, Plan, SegmentTable, StageTable, Work, known};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What happens to a tensor in a rank's copy of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Poisoned,
    Removed,
}

/// Whether the tensor `name` belongs to `part`.
fn is_of(part: Part, name: &str) -> bool {
    let is_modulation =
        |at: &str| ["norm1.linear.", "norm1_context.linear."].iter().any(|n| at.starts_with(n));
    let double = |i: usize| name.strip_prefix(&format!("transformer_blocks.{i}."));
    let single = |i: usize| name.strip_prefix(&format!("single_transformer_blocks.{i}."));
    match part {
        Part::TimeTextEmbed => name.starts_with("time_text_embed."),
        Part::XEmbedder => name.starts_with("x_embedder."),
        Part::ContextEmbedder => name.starts_with("context_embedder."),
        Part::DoubleModulation(i) => double(i).is_some_and(is_modulation),
        Part::Double(i) => double(i).is_some_and(|at| !is_modulation(at)),
        Part::SingleModulation(i) => single(i).is_some_and(|at| at.starts_with("norm.linear.")),
        Part::Single(i) => single(i).is_some_and(|at| !at.starts_with("norm.linear.")),
        Part::NormOut => name.starts_with("norm_out."),
        Part::ProjOut => name.starts_with("proj_out."),
        Part::Clip | Part::T5 | Part::VaeDecoder => false,
    }
}

fn is_of_role(role: &[Part], name: &str) -> bool {
    role.iter().any(|part| is_of(*part, name))
}

/// A weight file in a folder of its own.
struct File(tempfile::TempDir);

impl File {
    fn new(shape: &TransformerShape, fate: impl Fn(&str) -> Fate) -> Self {
        let mut bytes = weights(shape);
        let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a file of ours");
        for (name, info) in metadata.tensors() {
            if fate(&name) == Fate::Poisoned {
                let (from, to) = info.data_offsets;
                for value in bytes[header + 8 + from..header + 8 + to].chunks_exact_mut(4) {
                    value.copy_from_slice(&f32::NAN.to_le_bytes());
                }
            }
        }
        let all = SafeTensors::deserialize(&bytes).expect("a file of ours").tensors();
        let left: Vec<(String, TensorView<'_>)> =
            all.into_iter().filter(|(name, _)| fate(name) != Fate::Removed).collect();
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("transformer")).expect("room for a folder");
        let bytes = serialize(left, None).expect("names are unique");
        std::fs::write(folder.path().join("transformer/model.safetensors"), bytes).expect("room for a file");
        Self(folder)
    }

    fn open(&self) -> WeightFiles {
        let source = ModelSource::Folder(self.0.path().into());
        WeightFiles::open(&source, "transformer", "model").expect("a file that is there")
    }

    fn load(&self, blocks: Range<usize>) -> Result<Denoiser, ModelError> {
        let files = self.open();
        Denoiser::load(&files.loader(&cpu(), Precision::F32), &shape(), blocks, TimeDtype::Model)
    }
}

fn case() -> Case {
    Case { true_cfg: true, ..Case::new((80, 48), 7, 2) }
}

fn plan(layout: Layout, balance: Balance, pipeline: Pipeline) -> Plan {
    case().plan(&Ask { pipeline, balance, warmup: 1, ..Ask::layout(layout) })
}

/// Denoisers by blocks, and whether their weights are changed.
type Known = HashMap<(Range<usize>, bool), Arc<Denoiser>>;

/// Every rank's latents where the weights of `rank`, or of all, are as `fate` says of the tensors of its role (true)
/// and of the others.
fn latents(plan: &Plan, rank: Option<u32>, fate: &(dyn Fn(&str, bool) -> Fate + Sync)) -> Vec<f32> {
    // ranks of a stage have the same role in the transformer
    let known: Mutex<Known> = Mutex::default();
    let load = |plan: &Plan, r: u32| {
        let (blocks, is_changed) = (blocks(plan, r), rank.is_none_or(|rank| rank == r));
        let role = plan.role(r);
        let mut known = known.lock().expect("nobody panics with it");
        let new = || {
            let fate = |name: &str| match is_changed {
                true => fate(name, is_of_role(&role, name)),
                false => Fate::Kept,
            };
            let denoiser = File::new(&shape(), fate).load(blocks.clone());
            Arc::new(denoiser.expect("all that the role needs"))
        };
        known.entry((blocks.clone(), is_changed)).or_insert_with(new).clone()
    };
    run_jobs(&[(case(), plan.clone())], Setup { weights: Some(&load), ..Setup::default() }).latents
}

#[test]
fn weights_of_other_roles_are_not_read() {
    let layouts = [
        (Layout { pp: 2, ..Layout::SERIAL }, Balance::Time, Pipeline::Exact),
        (Layout { pp: 2, ..Layout::SERIAL }, Balance::Memory, Pipeline::Stale),
        (Layout { pp: 3, ..Layout::SERIAL }, Balance::Time, Pipeline::Stale),
        (Layout { pp: 3, ..Layout::SERIAL }, Balance::Memory, Pipeline::Exact),
        (Layout { cfg: 2, ..Layout::SERIAL }, Balance::Time, Pipeline::Auto),
        (Layout { cfg: 2, pp: 2, ..Layout::SERIAL }, Balance::Memory, Pipeline::Exact),
        (Layout { pp: 2, ulysses: 2, ..Layout::SERIAL }, Balance::Time, Pipeline::Stale),
        (Layout { pp: 2, ulysses: 2, ..Layout::SERIAL }, Balance::Given(vec![2, 7]), Pipeline::Exact),
    ];
    for (layout, balance, pipeline) in layouts {
        let plan = plan(layout, balance, pipeline);
        let clean = latents(&plan, None, &|_, _| Fate::Kept);
        for other in [Fate::Poisoned, Fate::Removed] {
            let some = latents(&plan, None, &|_, is_own| if is_own { Fate::Kept } else { other });
            assert!(bits(&clean) == bits(&some), "{layout} {pipeline:?} {other:?}");
        }
        assert!(
            plan.passes == dg_plan::Passes::Patches || bits(&clean) == bits(&case().serial()),
            "{layout}"
        );
    }
}

/// One tensor of each part of each role, so that the test above could fail.
#[test]
fn weights_of_a_role_are_read() {
    let plan = plan(Layout { pp: 2, ..Layout::SERIAL }, Balance::Time, Pipeline::Exact);
    let clean = latents(&plan, None, &|_, _| Fate::Kept);
    for rank in 0..plan.ranks() {
        for part in plan.role(rank).into_iter().filter(|part| part.is_transformer()) {
            let first = Mutex::new(None);
            let poison = |name: &str, _: bool| {
                let mut first = first.lock().expect("nobody panics with it");
                let is_it = is_of(part, name) && *first.get_or_insert_with(|| name.to_owned()) == name;
                if is_it { Fate::Poisoned } else { Fate::Kept }
            };
            let dirty = latents(&plan, Some(rank), &poison);
            assert!(bits(&clean) != bits(&dirty), "rank {rank} does not read {part:?}");
            let file = File::new(&shape(), |n| if is_of(part, n) { Fate::Removed } else { Fate::Kept });
            assert!(file.load(blocks(&plan, rank)).is_err(), "rank {rank} loads without {part:?}");
        }
    }
}

#[test]
fn tokens_of_other_ranks_are_not_read() {
    let job = Job::new((80, 48), 7, 2);
    let whole = job.whole();
    let serial = job.serial(&whole);
    for (ring, ulysses) in [(1, 2), (1, 5), (3, 1), (2, 2), (2, 4)] {
        let tables = tables(&sequence_plan(&job, ring, ulysses));
        let own = |owner: usize| poisoned(&job, &tables.segments, owner);
        let wholes: Vec<Whole> = (0..tables.segments.owners()).map(own).collect();
        let far = distance(&serial, &run_each(&job, &|rank| &wholes[rank], &tables, None).latents);
        assert!(far <= if ring > 1 { 1e-5 } else { 0.0 }, "{ring} {ulysses}: {far:e}");
        // a row too many: another rank's share
        let strange = |rank: usize| &wholes[if rank == 0 { 1 } else { rank }];
        let ran = std::panic::catch_unwind(|| run_each(&job, &strange, &tables, None).latents);
        assert!(ran.is_err() || ran.is_ok_and(|l| l.iter().any(|x| x.is_nan())), "{ring} {ulysses}");
    }
}

/// A job's inputs with NaN in the rows that are not `owner`'s.
fn poisoned(job: &Job, table: &SegmentTable, owner: usize) -> Whole {
    let whole = job.whole();
    let rows = |kind: Kind| -> BTreeSet<usize> {
        table.of(owner).filter(|s| s.kind == kind).flat_map(|s| s.tokens.clone()).collect()
    };
    let (text, image) = (rows(Kind::Text), rows(Kind::Image));
    let joint: BTreeSet<_> = text.iter().copied().chain(image.iter().map(|i| i + job.text)).collect();
    let Rope { cos, sin } = whole.rope;
    let rope = Rope {
        cos: without(cos.unsqueeze_dim(0), &joint).squeeze_dim(0),
        sin: without(sin.unsqueeze_dim(0), &joint).squeeze_dim(0),
    };
    Whole { x: without(whole.x, &image), text: without(whole.text, &text), rope, ..whole }
}

/// `t` `[b, n, c]` with NaN in all rows but `rows`.
fn without(t: Tensor<3>, rows: &BTreeSet<usize>) -> Tensor<3> {
    let dims @ [_, n, c] = t.dims();
    let keep = |(i, x)| if rows.contains(&(i / c % n)) { x } else { f32::NAN };
    from_vec(to_vec(t).into_iter().enumerate().map(keep).collect(), dims, &cpu())
}

/// Bytes that every stage of a model of `transformer` takes from its file, checked against the plan's roles.
fn used_bytes(transformer: TransformerShape, pp: u32, balance: Balance) -> Vec<u64> {
    let mut model = known::flux_dev();
    model.transformer = transformer.clone();
    let (size, _) = ImageSize::fit(64, 64).expect("a size");
    let work = Work::one(model.clone(), size);
    let ask = Ask { balance, pipeline: Pipeline::Stale, ..Ask::layout(Layout { pp, ..Layout::SERIAL }) };
    let plan = Plan::new(&work, &ask).expect("as many blocks as stages");
    let file = File::new(&transformer, |_| Fate::Kept);
    let one = |rank: u32| {
        let files = file.open();
        let loader = files.loader(&cpu(), Precision::F32);
        Denoiser::load(&loader, &transformer, blocks(&plan, rank), TimeDtype::Model).expect("all weights");
        let role = plan.role(rank);
        let parameters = role.iter().filter(|p| p.is_transformer()).map(|p| p.parameters(&model));
        assert_eq!(loader.used_bytes(), 4 * parameters.sum::<u64>(), "stage {rank} of {pp}");
        let unused: Vec<String> = loader.unused(&[]).into_iter().filter(|n| is_of_role(&role, n)).collect();
        assert_eq!(unused, Vec::<String>::new(), "stage {rank} of {pp}");
        loader.used_bytes()
    };
    (0..plan.ranks()).map(one).collect()
}

#[test]
fn a_rank_takes_the_bytes_of_its_role() {
    for pp in 1..=9 {
        for balance in [Balance::Time, Balance::Memory] {
            used_bytes(shape(), pp, balance);
        }
    }
}

#[test]
fn four_stages_of_six_blocks_share_the_weights() {
    let small = TransformerShape { double_blocks: 2, single_blocks: 4, ..shape() };
    let mut model = known::flux_dev();
    model.transformer = small.clone();
    let is_block =
        |part: &Part| !matches!(part, Part::TimeTextEmbed | Part::XEmbedder | Part::ContextEmbedder);
    let is_block = |part: &Part| is_block(part) && !matches!(part, Part::NormOut | Part::ProjOut);
    let table = StageTable::new(&model, 4, &Balance::Memory).expect("6 blocks");
    let all: Vec<Part> = (0..4).flat_map(|stage| table.parts(&model, stage)).collect();
    let bytes = |parts: &[Part], is_block: &dyn Fn(&Part) -> bool| -> u64 {
        parts.iter().filter(|p| is_block(p)).map(|p| 4 * p.parameters(&model)).sum()
    };
    for (stage, used) in used_bytes(small, 4, Balance::Memory).into_iter().enumerate() {
        let own = table.parts(&model, stage);
        let ends = bytes(&own, &|part| !is_block(part));
        let blocks = bytes(&all, &is_block);
        let share = (used - ends) as f64 / blocks as f64;
        println!("stage {stage}: {used} bytes, {share:.4} of all blocks");
        assert!(share <= 1.15 / 4.0, "stage {stage} maps {share} of the blocks");
    }
}

#[test]
fn no_cut_is_much_lighter() {
    let of = |double_blocks, single_blocks| {
        let transformer = TransformerShape { double_blocks, single_blocks, ..shape() };
        ModelShape { transformer, ..known::flux_dev() }
    };
    let tiny = [of(3, 6), of(2, 4), of(5, 1), of(1, 8)];
    for (shape, pp_max) in tiny.into_iter().map(|s| (s, 6)).chain([(known::flux_dev(), 4)]) {
        for pp in 1..=pp_max {
            let table = StageTable::new(&shape, pp, &Balance::Memory).expect("as many blocks as stages");
            let ours = heaviest(&table, &shape);
            let blocks = shape.transformer.double_blocks + shape.transformer.single_blocks;
            let best = cuts(blocks, pp)
                .into_iter()
                .map(|counts| StageTable::new(&shape, pp, &Balance::Given(counts)).expect("a cut"))
                .map(|table| heaviest(&table, &shape))
                .min()
                .expect("a cut");
            assert!(ours as f64 <= 1.05 * best as f64, "{pp} stages: {ours}, {best} would do");
        }
    }
}

fn heaviest(table: &StageTable, shape: &ModelShape) -> u64 {
    (0..table.stages()).map(|stage| table.parameters(shape, stage)).max().unwrap_or(0)
}

/// All ways to cut `blocks` blocks into `stages` runs.
fn cuts(blocks: usize, stages: usize) -> Vec<Vec<usize>> {
    if stages == 1 {
        return vec![vec![blocks]];
    }
    let first = 1..=blocks - (stages - 1);
    let rest = |n: usize| {
        let with = move |mut rest: Vec<usize>| {
            rest.insert(0, n);
            rest
        };
        cuts(blocks - n, stages - 1).into_iter().map(with)
    };
    first.flat_map(rest).collect()
}
