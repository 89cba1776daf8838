//! Buffers that outlive the call: fresh memory costs more than most kernels (the system hands out
//! zeroed pages, one fault each).

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// A buffer that goes back to the pool when dropped. It starts with whatever its last user left.
pub(crate) struct Scratch {
    /// Kept at its full length, so that a later, longer use need not clear it again.
    memory: Vec<f32>,
    len: usize,
}

/// A buffer of `len` floats with unspecified values.
pub(crate) fn take(len: usize) -> Scratch {
    let mut taken = take_at_least(len + MARKED);
    taken.len = len;
    taken.memory[len..len + MARKED].fill(MARK);
    taken
}

fn take_at_least(len: usize) -> Scratch {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |v: &&(usize, usize)| v.1 >= len && v.1 <= len.saturating_mul(WASTE_MAX).max(SMALL);
    let sizes = free.iter().map(Vec::len).enumerate().collect::<Vec<_>>();
    let found = sizes.iter().filter(fits).min_by_key(|v| v.1);
    // none: the greatest that is too small makes room
    let outgrown = || sizes.iter().filter(|v| v.1 < len).max_by_key(|v| v.1);
    let mut memory = match found.or_else(outgrown) {
        Some((i, _)) => free.swap_remove(*i),
        None => Vec::new(),
    };
    drop(free);
    if memory.len() < len {
        memory = vec![0.0; len];
    }
    Scratch { memory, len }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            check_mark(&self.memory[self.len..self.len + MARKED]);
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_MAX {
            free.push(core::mem::take(&mut self.memory));
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.len]
    }
}

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Buffers kept at most; a task holds up to four.
const KEPT_MAX: usize = 256;
/// A buffer this many times too long is left for others, unless it is small.
const WASTE_MAX: usize = 4;
/// Floats up to which a buffer serves anybody.
const SMALL: usize = 1 << 16;

/// What stands behind buffers and results in this crate's own tests: a kernel that writes too far is found.
pub(crate) const MARK: f32 = 123.456;
/// Floats of it.
pub(crate) const MARKED: usize = if cfg!(test) { 64 } else { 0 };

pub(crate) fn check_mark(mark: &[f32]) {
    assert!(mark.iter().all(|x| x.to_bits() == MARK.to_bits()), "written beyond the end of a buffer");
}
