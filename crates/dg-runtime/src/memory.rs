//! What a run will need, before anything is loaded.

pub use crate::sampler::Sampler;
use crate::{EngineOptions, machine};
use dg_core::GenerateRequest;
use dg_flux::modulation::Ahead;
use dg_flux::tiling::Tiling;
use dg_flux::{Device, DeviceKind, FreeMemory, ModelRepo};

/// Bytes that a run will hold at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Mapped weight files.
    pub weights: u64,
    /// Those of the text encoders among them.
    pub encoders: u64,
    /// What must be there of them where they are read again in each step: two blocks of the transformer, and the VAE.
    pub window: u64,
    /// Activations of the hungriest moment.
    pub activations: u64,
    /// The same when pictures are decoded in bands.
    pub activations_least: u64,
}

impl MemoryNeed {
    /// Weights and activations together.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.activations)
    }

    /// The peak when the text encoders are given back once the prompts are encoded, and pictures are decoded in
    /// bands.
    pub fn least(self) -> u64 {
        let all = self.weights.saturating_add(self.activations_least);
        all.saturating_sub(self.encoders).max(self.encoders)
    }

    /// The peak when weights that do not fit are read from their files again in each step. No run does with less.
    pub fn streamed_least(self) -> u64 {
        self.window.saturating_add(self.activations_least)
    }
}

/// The need of `requests` in batches of up to `batch_size`.
pub fn memory_need(
    repo: &ModelRepo,
    options: &EngineOptions,
    requests: &[GenerateRequest],
    batch_size: usize,
) -> MemoryNeed {
    let shape = repo.shape();
    let one = |r: &GenerateRequest| {
        let text = r.max_sequence_length.tokens();
        let images = batch_size.clamp(1, requests.len());
        let rows = images.saturating_mul(1 + usize::from(r.active_negative().is_some()));
        let ahead = Ahead::bytes(&shape.transformer, rows, r.steps());
        let blocks = shape.transformer.activation_bytes(images, r.size.image_tokens() + text);
        let denoise = blocks.saturating_add(ahead);
        let tile = (shape.vae.sample_size as u64).pow(2);
        let tiled = Tiling::applies(&shape.vae, r.size, options.vae_tiling);
        let pixels = if tiled { tile } else { r.size.pixels() };
        let others = denoise.max(shape.t5.activation_bytes(text));
        [shape.vae.decode_bytes(pixels), shape.vae.banded_decode_bytes(pixels)].map(|n| n.max(others))
    };
    let hungriest = |i: usize| {
        let most = requests.iter().map(|request| one(request)[i]).max().unwrap_or(0);
        most.saturating_add(repo.converted_bytes(options.dtype))
    };
    MemoryNeed {
        weights: repo.weight_bytes(),
        encoders: repo.encoder_bytes(),
        window: repo.window_bytes(),
        activations: hungriest(0),
        activations_least: hungriest(1),
    }
}

/// Bytes that are free on the GPU that this process sees first; none if the driver does not tell.
pub fn free_on_gpu() -> Option<u64> {
    let context = dg_nccl::Driver::load().and_then(|driver| driver.context(0)).ok()?;
    context.memory().ok().map(|(free, _)| free)
}

/// Who knows what is free on a device of that kind; nobody, if the driver does not tell.
pub(crate) fn free(kind: DeviceKind, device: &Device) -> Option<FreeMemory> {
    match kind {
        DeviceKind::Cpu => Some(FreeMemory::new(|| machine::memory().map(|memory| memory.available))),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => {
            let context = dg_nccl::Driver::load().and_then(|driver| driver.context(0)).ok()?;
            let device = device.clone();
            Some(FreeMemory::new(move || {
                dg_cuda::device::give_back(&device);
                context.memory().ok().map(|(free, _)| free)
            }))
        }
        #[cfg(not(feature = "cuda"))]
        DeviceKind::Cuda => {
            let _ = device;
            None
        }
    }
}

/// Who else takes memory on the host of a rank.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Others {
    /// How many ranks.
    pub(crate) ranks: u64,
    /// What each of them holds besides weights at its peak.
    pub(crate) each: u64,
    /// Bytes of weights that are used here, and those of them that are this rank's.
    pub(crate) weights: u64,
    pub(crate) mine: u64,
}

impl Others {
    /// This rank's part of `available` bytes. What the others hold by now is not among these; as all of them do the
    /// same work, it is taken for as much as this one has, `held`.
    fn leave(self, available: u64, held: u64) -> u64 {
        let free = available.saturating_sub(self.ranks.saturating_mul(self.each.saturating_sub(held)));
        let part = u128::from(free) * u128::from(self.mine) / u128::from(self.weights.max(self.mine).max(1));
        if self.weights == 0 { free } else { part as u64 }
    }
}

/// What a rank's weights may take of this host's memory; nothing for GPUs, whose weights are copied.
pub(crate) fn share(kind: DeviceKind, others: Others) -> Option<FreeMemory> {
    let share = move || Some(others.leave(machine::memory()?.available, ProcessMemory::of(None).rss_anon));
    (kind == DeviceKind::Cpu).then(|| FreeMemory::new(share))
}

/// Memory of a process, as far as the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Anonymous memory in bytes.
    pub rss_anon: u64,
    /// Mapped files, weights for one, in bytes.
    pub rss_file: u64,
    /// Resident memory in bytes, mapped weights included.
    pub rss: u64,
    /// The most that it was.
    pub peak_rss: u64,
}

impl ProcessMemory {
    /// Of this process, or the one of this number.
    pub fn of(pid: Option<u32>) -> Self {
        let pid = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
        };
        let of = |name| field(name).unwrap_or(0);
        let [rss_anon, rss_file] = ["RssAnon:", "RssFile:"].map(of);
        Self { rss_anon, rss_file, rss: of("VmRSS:"), peak_rss: of("VmHWM:") }
    }
}

/// Bytes that this process has had read from disks, for mapped files too; 0 where the system does not tell.
pub fn read_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap_or(0)
}

/// Bytes of memory of this host; 0 where the system does not tell.
pub fn of_host() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_by_what_each_rank_has_to_keep() {
        let gib = 1u64 << 30;
        let larger = Others { ranks: 1, each: 2 * gib, weights: 17 * gib, mine: 10 * gib };
        let smaller = Others { mine: 7 * gib, ..larger };
        assert_eq!(larger.leave(19 * gib, 0), 10 * gib);
        assert_eq!(smaller.leave(19 * gib, 0), 7 * gib);
        // once the others hold what they need, it is not among what is free
        assert_eq!(larger.leave(17 * gib, 2 * gib), 10 * gib);
        assert_eq!(larger.leave(gib, 0), 0);
        assert_eq!(Others::default().leave(5, 7), 5);
    }
}
