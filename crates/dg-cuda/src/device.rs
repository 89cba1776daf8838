//! The device of this process.

use burn::tensor::{DType, Device, DeviceType};

/// The first GPU that this process sees. A rank's parent sets `CUDA_VISIBLE_DEVICES`, so that it is the rank's own.
///
/// # Errors
/// What is missing, with a hint: burn itself would panic at the first kernel.
pub fn first() -> Result<Device, String> {
    if let Some(obstacle) = dg_nccl::facts::look().obstacle() {
        return Err(obstacle);
    }
    if Device::enumerate(DeviceType::Cuda).into_vec().is_empty() {
        return Err("burn sees no CUDA device; hint: CUDA_VISIBLE_DEVICES hides devices".into());
    }
    Ok(Device::cuda(0))
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
