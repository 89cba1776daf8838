//! How busy the GPUs of this node are.

use super::super::protocol::GpuUse;
use dg_nccl::usage::{Meter, Usage};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Reads them in a thread of its own: a driver that is in trouble may take its time, and the lease must not wait for it.
pub(super) struct Gauge {
    asks: SyncSender<Vec<u32>>,
    last: Arc<Mutex<Option<Reading>>>,
}

/// By the numbers of the GPUs.
type Reading = BTreeMap<u32, GpuUse>;

/// Reads these GPUs.
type Read = Box<dyn FnMut(&[u32]) -> Result<Reading, String>>;

impl Gauge {
    /// Starts the thread. If NVML is not there or fails, it says so once and ends: then nothing is known.
    pub(super) fn start() -> Self {
        Self::with(|| {
            let meter = Meter::open()?;
            Ok(Box::new(move |gpus| Ok(meter.read_of(gpus)?.iter().map(used).collect())))
        })
    }

    fn with(open: impl FnOnce() -> Result<Read, String> + Send + 'static) -> Self {
        let (asks, asked) = sync_channel(1);
        let last: Arc<Mutex<Option<Reading>>> = Arc::default();
        let answers = last.clone();
        let live = move || {
            let ended = open().and_then(|read| answer(&asked, read, &answers));
            if let Err(error) = ended {
                tracing::warn!(error, "how busy the GPUs are is not known");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("dg-gpus".into()).spawn(live) {
            tracing::warn!(%error, "how busy the GPUs are is not known: no thread");
        }
        Self { asks, last }
    }

    /// What was read since this was asked last, and asks for these GPUs again. Never waits.
    pub(super) fn next(&self, gpus: &[u32]) -> Reading {
        let reading = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Full: it is still at the last one. Closed: it has ended.
        let _ = self.asks.try_send(gpus.to_vec());
        reading.unwrap_or_default()
    }
}

fn answer(asked: &Receiver<Vec<u32>>, mut read: Read, last: &Mutex<Option<Reading>>) -> Result<(), String> {
    for gpus in asked {
        let reading = read(&gpus)?;
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }
    Ok(())
}

fn used(gpu: &Usage) -> (u32, GpuUse) {
    let Usage { busy_percent, used_bytes, total_bytes, .. } = *gpu;
    (gpu.index, GpuUse { busy_percent, used_bytes, total_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn until(gauge: &Gauge, is_enough: impl Fn(&Reading) -> bool) -> Reading {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let reading = gauge.next(&[2, 5]);
            if is_enough(&reading) {
                return reading;
            }
            assert!(Instant::now() < end, "{reading:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn gpus_are_read_until_the_meter_fails() {
        let mut left = 3_u64;
        let read = move |gpus: &[u32]| {
            left = left.checked_sub(1).ok_or("it has fallen off the bus")?;
            let one = |gpu: &u32| (*gpu, GpuUse { used_bytes: left, ..GpuUse::default() });
            Ok(gpus.iter().map(one).collect())
        };
        let gauge = Gauge::with(move || Ok(Box::new(read)));
        let reading = until(&gauge, |reading| reading.get(&2).is_some_and(|gpu| gpu.used_bytes == 0));
        assert_eq!(reading.keys().copied().collect::<Vec<_>>(), [2, 5]);
        for _ in 0..20 {
            assert!(gauge.next(&[2]).is_empty(), "what is old is not said again");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn without_a_meter_nothing_is_known_and_nobody_waits() {
        let gauge = Gauge::with(|| Err("no NVML here".into()));
        for _ in 0..20 {
            assert!(gauge.next(&[0]).is_empty());
        }
        let (hold, held) = sync_channel::<()>(0);
        let gauge = Gauge::with(move || {
            let _ = held.recv();
            Err("late".into())
        });
        let begin = Instant::now();
        (0..1000).for_each(|_| assert!(gauge.next(&[0]).is_empty()));
        assert!(begin.elapsed() < Duration::from_secs(5));
        drop(hold);
    }
}
