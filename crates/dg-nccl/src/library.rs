//! NCCL's library. See `nccl.h` and the NCCL user guide for what each function does.
#![allow(unsafe_code, reason = "NCCL is a C library")]

use crate::dynamic::Dynamic;
use crate::error::{GpuError, Result, Version};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};

/// NCCL's library, found and new enough.
#[derive(Clone, Copy, Debug)]
pub struct Library(&'static Api);

type Code = c_int;
type Handle = *mut c_void;

#[derive(Debug)]
struct Api {
    path: PathBuf,
    version: Version,
    unique_id: unsafe extern "C" fn(*mut RawId) -> Code,
    init: unsafe extern "C" fn(*mut Handle, c_int, RawId, c_int, *mut Config) -> Code,
    async_error: unsafe extern "C" fn(Handle, *mut Code) -> Code,
    abort: unsafe extern "C" fn(Handle) -> Code,
    finalize: unsafe extern "C" fn(Handle) -> Code,
    destroy: unsafe extern "C" fn(Handle) -> Code,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Handle) -> Code,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
}

/// Number under which the two ends of a communicator find each other: made by one end, told to the other. It holds the
/// address of a socket of the process that made it, and serves one communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RawId(pub(crate) [u8; ID_BYTES]);

/// `NCCL_UNIQUE_ID_BYTES`.
pub(crate) const ID_BYTES: usize = 128;

/// `ncclConfig_t` as of 2.18; later versions read the fields that a configuration of this size and version has.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;
/// Version of NCCL whose configuration [`Config`] is.
const CONFIG_VERSION: c_uint = 21_800;
/// The oldest that will do. One thread has several non-blocking communicators and groups in flight here, and before 2.27
/// NCCL kept one job of a group per thread: a second one is refused (2.18) or spoils the first.
pub const OLDEST: Version = Version(22_700);
const UINT8: c_int = 1;
const IN_PROGRESS: Code = 7;
/// Blocks of threads for one direction between two ranks, so that all directions fit on the device beside each other.
const CTAS_MAX: c_int = 4;

/// The names that NCCL has: packages and wheels have the first, development packages the second too.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Names another file.
pub const LIBRARY_VARIABLE: &str = "DG_NCCL_LIBRARY";

impl Library {
    /// Finds NCCL: the file that `DG_NCCL_LIBRARY` names, or one on the system's library path.
    ///
    /// # Errors
    /// [`GpuError::NoNccl`], [`GpuError::NoSymbol`], [`GpuError::TooOld`].
    pub fn load() -> Result<Self> {
        match std::env::var_os(LIBRARY_VARIABLE).filter(|name| !name.is_empty()) {
            Some(name) => Self::load_from(&[name.into()]),
            None => Self::load_from(&NAMES.map(PathBuf::from)),
        }
    }

    /// Loads the first of these files that is there.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_from(names: &[PathBuf]) -> Result<Self> {
        let library = Dynamic::first(names).map_err(|(tried, reason)| GpuError::NoNccl { tried, reason })?;
        // SAFETY: the type is that of nccl.h.
        let version: unsafe extern "C" fn(*mut c_int) -> Code =
            unsafe { library.function("ncclGetVersion")? };
        let mut have = Version(0);
        // SAFETY: it writes one number.
        let code = unsafe { version(&raw mut have.0) };
        if code != 0 {
            return Err(GpuError::Nccl { call: "ncclGetVersion", what: "failed".into(), code });
        }
        if have < OLDEST {
            return Err(GpuError::TooOld { library: library.path.clone(), have, need: OLDEST });
        }
        // SAFETY: the types are those of nccl.h.
        let api = unsafe {
            Api {
                path: library.path.clone(),
                version: have,
                unique_id: library.function("ncclGetUniqueId")?,
                init: library.function("ncclCommInitRankConfig")?,
                async_error: library.function("ncclCommGetAsyncError")?,
                abort: library.function("ncclCommAbort")?,
                finalize: library.function("ncclCommFinalize")?,
                destroy: library.function("ncclCommDestroy")?,
                send: library.function("ncclSend")?,
                receive: library.function("ncclRecv")?,
                group_start: library.function("ncclGroupStart")?,
                group_end: library.function("ncclGroupEnd")?,
                error_string: library.function("ncclGetErrorString")?,
                last_error: library.function("ncclGetLastError")?,
            }
        };
        Ok(Self(Box::leak(Box::new(api))))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.0.version
    }

    pub(crate) fn unique_id(&self) -> Result<RawId> {
        let mut id = RawId([0; ID_BYTES]);
        // SAFETY: it writes that many bytes.
        let code = unsafe { (self.0.unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", code, std::ptr::null_mut()).map(|()| id)
    }

    /// Begins to make rank `rank` of a communicator of two. It is not usable until [`Raw::is_idle`].
    pub(crate) fn begin(&self, id: RawId, rank: c_int) -> Result<Raw> {
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: CONFIG_VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: CTAS_MAX,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: it reads the configuration and writes one handle.
        let code = unsafe { (self.0.init)(&raw mut handle, 2, id, rank, &raw mut config) };
        let raw = Raw { library: *self, handle, is_over: handle.is_null() };
        self.check("ncclCommInitRankConfig", code, handle)?;
        Ok(raw)
    }

    /// Makes the sends and receives that `calls` begins one launch.
    pub(crate) fn group(&self, calls: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: no arguments; ended just below.
        self.check("ncclGroupStart", unsafe { (self.0.group_start)() }, std::ptr::null_mut())?;
        let called = calls();
        // SAFETY: as above.
        let ended = self.check("ncclGroupEnd", unsafe { (self.0.group_end)() }, std::ptr::null_mut());
        called.and(ended)
    }

    /// In progress is no error: it is asked for again.
    fn check(&self, call: &'static str, code: Code, handle: Handle) -> Result<()> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        let text = |pointer: *const c_char| {
            // SAFETY: NCCL gives texts that stay, or null.
            (!pointer.is_null())
                .then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned())
        };
        // SAFETY: any number may be asked for.
        let name = text(unsafe { (self.0.error_string)(code) }).unwrap_or_else(|| "unknown".into());
        // SAFETY: a communicator or null, which stands for what happened outside of one.
        let last = text(unsafe { (self.0.last_error)(handle) }).filter(|last| !last.is_empty());
        let what = last.map_or_else(|| name.clone(), |last| format!("{name}; {last}"));
        Err(GpuError::Nccl { call, what, code })
    }
}

/// One end of a communicator of two ranks. Used by one thread.
#[derive(Debug)]
pub(crate) struct Raw {
    library: Library,
    handle: Handle,
    is_over: bool,
}

// SAFETY: it may move to another thread; it is not shared.
unsafe impl Send for Raw {}

impl Raw {
    /// Whether NCCL has done what it was told last. Errors of the network or of the other end appear here.
    pub(crate) fn is_idle(&self) -> Result<bool> {
        let mut state = 0;
        // SAFETY: the communicator lives; it writes one number.
        let code = unsafe { (self.library.0.async_error)(self.handle, &raw mut state) };
        self.library.check("ncclCommGetAsyncError", code, self.handle)?;
        self.library.check("a transfer", state, self.handle)?;
        Ok(state == 0)
    }

    /// Sends bytes at `address` of the device to the other end.
    ///
    /// # Safety
    /// They must stay as they are until the stream is past it.
    pub(crate) unsafe fn send(&self, address: u64, bytes: usize, peer: c_int, stream: Handle) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.library.0.send)(address as *const c_void, bytes, UINT8, peer, self.handle, stream)
        };
        self.library.check("ncclSend", code, self.handle)
    }

    /// Receives bytes from the other end into `address` of the device.
    ///
    /// # Safety
    /// They must belong to nobody else until the stream is past it.
    pub(crate) unsafe fn receive(
        &self,
        address: u64,
        bytes: usize,
        peer: c_int,
        stream: Handle,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.library.0.receive)(address as *mut c_void, bytes, UINT8, peer, self.handle, stream)
        };
        self.library.check("ncclRecv", code, self.handle)
    }

    /// Says that nothing more comes. It is done when [`is_idle`](Self::is_idle).
    pub(crate) fn finalize(&self) -> Result<()> {
        // SAFETY: the communicator lives.
        self.library.check("ncclCommFinalize", unsafe { (self.library.0.finalize)(self.handle) }, self.handle)
    }

    /// After [`finalize`](Self::finalize).
    pub(crate) fn destroy(mut self) {
        self.is_over = true;
        // SAFETY: it lives, and is not used any more.
        let _ = unsafe { (self.library.0.destroy)(self.handle) };
    }
}

impl Drop for Raw {
    /// Gives up whatever goes on.
    fn drop(&mut self) {
        if !self.is_over {
            // SAFETY: it lives, and is not used any more.
            let _ = unsafe { (self.library.0.abort)(self.handle) };
        }
    }
}
