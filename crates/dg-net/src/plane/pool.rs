//! Memory of large messages, used again. Fresh memory is a page fault for every 4 KiB, which halves the speed of a
//! unix socket.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Buffers that nobody uses, the oldest first. At most [`POOL_BYTES_MAX`] together.
#[derive(Default)]
pub(super) struct Pool(Mutex<VecDeque<Vec<u8>>>);

impl Pool {
    /// `len` bytes as `fill` leaves them, which sees zeros or the bytes of an earlier message. The memory comes back
    /// when the last clone of the result is dropped.
    ///
    /// # Errors
    /// Those of `fill`.
    pub(super) fn filled<E>(
        self: &Arc<Self>,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        if len < POOLED_BYTES_MIN {
            let mut buffer = vec![0; len];
            fill(&mut buffer)?;
            return Ok(Bytes::from(buffer));
        }
        let buffer = self.take(len).unwrap_or_else(|| vec![0; len]);
        let mut lent = Lent { buffer, len, pool: Arc::downgrade(self) };
        fill(lent.buffer.get_mut(..len).unwrap_or_default())?;
        Ok(Bytes::from_owner(lent))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest that is large enough, and not much too large.
    fn take(&self, len: usize) -> Option<Vec<u8>> {
        let mut buffers = self.lock();
        let fitting =
            buffers.iter().enumerate().filter(|(_, buffer)| (len..=2 * len).contains(&buffer.len()));
        let (at, _) = fitting.min_by_key(|(_, buffer)| buffer.len())?;
        buffers.remove(at)
    }

    fn put(&self, buffer: Vec<u8>) {
        let mut buffers = self.lock();
        buffers.push_back(buffer);
        let mut total: usize = buffers.iter().map(Vec::len).sum();
        while total > POOL_BYTES_MAX {
            total -= buffers.pop_front().map_or(total, |buffer| buffer.len());
        }
    }
}

/// A buffer while a message is in it.
struct Lent {
    buffer: Vec<u8>,
    len: usize,
    pool: Weak<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.put(std::mem::take(&mut self.buffer));
        }
    }
}

/// Smaller ones cost no page faults to speak of.
const POOLED_BYTES_MIN: usize = 128 << 10;

/// What a rank keeps: about two tensors of a large picture.
const POOL_BYTES_MAX: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &Arc<Pool>, len: usize, value: u8) -> Bytes {
        let fill = |bytes: &mut [u8]| {
            bytes.fill(value);
            Ok::<_, ()>(())
        };
        pool.filled(len, fill).unwrap()
    }

    #[test]
    fn memory_is_used_again_when_nobody_reads_it() {
        let pool = Arc::new(Pool::default());
        let first = filled(&pool, 1 << 20, 1);
        let (at, part) = (first.as_ptr(), first.slice(5..10));
        drop(first);
        assert_ne!(filled(&pool, 1 << 20, 2).as_ptr(), at, "a slice still reads it");
        assert_eq!(part[..], [1; 5]);
        drop(part);
        let again: Vec<_> = (0..2).map(|_| filled(&pool, (1 << 20) - 7, 3)).collect();
        assert!(again.iter().any(|bytes| bytes.as_ptr() == at && bytes.len() == (1 << 20) - 7));
        let failed = pool.filled(1 << 20, |_| Err("gone"));
        assert_eq!(failed.unwrap_err(), "gone");
    }

    #[test]
    fn little_is_kept() {
        let pool = Arc::new(Pool::default());
        let kept = || pool.lock().iter().map(Vec::len).sum::<usize>();
        drop((0..40).map(|_| filled(&pool, 8 << 20, 1)).collect::<Vec<_>>());
        assert_eq!(kept(), POOL_BYTES_MAX);
        drop(filled(&pool, 1 << 10, 1));
        assert_eq!(kept(), POOL_BYTES_MAX);
        drop(pool.filled(POOL_BYTES_MAX + 1, |_| Ok::<_, ()>(())));
        assert_eq!(kept(), 0, "one that is too large takes the place of all, and goes");
    }
}
