//! Stands for `libcuda` and `libnccl` where there is no GPU: devices are memory of the host, streams are threads, and
//! sends and receives of the ranks of one process really move bytes.
//!
//! It is as strict as the real ones where it matters: work of a stream runs in order, a send ends when its receive has
//! taken it, calls of a group run beside each other, communicators are made in the background, and an abort frees the
//! calls of its own rank only. The functions `stub_*` break it on purpose.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn, non_snake_case, missing_docs, clippy::missing_safety_doc)]

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

// --- the driver

static ALLOCATED: AtomicI64 = AtomicI64::new(0);
static SIZES: Mutex<Option<HashMap<u64, usize>>> = Mutex::new(None);
/// Bytes that can be allocated at most.
static MEMORY: AtomicI64 = AtomicI64::new(8 << 30);

type Work = Box<dyn FnOnce() + Send>;

struct Stream(Sender<Work>);

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

// --- NCCL

const SYSTEM_ERROR: c_int = 2;
const INVALID_USAGE: c_int = 5;
const IN_PROGRESS: c_int = 7;

static VERSION: AtomicI32 = AtomicI32::new(22_304);
/// Sends after which one fails in the background; negative: none.
static FAIL_AFTER: AtomicI64 = AtomicI64::new(-1);
/// Communicators whose other end is never found.
static NO_PEER: AtomicBool = AtomicBool::new(false);
/// Communicators that live.
static COMMS: AtomicI64 = AtomicI64::new(0);
/// Calls of a communicator after its abort, and other things that must not happen.
static WRONG: AtomicI64 = AtomicI64::new(0);
static GROUPS: AtomicI64 = AtomicI64::new(0);
static CALLS: AtomicI64 = AtomicI64::new(0);

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Id([u8; 128]);

/// What the two ends of a communicator share.
#[derive(Default)]
struct Meeting {
    state: Mutex<Met>,
    changed: Condvar,
}

#[derive(Default)]
struct Met {
    present: [bool; 2],
    /// What each rank has to send, in order.
    offers: [VecDeque<Offer>; 2],
}

struct Offer {
    from: u64,
    bytes: usize,
    taken: Arc<AtomicBool>,
}

struct Comm {
    rank: usize,
    meeting: Arc<Meeting>,
    aborted: AtomicBool,
    /// Work that NCCL has not put on a stream yet.
    behind: AtomicI64,
    error: AtomicI32,
}

static MEETINGS: OnceLock<Mutex<HashMap<[u8; 128], Arc<Meeting>>>> = OnceLock::new();

enum Call {
    Send { from: u64, bytes: usize },
    Receive { to: u64, bytes: usize },
}

struct Begun {
    call: Call,
    comm: Arc<Comm>,
    stream: usize,
}

thread_local! {
    static GROUP: RefCell<Option<Vec<Begun>>> = const { RefCell::new(None) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    *version = VERSION.load(SeqCst);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut Id) -> c_int {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0xee; 128];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, SeqCst).to_le_bytes());
    *id = Id(bytes);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut *mut c_void,
    ranks: c_int,
    id: Id,
    rank: c_int,
    config: *const u8,
) -> c_int {
    let blocking = *config.add(16).cast::<c_int>();
    let magic = *config.add(8).cast::<u32>();
    if ranks != 2 || !(0..2).contains(&rank) || blocking != 0 || magic != 0xcafe_beef {
        return INVALID_USAGE;
    }
    let meeting = MEETINGS.get_or_init(Mutex::default).lock().unwrap().entry(id.0).or_default().clone();
    let rank = rank as usize;
    let new = Arc::new(Comm {
        rank,
        meeting: meeting.clone(),
        aborted: AtomicBool::new(false),
        behind: AtomicI64::new(1),
        error: AtomicI32::new(0),
    });
    COMMS.fetch_add(1, SeqCst);
    let waits = new.clone();
    *comm = Arc::into_raw(new).cast_mut().cast();
    std::thread::spawn(move || {
        let mut met = meeting.state.lock().unwrap();
        // An identity serves one communicator.
        if met.present[rank] {
            waits.error.store(INVALID_USAGE, SeqCst);
        }
        met.present[rank] = true;
        meeting.changed.notify_all();
        while (NO_PEER.load(SeqCst) || met.present != [true; 2]) && !waits.aborted.load(SeqCst) {
            met = meeting.changed.wait_timeout(met, Duration::from_millis(1)).unwrap().0;
        }
        waits.behind.fetch_sub(1, SeqCst);
    });
    IN_PROGRESS
}

unsafe fn comm_of(comm: *mut c_void) -> Arc<Comm> {
    Arc::increment_strong_count(comm.cast::<Comm>());
    let comm = Arc::from_raw(comm.cast::<Comm>());
    if comm.aborted.load(SeqCst) {
        WRONG.fetch_add(1, SeqCst);
    }
    comm
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: *mut c_void, state: *mut c_int) -> c_int {
    let comm = comm_of(comm);
    let error = comm.error.load(SeqCst);
    *state = if error != 0 {
        error
    } else if comm.behind.load(SeqCst) > 0 {
        IN_PROGRESS
    } else {
        0
    };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *mut c_void) -> c_int {
    let comm = comm_of(comm);
    comm.aborted.store(true, SeqCst);
    comm.meeting.changed.notify_all();
    COMMS.fetch_sub(1, SeqCst);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(comm: *mut c_void) -> c_int {
    drop(comm_of(comm));
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *mut c_void) -> c_int {
    ncclCommAbort(comm)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: *const c_void,
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    begin(Call::Send { from: from as u64, bytes: count }, dtype, peer, comm, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    to: *mut c_void,
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    begin(Call::Receive { to: to as u64, bytes: count }, dtype, peer, comm, stream)
}

unsafe fn begin(call: Call, dtype: c_int, peer: c_int, comm: *mut c_void, stream: *mut c_void) -> c_int {
    let comm = comm_of(comm);
    // In use before it is ready, or with the wrong peer.
    if dtype != 1 || peer != 1 - comm.rank as c_int || comm.behind.load(SeqCst) > 0 {
        WRONG.fetch_add(1, SeqCst);
        return INVALID_USAGE;
    }
    CALLS.fetch_add(1, SeqCst);
    let begun = Begun { call, comm, stream: stream as usize };
    let rest = GROUP.with_borrow_mut(|group| match group {
        Some(group) => {
            group.push(begun);
            None
        }
        None => Some(begun),
    });
    launch(rest.into_iter().collect());
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> c_int {
    GROUP.with_borrow_mut(|group| {
        group.get_or_insert_default();
    });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> c_int {
    GROUPS.fetch_add(1, SeqCst);
    launch(GROUP.with_borrow_mut(Option::take).unwrap_or_default());
    IN_PROGRESS
}

/// Puts calls on their streams a moment later: those of one stream run beside each other.
unsafe fn launch(calls: Vec<Begun>) {
    let mut by_stream: HashMap<usize, Vec<Begun>> = HashMap::new();
    for begun in calls {
        begun.comm.behind.fetch_add(1, SeqCst);
        by_stream.entry(begun.stream).or_default().push(begun);
    }
    for (stream, calls) in by_stream {
        let queue = (*(stream as *mut Stream)).0.clone();
        std::thread::spawn(move || {
            let comms: Vec<_> = calls.iter().map(|begun| begun.comm.clone()).collect();
            let _ = queue.send(Box::new(move || run(calls)));
            for comm in comms {
                comm.behind.fetch_sub(1, SeqCst);
            }
        });
    }
}

/// Offers everything, then takes what is to be taken, then waits until the other end has taken.
fn run(calls: Vec<Begun>) {
    let mut offered = Vec::new();
    for begun in &calls {
        if let Call::Send { from, bytes } = begun.call {
            if FAIL_AFTER.load(SeqCst) >= 0 && FAIL_AFTER.fetch_sub(1, SeqCst) == 0 {
                begun.comm.error.store(SYSTEM_ERROR, SeqCst);
                continue;
            }
            let taken = Arc::new(AtomicBool::new(false));
            offered.push((begun.comm.clone(), taken.clone()));
            let mut met = begun.comm.meeting.state.lock().unwrap();
            met.offers[begun.comm.rank].push_back(Offer { from, bytes, taken });
            begun.comm.meeting.changed.notify_all();
        }
    }
    for begun in &calls {
        let Call::Receive { to, bytes } = begun.call else { continue };
        let comm = &begun.comm;
        let mut met = comm.meeting.state.lock().unwrap();
        while !comm.aborted.load(SeqCst) {
            if let Some(offer) = met.offers[1 - comm.rank].pop_front() {
                if offer.bytes != bytes {
                    WRONG.fetch_add(1, SeqCst);
                    comm.error.store(INVALID_USAGE, SeqCst);
                }
                // SAFETY: both are memory of this process that is held until the streams are past it.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        offer.from as *const u8,
                        to as *mut u8,
                        bytes.min(offer.bytes),
                    );
                }
                offer.taken.store(true, SeqCst);
                comm.meeting.changed.notify_all();
                break;
            }
            met = comm.meeting.changed.wait_timeout(met, Duration::from_millis(1)).unwrap().0;
        }
    }
    for (comm, taken) in offered {
        let mut met = comm.meeting.state.lock().unwrap();
        while !taken.load(SeqCst) && !comm.aborted.load(SeqCst) {
            met = comm.meeting.changed.wait_timeout(met, Duration::from_millis(1)).unwrap().0;
        }
        // What is given up is not read any more.
        met.offers[comm.rank].retain(|offer| !Arc::ptr_eq(&offer.taken, &taken));
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    match code {
        SYSTEM_ERROR => c"unhandled system error".as_ptr(),
        INVALID_USAGE => c"invalid usage".as_ptr(),
        _ => c"stub error".as_ptr(),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(comm: *mut c_void) -> *const c_char {
    if comm.is_null() { std::ptr::null() } else { c"the stub's cable was pulled".as_ptr() }
}

// --- for tests

#[unsafe(no_mangle)]
pub extern "C" fn stub_version(version: c_int) {
    VERSION.store(version, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_fail_after(sends: i64) {
    FAIL_AFTER.store(sends, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_no_peer(yes: bool) {
    NO_PEER.store(yes, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_memory(bytes: i64) {
    MEMORY.store(bytes, SeqCst);
}

/// Communicators, allocated bytes, wrong calls, groups and calls so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stub_counts(counts: *mut i64) {
    let all = [&COMMS, &ALLOCATED, &WRONG, &GROUPS, &CALLS];
    all.iter().enumerate().for_each(|(i, count)| *counts.add(i) = count.load(SeqCst));
}
