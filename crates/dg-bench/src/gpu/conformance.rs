//! `dg-comm`'s suite over NCCL, one rank per GPU; on a CPU, over ranks that are threads.

use super::Kind;
use super::part::Row;
use crate::Failure;
use dg_comm::conformance::{CHECKS, OnDevice, Ranks, Suite, ranks_needed};
use dg_comm::{Communicator, InProcess};
use dg_nccl::memory::{Pool, Upload};
use dg_nccl::{Context, Driver, Library, Nccl, Options};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

pub(super) fn run(kind: Kind, schedules: u64) -> Result<Vec<Row>, Failure> {
    let (gpus, make) = match kind {
        Kind::Cpu => (usize::MAX, Box::new(threads) as Box<dyn Fn(usize) -> Ranks>),
        Kind::Cuda => {
            let library = Library::load()?;
            let contexts = contexts()?;
            (contexts.len(), Box::new(move |size| on_gpus(library, &contexts[..size])) as _)
        }
    };
    let make: Arc<dyn Fn(usize) -> Ranks> = make.into();
    let rows = CHECKS.iter().map(|(check, _)| {
        let needed = ranks_needed(check);
        if needed > gpus {
            return Row::told(*check, format!("needs {needed} GPUs, there are {gpus}"), Value::Null);
        }
        let (make, begin) = (make.clone(), Instant::now());
        let ran = Suite::new(move |size| make(size)).schedules(schedules).only(check).run();
        let seconds = begin.elapsed().as_secs_f64();
        let detail = ran.as_ref().map_or_else(ToString::to_string, |_| format!("{seconds:.1} s"));
        Row::new(*check, ran.is_ok(), detail, json!({ "seconds": seconds }))
    });
    Ok(rows.collect())
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
