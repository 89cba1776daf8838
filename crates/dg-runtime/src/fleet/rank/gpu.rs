//! The GPU of a rank beside its tensors: its memory, and how they get to other ranks.

use dg_comm::{CommError, Communicator, Deadline, HostStaged};
use dg_cuda::tensor::Tensors;
use dg_flux::Device;
use dg_nccl::memory::Upload;
use dg_nccl::{Context, Driver, GpuError, Library, Nccl, Options};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The first GPU that this process sees, which is the only one.
pub(super) struct Gpu {
    context: Context,
    tensors: Tensors,
    nccl: Result<Library, GpuError>,
}

impl Gpu {
    /// Opens it for what is not done by burn.
    pub(super) fn open(device: Device) -> Result<Self, String> {
        let context = Driver::load().and_then(|driver| driver.context(0)).map_err(|e| e.to_string())?;
        Ok(Self { context, tensors: Tensors(device), nccl: Library::load() })
    }

    /// Bytes that are free when burn has given back what it keeps for later. `None` if the driver does not tell.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        dg_cuda::device::give_back(&self.tensors.0);
        self.context.memory().ok().map(|(free, _)| free)
    }

    /// NCCL if all ranks have it; otherwise the host's plane, through copies in the host's memory.
    pub(super) fn join(&self, plane: Arc<dyn Communicator>) -> Result<Arc<dyn Communicator>, CommError> {
        let arena = Arc::new(self.tensors.clone());
        if let Some(library) = self.agreed(&*plane)? {
            let comm = Nccl::new(plane, library, &self.context, Some(arena), Options::default())?;
            return Ok(Arc::new(comm));
        }
        Ok(Arc::new(HostStaged::new(plane, Arc::new(Upload(arena)))))
    }

    /// NCCL, if there is somebody to speak to and all ranks have it.
    fn agreed(&self, plane: &dyn Communicator) -> Result<Option<Library>, CommError> {
        if plane.size() < 2 {
            return Ok(None);
        }
        let own = self.nccl.as_ref().ok();
        let versions =
            dg_nccl::agree::versions(plane, own.map(Library::version), Deadline::after(AGREE_MAX))?;
        if let Some(rank) = versions.iter().position(Option::is_none) {
            let why = match &self.nccl {
                Err(error) => error.to_string(),
                Ok(_) => format!("rank {rank} of the job has no NCCL"),
            };
            tracing::warn!("tensors go through the host, which is slow: {why}");
            return Ok(None);
        }
        let different: BTreeSet<_> = versions.iter().flatten().collect();
        if different.len() > 1 {
            let different: Vec<String> = different.iter().map(ToString::to_string).collect();
            tracing::warn!("the ranks of the job have different versions of NCCL: {}", different.join(", "));
        }
        Ok(own.copied())
    }
}

/// The others were there a moment ago.
const AGREE_MAX: Duration = Duration::from_secs(20);
