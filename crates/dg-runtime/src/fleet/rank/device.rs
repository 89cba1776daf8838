//! What a rank computes on.

#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use dg_comm::{CommError, Communicator};
use dg_flux::{Device, DeviceKind};
use std::sync::Arc;

/// The device of this process.
pub(super) struct RankDevice {
    pub(super) kind: DeviceKind,
    /// Where its tensors are.
    pub(super) tensors: Device,
    #[cfg(feature = "cuda")]
    gpu: Option<Gpu>,
}

impl RankDevice {
    /// Opens it; `Err` says what is missing, with a hint.
    pub(super) fn open(kind: DeviceKind) -> Result<Self, String> {
        let tensors = dg_flux::device(kind)?;
        Ok(Self {
            kind,
            #[cfg(feature = "cuda")]
            gpu: match kind {
                DeviceKind::Cpu => None,
                DeviceKind::Cuda => Some(Gpu::open(tensors.clone())?),
            },
            tensors,
        })
    }

    /// Bytes that are free on a GPU. A processor has those of its host, which nobody can count on.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.free_bytes();
        }
        None
    }

    /// What carries this device's tensors between the ranks that `plane` joins. All of them must ask.
    pub(super) fn join(&self, plane: Arc<dyn Communicator>) -> Result<Arc<dyn Communicator>, CommError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.join(plane);
        }
        Ok(plane)
    }
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_cuda_says_how_to_make_one_with_it() {
        let error = RankDevice::open(DeviceKind::Cuda).err().unwrap();
        assert!(error.contains("hint: ") && error.contains("--features cuda"), "{error}");
        assert_eq!(RankDevice::open(DeviceKind::Cpu).unwrap().free_bytes(), None);
    }
}
