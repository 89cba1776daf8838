//! NCCL's functions.

use crate::driver::Stream;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

const SYSTEM_ERROR: c_int = 2;
const INVALID_USAGE: c_int = 5;
const IN_PROGRESS: c_int = 7;

pub(crate) static VERSION: AtomicI32 = AtomicI32::new(22_703);
/// Sends after which one fails in the background; negative: none.
pub(crate) static FAIL_AFTER: AtomicI64 = AtomicI64::new(-1);
/// Communicators whose other end is never found.
pub(crate) static NO_PEER: AtomicBool = AtomicBool::new(false);
/// Communicators are not given up while this is so.
pub(crate) static KEEP: AtomicBool = AtomicBool::new(false);
/// Communicators that live.
pub(crate) static COMMS: AtomicI64 = AtomicI64::new(0);
/// Calls of a communicator after its abort, and other things that must not happen.
pub(crate) static WRONG: AtomicI64 = AtomicI64::new(0);
/// Communicators that ended in order: both ends finalized.
pub(crate) static ENDED: AtomicI64 = AtomicI64::new(0);
pub(crate) static GROUPS: AtomicI64 = AtomicI64::new(0);
pub(crate) static CALLS: AtomicI64 = AtomicI64::new(0);

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
    /// Ends that finalize; one that does so alone waits for the other.
    leaving: [bool; 2],
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
    while KEEP.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    comm.aborted.store(true, SeqCst);
    comm.meeting.changed.notify_all();
    COMMS.fetch_sub(1, SeqCst);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(comm: *mut c_void) -> c_int {
    let comm = comm_of(comm);
    comm.behind.fetch_add(1, SeqCst);
    std::thread::spawn(move || {
        let mut met = comm.meeting.state.lock().unwrap();
        met.leaving[comm.rank] = true;
        comm.meeting.changed.notify_all();
        while met.leaving != [true; 2] && !comm.aborted.load(SeqCst) {
            met = comm.meeting.changed.wait_timeout(met, Duration::from_millis(1)).unwrap().0;
        }
        comm.behind.fetch_sub(1, SeqCst);
    });
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *mut c_void) -> c_int {
    if comm_of(comm).behind.load(SeqCst) == 0 {
        ENDED.fetch_add(1, SeqCst);
    }
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
