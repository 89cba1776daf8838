//! `dg-comm`'s suite over NCCL, one rank per GPU; on a CPU, over ranks that are threads.

use super::Kind;
use super::part::{Part, Row};
use crate::Failure;
use dg_comm::conformance::{CHECKS, OnDevice, Ranks, Suite, ranks_needed};
use dg_comm::{Communicator, InProcess};
use dg_nccl::memory::{Pool, Upload};
use dg_nccl::{Context, Driver, GpuError, Library, Nccl, Options};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

pub(super) fn run(kind: Kind, schedules: u64, part: &mut Part) -> Result<(), Failure> {
    let (gpus, make) = match kind {
        Kind::Cpu => (usize::MAX, Box::new(threads) as Box<dyn Fn(usize) -> Ranks>),
        Kind::Cuda => {
            let contexts = contexts()?;
            let library = match Library::load() {
                Ok(library) => library,
                Err(why) => return without_nccl(contexts.len(), why, part),
            };
            (contexts.len(), Box::new(move |size| on_gpus(library, &contexts[..size])) as _)
        }
    };
    let make: Arc<dyn Fn(usize) -> Ranks> = make.into();
    for (check, _) in &CHECKS {
        let needed = ranks_needed(check);
        if needed > gpus {
            let detail = format!("needs {needed} GPUs, there are {gpus}");
            part.put(Row::told(*check, detail, Value::Null));
            continue;
        }
        let (make, begin) = (make.clone(), Instant::now());
        let ran = Suite::new(move |size| make(size)).schedules(schedules).only(check).run();
        let seconds = begin.elapsed().as_secs_f64();
        let detail = ran.as_ref().map_or_else(ToString::to_string, |_| format!("{seconds:.1} s"));
        part.put(Row::new(*check, ran.is_ok(), detail, json!({ "seconds": seconds })));
    }
    Ok(())
}

/// One GPU is no reason to have NCCL.
fn without_nccl(gpus: usize, why: GpuError, part: &mut Part) -> Result<(), Failure> {
    let detail = match gpus {
        0 => "no GPU and no NCCL: nothing to connect",
        1 => "one GPU and no NCCL: nothing to connect",
        _ => return Err(why.into()),
    };
    CHECKS.iter().for_each(|(check, _)| part.put(Row::told(*check, detail, Value::Null)));
    Ok(())
}

fn threads(size: usize) -> Ranks {
    InProcess::group(size).into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>).collect()
}

fn contexts() -> Result<Vec<Context>, Failure> {
    let driver = Driver::load()?;
    let contexts = (0..driver.count()?).map(|gpu| driver.context(gpu));
    Ok(contexts.collect::<Result<_, _>>()?)
}

/// A rank on each of these GPUs; the suite looks at host memory.
fn on_gpus(library: Library, contexts: &[Context]) -> Ranks {
    let inner = InProcess::group(contexts.len()).into_iter();
    let ranks = inner.zip(contexts).map(|(inner, context)| {
        let comm = Nccl::new(Arc::new(inner), library, context, None, Options::default());
        let comm = comm.expect("a rank of NCCL");
        let upload = Arc::new(Upload(Arc::new(Pool::new(context.clone()))));
        Arc::new(OnDevice::new(comm, upload)) as Arc<dyn Communicator>
    });
    ranks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_gpus_need_nccl() {
        let none = || GpuError::NoNccl { tried: "libnccl.so.2".into(), reason: "not found".into() };
        for gpus in [0, 1] {
            let mut part = Part::new("conformance", Kind::Cuda, None);
            without_nccl(gpus, none(), &mut part).unwrap();
            let rows = part.json()["rows"].as_array().unwrap().clone();
            assert_eq!(rows.len(), CHECKS.len());
            assert!(rows.iter().all(|row| row["state"] == "told") && part.is_good(), "{rows:?}");
        }
        let mut part = Part::new("conformance", Kind::Cuda, None);
        let error = without_nccl(2, none(), &mut part).unwrap_err().to_string();
        assert!(error.contains("no NCCL here") && error.contains("hint: "), "{error}");
    }
}
