//! Memory that several tasks write at the same time, each its own part.

use crate::scratch::{MARK, MARKED, check_mark};
use core::marker::PhantomData;

/// A slice of which tasks write disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only used through `part` and `pointer`, whose callers promise disjoint ranges
unsafe impl Send for Shared<'_> {}
// SAFETY: as above
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The `n` elements from `at` on. Panics when they are not all inside.
    ///
    /// # Safety
    /// They are initialised, and no other task reads or writes them while the result lives.
    pub(super) unsafe fn part(&self, at: usize, n: usize) -> &'a mut [f32] {
        assert!(at <= self.len && n <= self.len - at);
        // SAFETY: inside the slice, and exclusive by the caller's promise
        unsafe { core::slice::from_raw_parts_mut(self.start.add(at), n) }
    }

    /// A pointer to element `at`, for writes with strides. Panics unless `at + n` is inside.
    pub(super) fn pointer(&self, at: usize, n: usize) -> *mut f32 {
        assert!(at <= self.len && n <= self.len - at);
        self.start.wrapping_add(at)
    }
}

/// Memory for a result, not initialised. In this crate's own tests a mark stands behind it.
pub(super) struct Fresh {
    memory: Vec<f32>,
    len: usize,
}

impl Fresh {
    pub(super) fn new(len: usize) -> Self {
        let mut memory = Vec::with_capacity(len + MARKED);
        for x in &mut memory.spare_capacity_mut()[len..len + MARKED] {
            x.write(MARK);
        }
        Self { memory, len }
    }

    pub(super) fn shared(&mut self) -> Shared<'_> {
        let start = self.memory.spare_capacity_mut().as_mut_ptr().cast();
        Shared { start, len: self.len, slice: PhantomData }
    }

    /// # Safety
    /// Every element has been written.
    pub(super) unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: the mark was written by `new`, the rest is the caller's promise; the capacity is there
        unsafe { self.memory.set_len(self.len + MARKED) };
        check_mark(&self.memory[self.len..]);
        self.memory.truncate(self.len);
        self.memory
    }
}
