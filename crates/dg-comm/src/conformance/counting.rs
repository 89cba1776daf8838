//! Counters, compared with those of a wrapper that keeps its own.

use super::Suite;
use super::data::word;
use super::harness::{Outcome, ensure, run};
use super::schedule::Program;
use crate::communicator::forward_to_inner;
use crate::{Block, BlockShape, Call, Class, Communicator, Pending, Reduce, Result, Tag};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A communicator that counts by itself what it hands over, by the description of each call. Shares no code with
/// [`crate::Ledger`]; also for tests that compare bytes with a plan.
pub struct Counted {
    inner: Arc<dyn Communicator>,
    sent: Mutex<Sent>,
}

/// Bytes and messages by class and peer.
type Sent = BTreeMap<(Class, usize), (u64, u64)>;

impl Counted {
    /// Wraps `inner`; nothing is counted yet.
    pub fn new(inner: Arc<dyn Communicator>) -> Self {
        Self { inner, sent: Mutex::default() }
    }

    /// Bytes and messages by class and peer.
    pub fn sent(&self) -> BTreeMap<(Class, usize), (u64, u64)> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, call: &Call, to: usize, block: &Block) {
        let bytes = block.len() as u64 * if block.as_bf16().is_some() { 2 } else { 4 };
        if to != self.rank() && to < self.size() {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = sent.entry((call.envelope().class, self.world_rank(to))).or_default();
            *entry = (entry.0 + bytes, entry.1 + 1);
        }
    }

    fn count_each(&self, call: &Call, block: &Block) {
        (0..self.size()).for_each(|to| self.count(call, to, block));
    }
}

impl Communicator for Counted {
    forward_to_inner!();

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        self.count(call, to, &block);
        self.inner.send(to, call, block)
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        self.inner.post_recv(from, call, shape)
    }

    fn exchange(
        &self,
        call: &Call,
        sends: Vec<(usize, Block)>,
        receives: &[(usize, BlockShape)],
    ) -> Result<Vec<Block>> {
        sends.iter().for_each(|(to, block)| self.count(call, *to, block));
        self.inner.exchange(call, sends, receives)
    }

    fn all_to_all(&self, call: &Call, blocks: Vec<Block>, lengths: &[usize]) -> Result<Vec<Block>> {
        blocks.iter().enumerate().for_each(|(to, block)| self.count(call, to, block));
        self.inner.all_to_all(call, blocks, lengths)
    }

    fn all_gather(&self, call: &Call, block: Block, lengths: &[usize]) -> Result<Vec<Block>> {
        self.count_each(call, &block);
        self.inner.all_gather(call, block, lengths)
    }

    fn broadcast(&self, call: &Call, root: usize, block: Option<Block>, shape: BlockShape) -> Result<Block> {
        if let Some(block) = &block {
            self.count_each(call, block);
        }
        self.inner.broadcast(call, root, block, shape)
    }

    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        self.count_each(call, &block);
        self.inner.reduce(call, how, block)
    }

    fn barrier(&self, call: &Call) -> Result<()> {
        self.count_each(call, &Block::from_f32(Vec::new()));
        self.inner.barrier(call)
    }
}

/// Bytes and messages of random programs equal the wrapper's, and who waits for a rank is told so.
pub(super) fn counters(suite: &Suite) -> Outcome {
    let patience = suite.patience;
    for round in 0..8 {
        let program = Arc::new(Program::random(word(&[suite.seed, round])));
        let counted: Vec<_> =
            suite.make(program.size).into_iter().map(|comm| Arc::new(Counted::new(comm))).collect();
        let ranks = counted.iter().map(|comm| comm.clone() as Arc<dyn Communicator>).collect();
        run(ranks, patience * 4, move |comm| {
            program.check(&comm, patience)?;
            Ok(comm.finish()?)
        })?;
        for (rank, comm) in counted.iter().enumerate() {
            let counters = comm.counters();
            let tallies = counters.iter().filter(|(.., tally)| tally.messages > 0);
            let told: Sent = tallies.map(|(class, peer, t)| ((class, peer), (t.bytes, t.messages))).collect();
            let sent = comm.sent();
            ensure(told == sent, || {
                format!(
                    "rank {rank} sent {sent:?} ((class, peer): (bytes, messages)), and its counters say {told:?}"
                )
            })?;
        }
    }
    waiting(suite)
}

fn waiting(suite: &Suite) -> Outcome {
    let (patience, pause) = (suite.patience, Duration::from_millis(80));
    let outcome = run(suite.make(2), patience * 2, move |comm| {
        let call = |class| Call::within(patience, class, Tag::new(1));
        if comm.rank() == 0 {
            std::thread::sleep(pause);
            comm.send(1, &call(Class::RingKv), Block::from_f32(vec![1.0]))?;
            comm.send(1, &call(Class::PipeText), Block::from_f32(vec![1.0]))?;
        } else {
            comm.recv(0, &call(Class::RingKv), BlockShape::f32(1))?;
            let counters = comm.counters();
            let (waited, other) = (
                counters.tally(Class::RingKv, comm.world_rank(0)).wait,
                counters.class(Class::PipeText).wait,
            );
            ensure(waited > pause / 4 && waited < pause + patience, || {
                format!("waited {pause:?} for ring_kv of rank 0, and the counters say {waited:?}")
            })?;
            ensure(other < pause / 4, || {
                format!("did not wait for pipe_text, and the counters say {other:?}")
            })?;
            comm.recv(0, &call(Class::PipeText), BlockShape::f32(1))?;
        }
        Ok(comm.finish()?)
    });
    outcome.map(drop)
}
