//! Repeated runs and what they cost.

use crate::{Failure, Run};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::time::Instant;

/// Times `work` in a pool of its own, and the peak of the multiply-adds before and after it.
pub(crate) fn repeat(
    name: &str,
    run: &Run,
    gflop: f64,
    mut work: impl FnMut() + Send,
) -> Result<Value, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(run.threads).build()?;
    let (times, peaks) = pool.install(|| {
        let before = peak(run);
        (0..run.warm_up).for_each(|_| work());
        let times = (0..run.repeats).map(|_| timed(&mut work)).collect::<Vec<_>>();
        (times, [before, peak(run)])
    });
    let mut report = report(name, run, gflop, &times);
    if let [Some(before), Some(after)] = peaks {
        let peak = before.max(after);
        report["peak_gflop_per_cpu_second"] = peak.into();
        if let Some(rate) = report["gflop_per_cpu_second"].as_f64() {
            report["fraction_of_peak"] = (rate / peak).into();
        }
    }
    Ok(report)
}

/// [`peak`] in a pool of its own.
pub(crate) fn peak_alone(run: &Run) -> Result<Value, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(run.threads).build()?;
    let peak = pool.install(|| peak(run)).ok_or("no kernels on this machine, or they are switched off")?;
    Ok(
        json!({ "bench": "peak", "threads": run.threads, "dtype": run.dtype.name(), "kernels": dg_kernels::path(), "cpu": cpu_name(),
        "gflop_per_cpu_second": peak }),
    )
}

/// The most that the kernels' multiply-adds can do on this machine now, all threads of the current pool at work:
/// GFLOP per CPU second.
fn peak(run: &Run) -> Option<f64> {
    let (steps, p) = (10_000_000, run.precision());
    let round = || {
        let start = cpu_seconds();
        let done: Option<f64> = rayon::broadcast(|_| dg_kernels::multiply_adds(p, steps)).into_iter().sum();
        done.map(|done| done * 1e-9 / (cpu_seconds() - start))
    };
    (0..3).filter_map(|_| round()).reduce(f64::max)
}

/// Wall and CPU seconds of one run of this process.
pub(crate) fn timed(work: &mut impl FnMut()) -> [f64; 2] {
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    work();
    [wall.elapsed().as_secs_f64(), cpu_seconds() - cpu]
}

pub(crate) fn cpu_seconds() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// The result of a benchmark; `times` are wall and CPU seconds.
pub(crate) fn report(name: &str, run: &Run, gflop: f64, times: &[[f64; 2]]) -> Value {
    let column = |i: usize| times.iter().map(|t| t[i]).collect::<Vec<_>>();
    let (wall, cpu) = (median(column(0)), median(column(1)));
    let rate = (gflop > 0.0 && cpu > 0.0).then(|| gflop / cpu);
    json!({
        "bench": name,
        "threads": run.threads,
        "dtype": run.dtype.name(),
        "kernels": dg_kernels::path(),
        "cpu": cpu_name(),
        "wall_s": { "median": wall, "all": column(0) },
        "cpu_s": { "median": cpu, "all": column(1) },
        "gflop": gflop,
        "gflop_per_cpu_second": rate,
        "peak_rss_bytes": peak_rss(),
    })
}

/// The report in a line for a person.
pub(crate) fn line(report: &Value) -> String {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let text = |key: &str| report[key].as_str().unwrap_or("?").to_owned();
    if let Some(folder) = report["made"].as_str() {
        return format!("made {folder}");
    }
    let mut line = format!("{}: ", text("bench"));
    if let (Some(wall), Some(cpu)) = (number("/wall_s/median"), number("/cpu_s/median")) {
        line += &format!("{wall:.4} s wall, {cpu:.4} s CPU");
    }
    if let Some(rate) = number("/gflop_per_cpu_second") {
        line += &format!(", {rate:.1} GFLOP per CPU second");
    }
    if let (Some(fraction), Some(peak)) = (number("/fraction_of_peak"), number("/peak_gflop_per_cpu_second"))
    {
        line += &format!(" = {:.0} % of the peak, {peak:.1}", 100.0 * fraction);
    }
    if let Some(bytes) = number("/peak_rss_bytes") {
        line += &format!(", peak memory {:.0} MiB", bytes / f64::from(1 << 20));
    }
    let (dtype, kernels, cpu) = (text("dtype"), text("kernels"), text("cpu"));
    line + &format!(" ({} threads, {dtype}, {kernels} kernels, {cpu})", report["threads"])
}

pub(crate) fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(0.0)
}

pub(crate) fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(key));
        line.and_then(|l| l.split_once(": ")).map_or("?", |(_, v)| v).to_owned()
    };
    let has = |flag: &str| text.contains(flag);
    let wide = match (has("avx512_bf16"), has("avx512f"), has("avx2")) {
        (true, ..) => "AVX-512 BF16",
        (_, true, _) => "AVX-512",
        (_, _, true) => "AVX2",
        _ => "no AVX2",
    };
    format!("{} family {} model {}, {wide}", field("model name"), field("cpu family"), field("model\t"))
}

pub(crate) fn peak_rss() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
