//! Plans of replicas: of a job, and of what its ranks load.

use crate::{EngineOptions, StartError};
use dg_core::{DType, GenerateRequest, ImageSize, ModelShape};
use dg_plan::{Ask, Layout, Pipeline, Plan, Refusal, Work};

/// The plan by which one replica makes `batch`, of which all requests go together with the first
/// ([`GenerateRequest::batches_with`]). Its layout is that of `options` with a data parallel degree of 1; ranks are
/// those of the replica, from 0. Memory is not checked.
///
/// # Errors
/// A [`Refusal`] of a layout that cannot make this batch: the degrees do not fit the model, or the pictures.
///
/// # Panics
/// For an empty batch.
pub fn job_plan(
    shape: &ModelShape,
    options: &EngineOptions,
    batch: &[GenerateRequest],
) -> Result<Plan, Refusal> {
    let first = &batch[0];
    let work = Work {
        shape: shape.clone(),
        size: first.size,
        text_tokens: first.max_sequence_length.tokens(),
        steps: first.steps(),
        images: batch.len(),
        request_images: options.parallel.request_images,
        batch: batch.len(),
        true_cfg: first.active_negative().is_some(),
        dtype: options.dtype,
        weights: None,
    };
    Plan::new(&work, &of_replica(&options.parallel.ask))
}

/// The plan from which each rank of a replica takes what it has to load: degrees and stages are those of every job,
/// the picture is any.
///
/// # Errors
/// [`StartError::Layout`] if no picture at all can be made in this layout, [`StartError::Ranks`].
pub(crate) fn load_plan(shape: &ModelShape, ask: &Ask, dtype: DType) -> Result<Plan, StartError> {
    let (size, _) = ImageSize::fit(256, 256).expect("a size that FLUX can draw");
    // one patch of a pipeline that is never full: neither depends on the picture, nor do the weights on them
    let any = Ask {
        patches: Some(1),
        pipeline: Pipeline::Stale,
        num_gpus: None,
        memory_bytes: None,
        ..ask.clone()
    };
    let work = Work { steps: 1, true_cfg: true, dtype, ..Work::one(shape.clone(), size) };
    let all = Plan::new(&work, &any).map_err(Box::new)?;
    if all.layout.ranks() > RANKS_MAX {
        return Err(StartError::Ranks { ranks: all.layout.ranks(), max: RANKS_MAX });
    }
    Ok(Plan::new(&work, &of_replica(&any)).map_err(Box::new)?)
}

/// Of one replica alone, as many ranks as it needs, without a look at memory.
fn of_replica(ask: &Ask) -> Ask {
    let layout = Layout { dp: 1, ..ask.layout };
    Ask { layout, num_gpus: None, memory_bytes: None, ..ask.clone() }
}

/// Ranks that one process takes.
const RANKS_MAX: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Parallel;
    use dg_core::{ExitCode, Scale, Seed};
    use dg_plan::known;

    fn options(layout: Layout) -> EngineOptions {
        let ask = Ask { memory_bytes: Some(1), num_gpus: Some(99), ..Ask::layout(layout) };
        EngineOptions { parallel: Parallel { ask, ..Parallel::default() }, ..EngineOptions::default() }
    }

    fn request() -> GenerateRequest {
        GenerateRequest::new("a cat", ImageSize::fit(256, 128).unwrap().0, Seed(0))
    }

    #[test]
    fn a_job_is_planned_for_one_replica_and_its_own_pictures() {
        let layout = Layout { dp: 3, ulysses: 2, ..Layout::SERIAL };
        let plan = job_plan(&known::flux_dev(), &options(layout), &[request(), request()]).unwrap();
        assert_eq!(plan.layout, Layout { dp: 1, ..layout });
        let Work { images, batch, text_tokens, steps, true_cfg, .. } = plan.work;
        assert_eq!((images, batch, text_tokens, steps, true_cfg), (2, 2, 512, 28, false));
    }

    #[test]
    fn cfg_parallel_needs_two_branches_of_the_job_and_not_of_the_load() {
        let layout = Layout { cfg: 2, ..Layout::SERIAL };
        let refusal = job_plan(&known::flux_dev(), &options(layout), &[request()]).unwrap_err();
        assert!(refusal.to_string().contains("use_cfg_parallel"), "{refusal}");
        let mut guided = request();
        guided.negative_prompt = Some("dog".into());
        guided.true_cfg_scale = Scale::try_from(4.0).unwrap();
        job_plan(&known::flux_dev(), &options(layout), &[guided]).unwrap();
        assert_eq!(load(layout).unwrap().layout, layout);
    }

    fn load(layout: Layout) -> Result<Plan, StartError> {
        load_plan(&known::flux_dev(), &options(layout).parallel.ask, DType::Float32)
    }

    #[test]
    fn weights_are_those_of_every_job() {
        let layout = Layout { dp: 2, pp: 4, ulysses: 2, ..Layout::SERIAL };
        let (load, job) =
            (load(layout).unwrap(), job_plan(&known::flux_dev(), &options(layout), &[request()]).unwrap());
        for rank in 0..8 {
            assert_eq!(load.role(rank), job.role(rank));
        }
    }

    #[test]
    fn layouts_that_cannot_be_are_refused_before_anything_is_loaded() {
        for (layout, says) in [
            (Layout { dp: 0, ..Layout::SERIAL }, "a degree is 0"),
            (Layout { ulysses: 25, ..Layout::SERIAL }, "ulysses_degree 25"),
            (Layout { dp: 1025, ..Layout::SERIAL }, "1025 ranks"),
        ] {
            let error = load(layout).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.exit(), ExitCode::Infeasible);
            assert!(error.hint().is_some());
        }
    }
}
