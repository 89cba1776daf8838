//! The driver's functions.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

pub(crate) static ALLOCATED: AtomicI64 = AtomicI64::new(0);
static SIZES: Mutex<Option<HashMap<u64, usize>>> = Mutex::new(None);
/// Bytes that can be allocated at most.
pub(crate) static MEMORY: AtomicI64 = AtomicI64::new(8 << 30);

pub(crate) type Work = Box<dyn FnOnce() + Send>;

pub(crate) struct Stream(pub(crate) Sender<Work>);

/// Done when the flag says so; never recorded counts as done.
struct Event(Mutex<Arc<AtomicBool>>);

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    *version = 12_080;
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    *count = 2;
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    *device = ordinal;
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> c_int {
    let text = format!("Stub {device}");
    let bytes = text.bytes().take(length as usize - 1).chain([0]);
    bytes.enumerate().for_each(|(i, byte)| *name.add(i) = byte as c_char);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: c_int) -> c_int {
    *bytes = MEMORY.load(SeqCst) as usize;
    0
}

/// Compute capability 9.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> c_int {
    *value = if attribute == 75 { 9 } else { 0 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> c_int {
    *context = (0x1000 + device as usize) as *mut c_void;
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    if context.is_null() { 201 } else { 0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    *total = MEMORY.load(SeqCst) as usize;
    *free = (MEMORY.load(SeqCst) - ALLOCATED.load(SeqCst)).max(0) as usize;
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> c_int {
    if ALLOCATED.load(SeqCst) + bytes as i64 > MEMORY.load(SeqCst) {
        return 2;
    }
    ALLOCATED.fetch_add(bytes as i64, SeqCst);
    // Rubbish, as on a device.
    let memory = vec![0xa5_u64; bytes.div_ceil(8)].into_boxed_slice();
    *at = Box::into_raw(memory).cast::<u64>() as u64;
    SIZES.lock().unwrap().get_or_insert_default().insert(*at, bytes);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(at: u64) -> c_int {
    let Some(bytes) = SIZES.lock().unwrap().get_or_insert_default().remove(&at) else { return 1 };
    ALLOCATED.fetch_sub(bytes as i64, SeqCst);
    drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(at as *mut u64, bytes.div_ceil(8))));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> c_int {
    std::ptr::copy_nonoverlapping(from.cast::<u8>(), to as *mut u8, bytes);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> c_int {
    std::ptr::copy_nonoverlapping(from as *const u8, to.cast::<u8>(), bytes);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _: c_uint) -> c_int {
    let (sender, work) = channel::<Work>();
    std::thread::spawn(move || work.into_iter().for_each(|work| work()));
    *stream = Box::into_raw(Box::new(Stream(sender))).cast();
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> c_int {
    drop(Box::from_raw(stream.cast::<Stream>()));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _: c_uint) -> c_int {
    *event = Box::into_raw(Box::new(Event(Mutex::new(Arc::new(AtomicBool::new(true)))))).cast();
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int {
    let flag = Arc::new(AtomicBool::new(false));
    *(*event.cast::<Event>()).0.lock().unwrap() = flag.clone();
    let _ = (*stream.cast::<Stream>()).0.send(Box::new(move || flag.store(true, SeqCst)));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *mut c_void) -> c_int {
    if (*event.cast::<Event>()).0.lock().unwrap().load(SeqCst) { 0 } else { 600 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> c_int {
    drop(Box::from_raw(event.cast::<Event>()));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: c_int, text: *mut *const c_char) -> c_int {
    *text = if code == 2 { c"out of memory".as_ptr() } else { c"stub error".as_ptr() };
    0
}
