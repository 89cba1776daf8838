//! What computes: devices, and how an engine drives them.

use crate::links::Links;
use serde::Serialize;

/// A device that one rank has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Device {
    /// Name in `--rank_device`.
    pub name: &'static str,
    /// Operations per second that FLUX.1 reaches on it alone: a measured step, not the label.
    pub flops: f64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Where `flops` comes from.
    pub source: &'static str,
}

/// What an engine does per block besides computing and moving bytes.
///
/// Published tables come from engines that differ from this one: how many exchanges they make for a block, whether
/// their ring computes while it sends, how long their host takes to launch a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Engine {
    /// All-to-alls per block.
    pub exchanges: f64,
    /// Seconds that each takes besides latency and bytes: launching, and bringing tokens and heads in order.
    pub exchange_s: f64,
    /// Seconds that each hop of a ring takes besides: launching a shorter attention and merging its result.
    pub hop_s: f64,
    /// Whether K and V of the next hop travel while the present ones are used.
    pub ring_overlaps: bool,
    /// Whether every patch of PipeFusion computes all the text again.
    pub text_with_every_patch: bool,
    /// Factor on the time of computing.
    pub slowdown: f64,
    /// Seconds that the host needs for a block: a step cannot be faster than its host.
    pub host_block_s: f64,
    /// The same for a block in a ring, besides.
    pub host_ring_s: f64,
}

impl Engine {
    /// This engine: two exchanges per block, a ring that overlaps, text once per step, a host that is never late.
    /// Its fixed costs are those fitted to compiled xDiT on H100.
    pub const THIS: Self = Self {
        exchanges: 2.0,
        exchange_s: 54e-6,
        hop_s: 135e-6,
        ring_overlaps: true,
        text_with_every_patch: false,
        slowdown: 1.0,
        host_block_s: 0.0,
        host_ring_s: 0.0,
    };
}

/// Devices, links and engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// What every rank computes on.
    pub device: Device,
    /// How ranks are connected.
    pub links: Links,
    /// What drives them.
    pub engine: Engine,
}

impl Machine {
    /// `device` and `links` under this engine.
    pub fn new(device: Device, links: Links) -> Self {
        Self { device, links, engine: Engine::THIS }
    }
}

/// A device by its name.
pub fn device(name: &str) -> Option<Device> {
    DEVICES.iter().find(|device| device.name == name).copied()
}

const fn gpu(name: &'static str, tflops: f64, gib: u64, source: &'static str) -> Device {
    Device { name, flops: tflops * 1e12, memory_bytes: gib << 30, source }
}

/// All devices. One step of FLUX.1-dev at 1024×1024 with 512 text tokens is 74.4 TFLOP.
pub const DEVICES: [Device; 6] = [
    gpu("h100", 484.0, 80, "xDiT, compiled, 28 steps in 4.30 s"),
    gpu("a100", 163.0, 80, "xDiT, FLUX.1-schnell at 2048×2048, 4 steps in about 10 s"),
    gpu("l40", 134.0, 48, "as l20, by the ratio of the labels (181 and 119.5)"),
    gpu("l20", 88.4, 48, "cache-dit, 28 steps in 23.56 s"),
    gpu("rtx4090", 122.0, 24, "as l20, by the ratio of the labels (165 and 119.5)"),
    gpu("cpu", 0.07, 8, "one core with AVX2; f32 or bf16"),
];
