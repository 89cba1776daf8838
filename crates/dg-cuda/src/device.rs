//! The device of this process.

use burn::tensor::{DType, Device, DeviceType};
use cubecl::config::memory::CudaAllocator;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// The first GPU that this process sees. A rank's parent sets `CUDA_VISIBLE_DEVICES`, so that it is the rank's own.
///
/// # Errors
/// What is missing, with a hint: burn itself would panic at the first kernel.
pub fn first() -> Result<Device, String> {
    if let Some(obstacle) = dg_nccl::facts::look().obstacle() {
        return Err(obstacle);
    }
    // cubecl reads its settings once, so this comes before all else that is asked of it. A second call finds those of
    // the first.
    let _ = CubeClRuntimeConfig::try_set(settings());
    if Device::enumerate(DeviceType::Cuda).into_vec().is_empty() {
        return Err("burn sees no CUDA device; hint: CUDA_VISIBLE_DEVICES hides devices".into());
    }
    Ok(Device::cuda(0))
}

/// cubecl's settings: those of the user's `cubecl.toml` and environment, but with the allocator that works in the order of
/// a stream. The other one waits for the whole device when it gives memory back, so for sends of NCCL too, which end when
/// the other rank receives; were that rank waiting in the same place, neither would go on.
fn settings() -> CubeClRuntimeConfig {
    let mut settings = CubeClRuntimeConfig::from_current_dir().override_from_env();
    settings.memory.cuda.allocator = CudaAllocator::Async;
    #[cfg(feature = "kernel-cache")]
    keep_kernels(&mut settings);
    settings
}

/// Keeps compiled kernels and the results of tuning in the user's cache folder, in a file for each set of visible
/// devices: processes of one host that have other GPUs do not wait for each other's file. Where there is no such folder
/// they are kept in memory.
#[cfg(feature = "kernel-cache")]
fn keep_kernels(settings: &mut CubeClRuntimeConfig) {
    use cubecl::config::cache::CacheConfig;
    use std::path::PathBuf;
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let Some(cache) = cache else { return };
    let devices = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_else(|_| "all".into());
    settings.compilation.cache = true;
    settings.environment.path = CacheConfig::Directory(cache.join("diffgentor/kernels"));
    settings.environment.name = format!("gpus-{devices}");
}

/// Waits for the device, and gives the memory back that no tensor uses and that was kept for later ones.
pub fn give_back(device: &Device) {
    // What has failed before is told where it is used.
    let _ = device.sync();
    device.memory_cleanup();
    let _ = device.sync();
}

/// Whether the device computes in bfloat16 (compute capability 8.0 and above).
pub fn has_bf16(device: &Device) -> bool {
    device.supports_dtype(DType::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_in_the_order_of_the_stream() {
        assert_eq!(settings().memory.cuda.allocator, CudaAllocator::Async);
    }
}
