//! What the words of a device mean for the attempt.

use crate::logic::cluster::epoch::Trouble;
use dg_comm::CommError;
use dg_flux::{DeviceKind, RunError};

/// What a rank with a device of this kind tells of an error, if the attempt is planned to take `need` bytes of it.
pub(super) fn trouble(kind: DeviceKind, need: u64, text: String) -> Trouble {
    match kind {
        DeviceKind::Cuda if is_out_of_memory(&text) => Trouble::Oom { need, free: None },
        DeviceKind::Cuda if is_device_lost(&text) => Trouble::DeviceLost,
        DeviceKind::Cpu | DeviceKind::Cuda => Trouble::Error(text),
    }
}

/// The same of a run that ended early. What another rank says of its device is told by that one.
pub(super) fn of_run(kind: DeviceKind, need: u64, me: usize, error: &RunError) -> Trouble {
    match error {
        RunError::Comm(CommError::Aborted { by, cause, .. }) if by.rank == me => {
            match trouble(kind, need, cause.clone()) {
                // The first abort counts, and it may have been on behalf of another rank.
                Trouble::Error(_) => Trouble::PeerLost,
                trouble => trouble,
            }
        }
        RunError::Comm(CommError::Aborted { .. } | CommError::PeerGone { .. }) => Trouble::PeerLost,
        other => trouble(kind, need, other.to_string()),
    }
}

/// Whether a text of the CUDA driver, of NCCL or of burn says that the memory of the device is not enough.
pub(crate) fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    // 2 is CUDA_ERROR_OUT_OF_MEMORY.
    let status = text.split("failed with status ").skip(1).any(|rest| number(rest) == "2");
    status || OUT_OF_MEMORY.iter().any(|words| text.contains(words))
}

/// Whether it says that nothing runs on the device any more until the process is another one.
pub(super) fn is_device_lost(text: &str) -> bool {
    let text = text.to_lowercase();
    DEVICE_LOST.iter().any(|words| text.contains(words))
}

fn number(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default()
}

/// In lower case.
const OUT_OF_MEMORY: [&str; 8] = [
    // cudarc, and whoever prints the driver's name of the error
    "cuda_error_out_of_memory",
    // the driver's text of it, which NCCL repeats
    "out of memory",
    // cubecl
    "out of device memory",
    "out-of-memory error",
    "can't allocate buffer of size",
    "every page size the memory tracks still holds live allocations",
    "couldn't map storage for a deferred allocation",
    // dg-nccl
    "the device has no ",
];
const DEVICE_LOST: [&str; 3] = ["the device is poisoned", "the device was poisoned", "devicepoisoned"];

#[cfg(test)]
mod tests {
    use super::*;
    use dg_comm::{Op, Place, RankName};

    /// As cubecl 0.11.3, cudarc 0.19.10, the driver, NCCL and dg-nccl write them.
    const SHORT: [&str; 10] = [
        "Failed to read tensor data: An error happened during execution\nCaused by:\n  An IO error happened\nCaused by:\n  \
         out of device memory allocating 1073741824 bytes\nNo backtrace available",
        "can't allocate buffer of size: 1099511627776\nNo backtrace available",
        "Can't allocate 4096 bytes: every page size the memory tracks still holds live allocations\n",
        "couldn't map storage for a deferred allocation of 512 bytes\nCaused by:\n  no",
        "An out-of-memory error happened during launch\nCaused by:\n  out of memory launching kernel x\nBacktrace\n",
        "CUDA allocation error: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
        "cuStreamCreate failed with status 2",
        "cuStreamCreate: out of memory (CUDA error 2)",
        "ncclGroupEnd: unhandled cuda error: Cuda failure 2 'out of memory' (NCCL error 1); hint: NCCL_DEBUG=INFO tells more",
        "a tensor of 4096 bytes: the device has no 4096 bytes left (0 of 85899345920 are free)",
    ];

    #[test]
    fn too_little_memory_is_told_from_other_faults() {
        for text in SHORT {
            assert!(is_out_of_memory(text) && !is_device_lost(text), "{text}");
        }
        let others = [
            "cuStreamCreate failed with status 201",
            "the latents of image 0 are not finite after 3 steps",
            "there is no CUDA device 1: the driver has 1; hint: CUDA_VISIBLE_DEVICES hides devices",
            "the file has no tensor `x`",
        ];
        for text in others {
            assert!(!is_out_of_memory(text) && !is_device_lost(text), "{text}");
        }
        let error = dg_nccl::GpuError::OutOfMemory { need: 1, free: 0, total: 2 };
        assert!(is_out_of_memory(&error.to_string()), "{error}");
    }

    #[test]
    fn a_rank_tells_of_its_own_device_only() {
        let of = |kind, text: &str| trouble(kind, 7, text.into());
        assert_eq!(of(DeviceKind::Cuda, SHORT[0]), Trouble::Oom { need: 7, free: None });
        assert_eq!(of(DeviceKind::Cpu, SHORT[0]), Trouble::Error(SHORT[0].into()));
        let poisoned = "The device is poisoned\nCaused by:\n  cuEventSynchronize failed with status 700";
        assert_eq!(of(DeviceKind::Cuda, poisoned), Trouble::DeviceLost);
        let aborted = |by: usize, cause: &str| {
            let (place, by) = (Place::alone(Op::Check), RankName { rank: by, name: format!("rank {by}") });
            let error = RunError::Comm(CommError::Aborted { place, by, cause: cause.into() });
            of_run(DeviceKind::Cuda, 7, 1, &error)
        };
        assert_eq!(aborted(1, SHORT[8]), Trouble::Oom { need: 7, free: None });
        assert_eq!(aborted(0, SHORT[8]), Trouble::PeerLost);
        assert_eq!(aborted(1, "the attempt was stopped"), Trouble::PeerLost);
    }
}
