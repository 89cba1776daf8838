//! Repeated runs and what they cost.

use crate::{Failure, Run};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::time::Instant;

/// Times `work` in a pool of its own.
pub(crate) fn repeat(
    name: &str,
    run: &Run,
    gflop: f64,
    mut work: impl FnMut() + Send,
) -> Result<Value, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(run.threads).build()?;
    let times = pool.install(|| {
        (0..run.warm_up).for_each(|_| work());
        (0..run.repeats).map(|_| timed(&mut work)).collect::<Vec<_>>()
    });
    Ok(report(name, run, gflop, &times))
}

/// Wall and CPU seconds of one run of this process.
fn timed(work: &mut impl FnMut()) -> [f64; 2] {
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    work();
    [wall.elapsed().as_secs_f64(), cpu_seconds() - cpu]
}

fn cpu_seconds() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// The result of a benchmark; `times` are wall and CPU seconds.
pub(crate) fn report(name: &str, run: &Run, gflop: f64, times: &[[f64; 2]]) -> Value {
    let column = |i: usize| times.iter().map(|t| t[i]).collect::<Vec<_>>();
    let (wall, cpu) = (median(column(0)), median(column(1)));
    json!({
        "bench": name,
        "threads": run.threads,
        "kernels": dg_kernels::path(),
        "cpu": cpu_name(),
        "wall_s": { "median": wall, "all": column(0) },
        "cpu_s": { "median": cpu, "all": column(1) },
        "gflop": gflop,
        "gflop_per_cpu_second": if cpu > 0.0 { gflop / cpu } else { 0.0 },
        "peak_rss_bytes": peak_rss(),
    })
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(0.0)
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(key));
        line.and_then(|l| l.split_once(": ")).map_or("?", |(_, v)| v).to_owned()
    };
    let wide = if text.contains("avx512_bf16") { "AVX-512 BF16" } else { "AVX2" };
    format!("{} family {} model {}, {wide}", field("model name"), field("cpu family"), field("model\t"))
}

fn peak_rss() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
