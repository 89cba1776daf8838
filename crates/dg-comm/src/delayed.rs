//! A communicator that is late at random, to find schedules that only work by luck.

use crate::communicator::forward_to_inner;
use crate::{Block, BlockShape, Call, Communicator, Deadline, Pending, Receiving, Result};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

/// Sleeps before every send and every wait, for a random part of `delay_max` that follows from the seed and the rank.
///
/// It disturbs single messages: collectives run on top of it, also where the communicator inside has its own.
pub struct Delayed<C> {
    inner: C,
    delay_max: Duration,
    random: Mutex<u64>,
}

impl<C: Communicator> Delayed<C> {
    /// Wraps `inner`. All ranks may have the same seed.
    pub fn new(inner: C, seed: u64, delay_max: Duration) -> Self {
        let random = Mutex::new(seed ^ (inner.rank() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { inner, delay_max, random }
    }

    /// Three of four times nothing, else up to the maximum: what is always late by the same is not disturbed.
    fn next_delay(&self) -> Duration {
        let mut state = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let x = splitmix(&mut state);
        if x & 3 != 0 {
            return Duration::ZERO;
        }
        let part = (x >> 40) as f64 / (1u64 << 24) as f64;
        self.delay_max.mul_f64(part)
    }
}

impl<C: Communicator> Communicator for Delayed<C> {
    forward_to_inner!();

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        sleep(self.next_delay(), call.deadline());
        self.inner.send(to, call, block)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        let pending = self.inner.post_recv(from, call, shape)?;
        Ok(Pending::new(Late { pending, delay: self.next_delay() }))
    }
}

struct Late {
    pending: Pending,
    delay: Duration,
}

impl Receiving for Late {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        sleep(std::mem::take(&mut self.delay), deadline);
        self.pending.wait(deadline)
    }

    fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }
}

/// Not beyond the deadline: whoever is late is not to be the one that fails.
fn sleep(delay: Duration, deadline: Deadline) {
    let delay = delay.min(deadline.left() / 2);
    if !delay.is_zero() {
        std::thread::sleep(delay);
    }
}

/// The next number of the sequence splitmix64.
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
