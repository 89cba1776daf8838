//! Layouts that cannot run.

use crate::support::{dev, layout};
use dg_core::{ExitCode, ImageSize};
use dg_plan::{Ask, Cause, Change, Layout, Pipeline, Plan, Refusal, Warning, WeightBytes, Work};

fn refused(work: &Work, ask: &Ask) -> Refusal {
    let refusal = Plan::new(work, ask).unwrap_err();
    assert_eq!(refusal.exit(), ExitCode::Infeasible);
    let l = refusal.asked;
    let named = format!(
        "ulysses × ring × pipefusion × data × (2 if cfg) = {} × {} × {} × {} × {} = {}, num_gpus = {}",
        l.ulysses,
        l.ring,
        l.pp,
        l.dp,
        l.cfg,
        l.ranks(),
        refusal.num_gpus
    );
    assert!(refusal.to_string().contains(&named), "{refusal}");
    // what is offered can run
    assert!(!refusal.nearest.contains(&l), "{refusal:?}");
    for layout in &refusal.nearest {
        let ask = Ask { num_gpus: Some(refusal.num_gpus), ..Ask::layout(*layout) };
        Plan::new(work, &ask).unwrap();
    }
    refusal
}

fn ask(degrees: [u32; 5]) -> Ask {
    Ask::layout(layout(degrees))
}

#[test]
fn a_wrong_product_names_both_numbers_and_offers_layouts() {
    let refusal = refused(&dev(1024), &Ask { num_gpus: Some(4), ..ask([1, 1, 1, 1, 3]) });
    assert_eq!(refusal.cause, Cause::Product { need: 3, have: 4 });
    assert_eq!(refusal.nearest[0], layout([1, 1, 1, 1, 4]));
    assert!(refusal.hint().contains("set num_gpus to 3"), "{refusal:?}");
    // the published formula forgets the pipeline
    let refusal = refused(&dev(1024), &Ask { num_gpus: Some(2), ..ask([1, 1, 2, 1, 2]) });
    assert_eq!(refusal.cause, Cause::Product { need: 4, have: 2 });
}

#[test]
fn degrees_beyond_the_model_are_refused() {
    let work = dev(1024);
    assert_eq!(refused(&work, &ask([1, 1, 1, 1, 25])).cause, Cause::Heads { ulysses: 25, heads: 24 });
    let text = refused(&work, &ask([1, 1, 58, 1, 1])).to_string();
    assert!(text.contains("58 pipeline stages need at least 58 blocks, the model has 57"), "{text}");
    assert!(matches!(refused(&work, &ask([1, 3, 1, 1, 1])).cause, Cause::CfgDegree { cfg: 3 }));
    let zero = refused(&work, &ask([1, 1, 0, 1, 1]));
    assert_eq!((zero.cause.clone(), zero.hint()), (Cause::ZeroDegree, "no layout of 0 ranks can run".into()));
    let huge = refused(&work, &ask([u32::MAX, 2, u32::MAX, u32::MAX, u32::MAX]));
    assert!(matches!(huge.cause, Cause::TooMany { .. }));
}

#[test]
fn only_empty_patches_are_refused() {
    let work = Work { size: ImageSize::fit(32, 32).unwrap().0, ..dev(1024) };
    let with = |patches| Ask { patches: Some(patches), ..ask([1, 1, 2, 1, 1]) };
    assert_eq!(refused(&work, &with(5)).cause, Cause::Patches { patches: 5, tokens: 4 });
    assert_eq!(Plan::new(&work, &with(4)).unwrap().patches.runs().len(), 4);
    // the default is as many as stages
    assert_eq!(refused(&work, &ask([1, 1, 5, 1, 1])).cause, Cause::Patches { patches: 5, tokens: 4 });
}

#[test]
fn cfg_without_a_second_branch_says_why() {
    let refusal = refused(&dev(1024), &ask([1, 2, 1, 1, 1]));
    let (text, hint) = (refusal.to_string(), refusal.hint());
    assert!(text.contains("one branch only") && text.contains("guidance-distilled"), "{text}");
    assert!(hint.contains("true_cfg_scale above 1 and a negative_prompt"), "{hint}");
    assert!(refusal.nearest.iter().all(|l| l.cfg == 1) && !refusal.nearest.is_empty());
    assert!(Plan::new(&Work { true_cfg: true, ..dev(1024) }, &ask([1, 2, 1, 1, 1])).is_ok());
}

#[test]
fn an_exact_pipeline_must_be_filled() {
    let exact = |degrees| Ask { pipeline: Pipeline::Exact, ..ask(degrees) };
    let refusal = refused(&dev(1024), &exact([1, 1, 2, 1, 1]));
    assert_eq!(refusal.cause, Cause::Unfilled { images: 1, branches: 1, stages: 2 });
    assert!(refusal.hint().contains("--pipeline stale"));
    // both branches fill two stages, unless they have ranks of their own
    let cfg = Work { true_cfg: true, ..dev(1024) };
    assert!(Plan::new(&cfg, &exact([1, 1, 2, 1, 1])).unwrap().is_exact());
    assert!(matches!(refused(&cfg, &exact([1, 2, 2, 1, 1])).cause, Cause::Unfilled { branches: 1, .. }));
}

#[test]
fn too_little_memory_lists_what_would_fit_better() {
    let work = Work { images: 8, batch: 8, request_images: 8, ..dev(2048) };
    let have = 24 << 30;
    let refusal = refused(&work, &Ask { memory_bytes: Some(have), ..ask([1, 1, 1, 1, 2]) });
    let Cause::Memory { rank: 0, need, remedies, .. } = &refusal.cause else { panic!("{refusal:?}") };
    assert!(*need > have && remedies.len() == 3, "{refusal:?}");
    assert!(matches!(remedies[0].what, Change::Batch(1)));
    assert!(matches!(remedies[1].what, Change::Sequence(l) if l.sequence_ranks() > 2));
    assert!(matches!(remedies[2].what, Change::Pipefusion(l) if l.pp > 1));
    assert!(remedies.iter().all(|r| r.need < *need));
    assert_eq!(refusal.hint().matches("GiB per rank").count(), 3);
    let enough = |bytes| Plan::new(&work, &Ask { memory_bytes: Some(bytes), ..ask([1, 1, 1, 1, 2]) });
    assert_eq!(enough(*need).unwrap().warnings, [Warning::ReloadsEncoders { rank: 0 }]);
    assert!(enough(*need - 1).is_err() && enough(*need + (10 << 30)).unwrap().warnings.is_empty());
}

#[test]
fn weights_in_mapped_files_need_not_fit() {
    let work = dev(256);
    let plan = |gib: u64, streams| {
        let memory_bytes = Some(gib << 30);
        Plan::new(&work, &Ask { memory_bytes, streams, ..Ask::layout(Layout::SERIAL) })
    };
    assert!(matches!(plan(8, false).unwrap_err().cause, Cause::Memory { .. }));
    assert_eq!(plan(8, true).unwrap().warnings, [Warning::StreamsWeights { rank: 0 }]);
    // two double blocks of 226.5 million weights in bf16, and the decoder, do not fit
    assert!(plan(64, true).unwrap().warnings.is_empty() && plan(0, true).is_err());
    let need = plan(8, true).unwrap().memory(0);
    assert_eq!(need.window, 4 * 226_548_224);
    assert!(need.streamed_least() < 2 << 30, "{need:?}");
    // two layers of a T5 in f32 are more, on the rank that encodes
    let weights = WeightBytes { transformer: 2.0, encoders: 4.0, decoder: 2.0, is_bf16: true };
    let wide = Work { weights: Some(weights), ..work };
    let ask = Ask { streams: true, ..Ask::layout(Layout { pp: 2, ..Layout::SERIAL }) };
    let plan = Plan::new(&wide, &ask).unwrap();
    let encoder = plan.encoder_rank(0);
    assert_eq!(plan.memory(encoder).window, 8 * (4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096));
    assert!(plan.memory(1 - encoder).window <= 4 * 226_548_224);
}

#[test]
fn odd_but_legal_layouts_are_warned_of() {
    let warnings = |work: &Work, ask: &Ask| Plan::new(work, ask).unwrap().warnings;
    let idle = Warning::IdleReplicas { dp: 3, images: 1 };
    assert_eq!(warnings(&dev(256), &ask([3, 1, 1, 1, 1])), [idle]);
    assert!(idle.to_string().contains("2 replicas stay idle"), "{idle}");
    let few = Ask { patches: Some(2), ..ask([1, 1, 3, 1, 1]) };
    assert_eq!(warnings(&dev(256), &few), [Warning::FewPatches { patches: 2, stages: 3 }]);
    let tiny = Work { text_tokens: 1, ..dev(16) };
    assert_eq!(warnings(&tiny, &ask([1, 1, 1, 3, 1])), [Warning::EmptyShares { tokens: 2, owners: 3 }]);
    assert!(warnings(&dev(256), &Ask::layout(Layout::SERIAL)).is_empty());
}

#[test]
fn the_pipeline_is_chosen_by_the_request_alone() {
    let passes = |request_images, batch, pipeline| {
        let work = Work { images: 8, request_images, batch, ..dev(256) };
        Plan::new(&work, &Ask { pipeline, ..ask([1, 1, 2, 1, 1]) }).unwrap().is_exact()
    };
    assert!(!passes(1, 8, Pipeline::Auto), "pictures of other requests do not count");
    assert!(passes(2, 1, Pipeline::Auto), "nor does the batch");
    assert!(!passes(2, 8, Pipeline::Stale));
    // one rank that works patch by patch makes the picture of a pipeline of as many patches
    let emulated = Ask { pipeline: Pipeline::Stale, patches: Some(4), ..ask([1, 1, 1, 1, 1]) };
    assert!(!Plan::new(&dev(256), &emulated).unwrap().is_exact());
}
