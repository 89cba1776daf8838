//! The part of the CUDA driver that messages need. See the CUDA Driver API reference for what each function does.
#![allow(unsafe_code, reason = "the driver is a C library")]

use crate::dynamic::Dynamic;
use crate::error::{GpuError, Result};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The driver's library.
#[derive(Clone, Copy, Debug)]
pub struct Driver(&'static Api);

/// What the driver says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Bytes of memory.
    pub bytes: u64,
    /// Compute capability, as (9, 0) for 9.0.
    pub capability: (u32, u32),
}

type Code = c_int;
type Handle = *mut c_void;

#[derive(Debug)]
struct Api {
    path: PathBuf,
    version: unsafe extern "C" fn(*mut c_int) -> Code,
    count: unsafe extern "C" fn(*mut c_int) -> Code,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> Code,
    name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Code,
    total: unsafe extern "C" fn(*mut usize, c_int) -> Code,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Code,
    retain: unsafe extern "C" fn(*mut Handle, c_int) -> Code,
    release: unsafe extern "C" fn(c_int) -> Code,
    set_current: unsafe extern "C" fn(Handle) -> Code,
    memory: unsafe extern "C" fn(*mut usize, *mut usize) -> Code,
    alloc: unsafe extern "C" fn(*mut u64, usize) -> Code,
    free: unsafe extern "C" fn(u64) -> Code,
    to_device: unsafe extern "C" fn(u64, *const c_void, usize) -> Code,
    to_host: unsafe extern "C" fn(*mut c_void, u64, usize) -> Code,
    stream: unsafe extern "C" fn(*mut Handle, c_uint) -> Code,
    stream_destroy: unsafe extern "C" fn(Handle) -> Code,
    event: unsafe extern "C" fn(*mut Handle, c_uint) -> Code,
    event_record: unsafe extern "C" fn(Handle, Handle) -> Code,
    event_query: unsafe extern "C" fn(Handle) -> Code,
    event_destroy: unsafe extern "C" fn(Handle) -> Code,
    error_string: unsafe extern "C" fn(Code, *mut *const c_char) -> Code,
}

/// Names of the driver's library.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

impl Driver {
    /// Finds and initialises the driver.
    ///
    /// # Errors
    /// [`GpuError::NoDriver`], [`GpuError::NoSymbol`], [`GpuError::Cuda`].
    pub fn load() -> Result<Self> {
        Self::load_from(&NAMES.map(PathBuf::from))
    }

    /// Loads the first of these files that is there.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_from(names: &[PathBuf]) -> Result<Self> {
        let library =
            Dynamic::first(names).map_err(|(tried, reason)| GpuError::NoDriver { tried, reason })?;
        // SAFETY: the types are those of cuda.h.
        let (init, api) = unsafe {
            let init: unsafe extern "C" fn(c_uint) -> Code = library.function("cuInit")?;
            let api = Api {
                path: library.path.clone(),
                version: library.function("cuDriverGetVersion")?,
                count: library.function("cuDeviceGetCount")?,
                device: library.function("cuDeviceGet")?,
                name: library.function("cuDeviceGetName")?,
                total: library.function("cuDeviceTotalMem_v2")?,
                attribute: library.function("cuDeviceGetAttribute")?,
                retain: library.function("cuDevicePrimaryCtxRetain")?,
                release: library.function("cuDevicePrimaryCtxRelease_v2")?,
                set_current: library.function("cuCtxSetCurrent")?,
                memory: library.function("cuMemGetInfo_v2")?,
                alloc: library.function("cuMemAlloc_v2")?,
                free: library.function("cuMemFree_v2")?,
                to_device: library.function("cuMemcpyHtoD_v2")?,
                to_host: library.function("cuMemcpyDtoH_v2")?,
                stream: library.function("cuStreamCreate")?,
                stream_destroy: library.function("cuStreamDestroy_v2")?,
                event: library.function("cuEventCreate")?,
                event_record: library.function("cuEventRecord")?,
                event_query: library.function("cuEventQuery")?,
                event_destroy: library.function("cuEventDestroy_v2")?,
                error_string: library.function("cuGetErrorString")?,
            };
            (init, api)
        };
        let driver = Self(Box::leak(Box::new(api)));
        // SAFETY: its only argument must be 0.
        driver.check("cuInit", unsafe { init(0) })?;
        Ok(driver)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The newest version of CUDA that it speaks: 1000 × major + 10 × minor.
    ///
    /// # Errors
    /// [`GpuError::Cuda`].
    pub fn version(&self) -> Result<u32> {
        let mut version = 0;
        // SAFETY: it writes one number.
        self.check("cuDriverGetVersion", unsafe { (self.0.version)(&raw mut version) })?;
        Ok(version.unsigned_abs())
    }

    /// Number of devices.
    ///
    /// # Errors
    /// [`GpuError::Cuda`].
    pub fn count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: it writes one number.
        self.check("cuDeviceGetCount", unsafe { (self.0.count)(&raw mut count) })?;
        Ok(count.unsigned_abs())
    }

    /// Name, memory and compute capability of a device.
    ///
    /// # Errors
    /// [`GpuError::NoDevice`], [`GpuError::Cuda`].
    pub fn describe(&self, ordinal: u32) -> Result<About> {
        let device = self.device(ordinal)?;
        let (mut name, mut total) = ([0; 256], 0);
        // SAFETY: it writes at most 256 bytes with a zero at their end.
        self.check("cuDeviceGetName", unsafe { (self.0.name)(name.as_mut_ptr(), 256, device) })?;
        // SAFETY: it writes one number.
        self.check("cuDeviceTotalMem", unsafe { (self.0.total)(&raw mut total, device) })?;
        // SAFETY: the zero is there.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let [major, minor] = [CAPABILITY_MAJOR, CAPABILITY_MINOR].map(|which| self.attribute(device, which));
        Ok(About { name, bytes: total as u64, capability: (major?, minor?) })
    }

    /// The primary context of a device, which all libraries of this process share.
    ///
    /// # Errors
    /// [`GpuError::NoDevice`], [`GpuError::Cuda`].
    pub fn context(&self, ordinal: u32) -> Result<Context> {
        let device = self.device(ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        self.check("cuDevicePrimaryCtxRetain", unsafe { (self.0.retain)(&raw mut handle, device) })?;
        Ok(Context(Arc::new(Primary { driver: *self, device, handle })))
    }

    fn device(&self, ordinal: u32) -> Result<c_int> {
        let count = self.count()?;
        let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or(GpuError::NoDevice { ordinal, count })?;
        let mut device = 0;
        // SAFETY: it writes one number.
        self.check("cuDeviceGet", unsafe { (self.0.device)(&raw mut device, number) })?;
        Ok(device)
    }

    fn attribute(&self, device: c_int, attribute: c_int) -> Result<u32> {
        let mut value = 0;
        // SAFETY: it writes one number.
        let code = unsafe { (self.0.attribute)(&raw mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value.unsigned_abs())
    }

    fn check(&self, call: &'static str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: it writes a pointer to a text that stays, or null.
        let told = unsafe { (self.0.error_string)(code, &raw mut text) } == 0 && !text.is_null();
        let what = if told {
            // SAFETY: checked just above.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        } else {
            "unknown".into()
        };
        Err(GpuError::Cuda { call, what, code })
    }
}

/// A device in use. Clones are the same context.
#[derive(Clone, Debug)]
pub struct Context(Arc<Primary>);

#[derive(Debug)]
struct Primary {
    driver: Driver,
    device: c_int,
    handle: Handle,
}

// SAFETY: a context may be made current in any thread, by several at a time.
unsafe impl Send for Primary {}
// SAFETY: as above.
unsafe impl Sync for Primary {}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: retained once, and whatever lives in the context holds it.
        let _ = unsafe { (self.driver.0.release)(self.device) };
    }
}

impl Context {
    /// Makes it the context of this thread. Every function here does so.
    ///
    /// # Errors
    /// [`GpuError::Cuda`].
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the handle is a context that is retained.
        self.check("cuCtxSetCurrent", unsafe { (self.api().set_current)(self.0.handle) })
    }

    /// Bytes that are free, and all, on the device.
    ///
    /// # Errors
    /// [`GpuError::Cuda`].
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        self.check("cuMemGetInfo", unsafe { (self.api().memory)(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    fn api(&self) -> &'static Api {
        self.0.driver.0
    }

    fn check(&self, call: &'static str, code: Code) -> Result<()> {
        self.0.driver.check(call, code)
    }

    /// `bytes` bytes of it, not all zero.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Allocation> {
        self.bind()?;
        let mut at = 0;
        // SAFETY: it writes one address.
        let code = unsafe { (self.api().alloc)(&raw mut at, bytes.max(1)) };
        if code == OUT_OF_MEMORY {
            let (free, total) = self.memory().unwrap_or_default();
            return Err(GpuError::OutOfMemory { need: bytes as u64, free, total });
        }
        self.check("cuMemAlloc", code)?;
        Ok(Allocation { context: self.clone(), at, bytes })
    }

    /// A stream that waits for no other.
    pub(crate) fn stream(&self) -> Result<Stream> {
        self.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        self.check("cuStreamCreate", unsafe { (self.api().stream)(&raw mut handle, STREAM_NON_BLOCKING) })?;
        Ok(Stream { context: self.clone(), handle })
    }
}

const OUT_OF_MEMORY: Code = 2;
const NOT_READY: Code = 600;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`, and `…_MINOR`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct Allocation {
    context: Context,
    at: u64,
    bytes: usize,
}

impl Allocation {
    pub(crate) fn address(&self) -> u64 {
        self.at
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from the host to its beginning.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes, "{} bytes into {}", bytes.len(), self.bytes);
        self.context.bind()?;
        // SAFETY: both ends are that long; the call returns when the host's memory has been read.
        let code = unsafe { (self.context.api().to_device)(self.at, bytes.as_ptr().cast(), bytes.len()) };
        self.context.check("cuMemcpyHtoD", code)
    }

    /// Copies to the host.
    pub(crate) fn read(&self, from: usize, count: usize) -> Result<Vec<u8>> {
        assert!(
            from.checked_add(count).is_some_and(|end| end <= self.bytes),
            "{from} + {count} of {}",
            self.bytes
        );
        let mut bytes = vec![0_u8; count];
        self.context.bind()?;
        // SAFETY: both ends are that long; the call returns when all is written.
        let code =
            unsafe { (self.context.api().to_host)(bytes.as_mut_ptr().cast(), self.at + from as u64, count) };
        self.context.check("cuMemcpyDtoH", code)?;
        Ok(bytes)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: it was allocated, is freed once, and nothing on the device uses it: messages hold it until they
            // are through.
            let _ = unsafe { (self.context.api().free)(self.at) };
        }
    }
}

/// Work of a device that runs in order.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Context,
    handle: Handle,
}

// SAFETY: streams may be used by any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    /// A mark behind the work that it has.
    pub(crate) fn mark(&self) -> Result<Event> {
        self.context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        let code = unsafe { (self.context.api().event)(&raw mut handle, EVENT_DISABLE_TIMING) };
        self.context.check("cuEventCreate", code)?;
        let event = Event { context: self.context.clone(), handle };
        // SAFETY: both are of this context.
        let code = unsafe { (self.context.api().event_record)(handle, self.handle) };
        self.context.check("cuEventRecord", code)?;
        Ok(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: destroyed once; work that is still in it goes on by itself.
            let _ = unsafe { (self.context.api().stream_destroy)(self.handle) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    context: Context,
    handle: Handle,
}

// SAFETY: events may be asked by any thread.
unsafe impl Send for Event {}

impl Event {
    /// Whether the work before it is done.
    pub(crate) fn is_done(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the event lives.
        match unsafe { (self.context.api().event_query)(self.handle) } {
            NOT_READY => Ok(false),
            code => self.context.check("cuEventQuery", code).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: destroyed once; the driver lets it go when the device is past it.
            let _ = unsafe { (self.context.api().event_destroy)(self.handle) };
        }
    }
}
