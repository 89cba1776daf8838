//! Stands for `libcuda` and `libnccl` where there is no GPU: devices are memory of the host, streams are threads, and
//! sends and receives of the ranks of one process really move bytes.
//!
//! It is as strict as the real ones where it matters: work of a stream runs in order, a send ends when its receive has
//! taken it, calls of a group run beside each other, communicators are made in the background, and an abort frees the
//! calls of its own rank only. The functions `stub_*` break it on purpose.
#![allow(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    non_snake_case,
    missing_docs,
    unreachable_pub,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    clippy::not_unsafe_ptr_arg_deref
)]

mod driver;
mod nccl;

use std::ffi::c_int;
use std::sync::atomic::Ordering::SeqCst;

#[unsafe(no_mangle)]
pub extern "C" fn stub_version(version: c_int) {
    nccl::VERSION.store(version, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_fail_after(sends: i64) {
    nccl::FAIL_AFTER.store(sends, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_no_peer(yes: bool) {
    nccl::NO_PEER.store(yes, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_keep(yes: bool) {
    nccl::KEEP.store(yes, SeqCst);
}

#[unsafe(no_mangle)]
pub extern "C" fn stub_memory(bytes: i64) {
    driver::MEMORY.store(bytes, SeqCst);
}

/// Communicators, allocated bytes, wrong calls, groups and calls so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stub_counts(counts: *mut i64) {
    let all = [&nccl::COMMS, &driver::ALLOCATED, &nccl::WRONG, &nccl::GROUPS, &nccl::CALLS, &nccl::ENDED];
    all.iter().enumerate().for_each(|(i, count)| *counts.add(i) = count.load(SeqCst));
}
