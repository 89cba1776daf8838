//! Several ranks that share one device: threads, whose messages go over the host's plane (NCCL refuses two ranks on a
//! device).

use super::Kind;
use super::denoise::{Asked, Bench, alone};
use super::kernels::error;
use super::part::{Part, Row};
use crate::Failure;
use dg_comm::{Communicator, InProcess};
use dg_plan::Layout;
use serde_json::json;
use std::sync::Arc;

const LAYOUTS: [(&str, Layout); 4] = [
    ("ulysses 2", Layout { ulysses: 2, ..Layout::SERIAL }),
    ("ring 2", Layout { ring: 2, ..Layout::SERIAL }),
    ("ulysses 4", Layout { ulysses: 4, ..Layout::SERIAL }),
    ("ulysses 2, ring 2", Layout { ulysses: 2, ring: 2, ..Layout::SERIAL }),
];

/// Runs every layout and compares it with one rank on the same device.
pub(super) fn run(kind: Kind, asked: &Asked, part: &mut Part) -> Result<(), Failure> {
    let bench = asked.bench(kind)?;
    let denoiser = bench.denoiser()?;
    // The first run chooses kernels.
    bench.run(&denoiser, Layout::SERIAL, alone())?;
    let (serial, alone_s) = bench.run(&denoiser, Layout::SERIAL, alone())?;
    for (name, layout) in LAYOUTS {
        let ranks = usize::try_from(layout.ranks())?;
        bench.run(&denoiser, layout, group(&bench, kind, ranks))?;
        let comms = group(&bench, kind, ranks);
        let counted = comms.clone();
        let (latents, seconds) = bench.run(&denoiser, layout, comms)?;
        let bytes: u64 = counted.iter().map(|comm| comm.counters().total().bytes).sum();
        let found = error(&serial, &latents);
        let detail = format!(
            "differs from one rank by {found:.1e} of the largest value (bound {BOUND:.0e}), {:.2} of its time, {:.1} MB sent",
            seconds / alone_s,
            bytes as f64 * 1e-6
        );
        let numbers = json!({ "error": found, "bound": BOUND, "seconds": seconds, "serial_s": alone_s, "bytes": bytes });
        part.put(Row::new(name, found <= BOUND && bytes > 0, detail, numbers));
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn group(bench: &Bench, kind: Kind, ranks: usize) -> Vec<Arc<dyn Communicator>> {
    use dg_comm::HostStaged;
    use dg_nccl::memory::Upload;
    if kind == Kind::Cpu {
        return threads(ranks);
    }
    let upload = Arc::new(Upload(Arc::new(dg_cuda::tensor::Tensors(bench.device.clone()))));
    let staged = InProcess::group(ranks)
        .into_iter()
        .map(|comm| Arc::new(HostStaged::new(comm, upload.clone())) as Arc<dyn Communicator>);
    staged.collect()
}

#[cfg(not(feature = "cuda"))]
fn group(_: &Bench, _: Kind, ranks: usize) -> Vec<Arc<dyn Communicator>> {
    threads(ranks)
}

fn threads(ranks: usize) -> Vec<Arc<dyn Communicator>> {
    InProcess::group(ranks).into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>).collect()
}

/// Matrix products of fewer rows may be summed in another order, and every sum is rounded to bfloat16.
const BOUND: f64 = 0.05;
