//! The suite finds what is wrong: each test breaks ranks in one way and asks which check notices.

use dg_comm::conformance::{CHECKS, Ranks, Suite};
use dg_comm::reduce::in_order;
use dg_comm::{
    Block, BlockShape, Call, CommError, Communicator, Counters, Deadline, InProcess, Pending, Receiving,
    Reduce, Result, Tag,
};
use half::bf16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing: the wrapper alone does no harm.
    Nothing,
    /// Each 9th message is never handed over.
    DropsMessages,
    /// Each 9th message is handed over twice.
    RepeatsMessages,
    /// Messages to rank 1 go to rank 2 and the other way round.
    SwapsPeers,
    /// One bit of each 9th message is turned over.
    CorruptsBytes,
    /// Sums begin with the last rank.
    ReordersReduce,
    /// Bf16 is rounded after each addition.
    RoundsEachSum,
    /// The maximum of NaN and a number is the number.
    ForgetsNan,
    /// Calls have an hour.
    IgnoresDeadlines,
    /// A wait looks at its deadline each half second.
    IsLate,
    /// One byte too many is counted.
    MiscountsBytes,
    /// Waiting takes no time.
    ForgetsWaits,
    /// Tags do not tell messages apart.
    IgnoresTags,
    /// All groups are the same.
    IgnoresGroups,
    /// What is posted last gets the first message.
    PostsLate,
    /// Nobody hears of an abort.
    IgnoresAborts,
    /// Each rank aborts for its own reason.
    RenamesAborts,
    /// A rank that was dropped still seems to be there.
    HidesDeath,
    /// A rank that has finished still seems to be there.
    HidesFinish,
    /// A message of another shape is cut, or filled up.
    AcceptsAnyShape,
    /// A barrier does not wait.
    SkipsBarriers,
    /// Empty messages are not handed over, since there is nothing in them.
    SkipsEmptyMessages,
    /// The queues have no limit.
    NeverFull,
}

struct Broken {
    inner: Arc<dyn Communicator>,
    fault: Fault,
    sent: AtomicU64,
}

impl Broken {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// The call as the fault lets it through.
    fn call(&self, call: &Call) -> Call {
        let (envelope, deadline) = (call.envelope(), call.deadline());
        match self.fault {
            Fault::IgnoresDeadlines => self.with_deadline(call, Deadline::after(Duration::from_secs(3600))),
            Fault::IgnoresTags => {
                Call::new(envelope.class, Tag::new(1), deadline).with_op(envelope.op).in_group(envelope.group)
            }
            Fault::IgnoresGroups => Call::new(envelope.class, envelope.tag, deadline).with_op(envelope.op),
            _ => *call,
        }
    }

    /// The same call on both ends, so the group may get another number.
    fn with_deadline(&self, call: &Call, deadline: Deadline) -> Call {
        let envelope = call.envelope();
        let call = Call::new(envelope.class, envelope.tag, deadline).with_op(envelope.op);
        if envelope.group == 0 { call } else { call.in_group(envelope.group) }
    }
}

impl Communicator for Broken {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn send(&self, to: usize, call: &Call, block: Block) -> Result<()> {
        let nth = self.sent.fetch_add(1, Ordering::SeqCst) % 9 == 8;
        let call = self.call(call);
        match self.fault {
            Fault::DropsMessages if nth => Ok(()),
            Fault::SkipsEmptyMessages if block.is_empty() && to != self.rank() => Ok(()),
            Fault::RepeatsMessages if nth => {
                self.inner.send(to, &call, block.clone())?;
                self.inner.send(to, &call, block)
            }
            Fault::SwapsPeers if self.size() > 2 && (to == 1 || to == 2) => {
                self.inner.send(3 - to, &call, block)
            }
            Fault::CorruptsBytes if nth => self.inner.send(to, &call, corrupt(&block)),
            Fault::NeverFull => match self.inner.send(to, &call, block) {
                Err(CommError::Deadline { .. }) => Ok(()),
                other => other,
            },
            _ => self.inner.send(to, &call, block),
        }
    }

    fn post_recv(&self, from: usize, call: &Call, shape: BlockShape) -> Result<Pending> {
        let (call, fault, inner) = (self.call(call), self.fault, self.inner.clone());
        if self.is(Fault::PostsLate) && from < self.size() {
            return Ok(Pending::new(Unposted { inner, from, call, shape }));
        }
        let pending = self.inner.post_recv(from, &call, shape)?;
        Ok(Pending::new(BrokenReceive { pending, fault, inner, from }))
    }

    fn abort(&self, cause: &str) {
        match self.fault {
            Fault::IgnoresAborts => {}
            Fault::RenamesAborts => self.inner.abort("something is wrong"),
            _ => self.inner.abort(cause),
        }
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    fn finish(&self) -> Result<()> {
        if self.is(Fault::HidesFinish) {
            std::mem::forget(self.inner.clone());
            return Ok(());
        }
        self.inner.finish()
    }

    fn counters(&self) -> Counters {
        let counters = self.inner.counters();
        let ledger = dg_comm::Ledger::default();
        for (class, peer, tally) in counters.iter() {
            for message in 0..tally.messages {
                let extra = u64::from(self.is(Fault::MiscountsBytes));
                ledger.sent(class, peer, if message == 0 { tally.bytes + extra } else { 0 });
            }
            if !self.is(Fault::ForgetsWaits) {
                ledger.waited(class, peer, tally.wait);
            }
        }
        ledger.counters()
    }

    fn reduce(&self, call: &Call, how: Reduce, block: Block) -> Result<Block> {
        if !matches!(self.fault, Fault::ReordersReduce | Fault::RoundsEachSum | Fault::ForgetsNan) {
            return self.inner.reduce(&self.call(call), how, block);
        }
        let lengths = vec![block.len(); self.size()];
        let mut blocks = self.inner.all_gather(call, block, &lengths)?;
        if self.is(Fault::ReordersReduce) {
            blocks.reverse();
        }
        if self.is(Fault::ForgetsNan) {
            blocks = blocks.iter().map(without_nan).collect();
        }
        if self.is(Fault::RoundsEachSum) {
            let first = blocks.remove(0);
            let step = |sum: Block, next| in_order(how, &[sum, next]).expect("on the host");
            return Ok(blocks.into_iter().fold(first, step));
        }
        Ok(in_order(how, &blocks).expect("on the host"))
    }

    fn barrier(&self, call: &Call) -> Result<()> {
        if self.is(Fault::SkipsBarriers) { Ok(()) } else { self.inner.barrier(&self.call(call)) }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Fault::HidesDeath) {
            std::mem::forget(self.inner.clone());
        }
    }
}

fn corrupt(block: &Block) -> Block {
    match (block.as_f32(), block.as_bf16()) {
        (Some([first, rest @ ..]), _) => {
            Block::from_f32([&[f32::from_bits(first.to_bits() ^ 1)], rest].concat())
        }
        (_, Some([rest @ .., last])) => {
            Block::from_bf16([rest, &[bf16::from_bits(last.to_bits() ^ 0x100)]].concat())
        }
        _ => block.clone(),
    }
}

fn without_nan(block: &Block) -> Block {
    let known = |x: &f32| if x.is_nan() { f32::NEG_INFINITY } else { *x };
    block.as_f32().map_or_else(|| block.clone(), |values| Block::from_f32(values.iter().map(known).collect()))
}

struct BrokenReceive {
    pending: Pending,
    fault: Fault,
    inner: Arc<dyn Communicator>,
    from: usize,
}

impl Receiving for BrokenReceive {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        let deadline = match self.fault {
            Fault::IgnoresDeadlines => Deadline::after(Duration::from_secs(3600)),
            Fault::IsLate => Deadline::after(deadline.left() + Duration::from_secs(1)),
            _ => deadline,
        };
        match self.pending.wait(deadline) {
            Err(CommError::Mismatch { expected, .. }) if self.fault == Fault::AcceptsAnyShape => {
                Ok(Block::from_f32(vec![0.0; expected.len]))
            }
            Err(CommError::Deadline { .. })
                if self.fault == Fault::SkipsEmptyMessages && self.inner.rank() != self.from =>
            {
                Ok(Block::from_f32(Vec::new()))
            }
            other => other,
        }
    }

    fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }
}

struct Unposted {
    inner: Arc<dyn Communicator>,
    from: usize,
    call: Call,
    shape: BlockShape,
}

impl Receiving for Unposted {
    fn wait(&mut self, deadline: Deadline) -> Result<Block> {
        self.inner.post_recv(self.from, &self.call, self.shape)?.wait(deadline)
    }

    fn is_ready(&self) -> bool {
        self.inner.post_recv(self.from, &self.call, self.shape).is_ok_and(|pending| pending.is_ready())
    }
}

fn suite(fault: Fault) -> Suite {
    Suite::new(move |size| -> Ranks {
        let broken = |comm| Broken { inner: Arc::new(comm), fault, sent: AtomicU64::new(0) };
        let share = |comm| Arc::new(broken(comm)) as Arc<dyn Communicator>;
        InProcess::group(size).into_iter().map(share).collect()
    })
}

/// Runs each of `checks` alone; all of them have to fail.
fn caught_by(fault: Fault, checks: &[&'static str]) {
    for check in checks {
        let name =
            CHECKS.iter().map(|(name, _)| *name).find(|name| name == check).expect("a check of the suite");
        let outcome = suite(fault).patience(PATIENCE).schedules(200).only(name).run();
        let failure = outcome.expect_err(&format!("{fault:?} should not pass {check}"));
        assert_eq!(failure.check, name);
        assert!(failure.to_string().contains(&format!("seed({})", failure.seed)), "{failure}");
    }
}

const PATIENCE: Duration = Duration::from_millis(600);

#[test]
fn wrong_messages_are_noticed() {
    caught_by(Fault::DropsMessages, &["tags_in_any_order", "schedules"]);
    caught_by(Fault::RepeatsMessages, &["tags_in_any_order", "schedules", "counters"]);
    caught_by(Fault::SwapsPeers, &["uneven_sizes", "self_sends", "concurrent_groups", "schedules"]);
    caught_by(Fault::CorruptsBytes, &["uneven_sizes", "schedules"]);
    caught_by(Fault::AcceptsAnyShape, &["wrong_messages"]);
    caught_by(Fault::SkipsEmptyMessages, &["schedules", "wrong_messages"]);
    caught_by(Fault::SkipsBarriers, &["barrier", "deadlines"]);
}

#[test]
fn wrong_matching_is_noticed() {
    caught_by(Fault::IgnoresTags, &["tags_in_any_order", "schedules"]);
    caught_by(Fault::IgnoresGroups, &["concurrent_groups"]);
    caught_by(Fault::PostsLate, &["handles", "schedules"]);
}

#[test]
fn wrong_sums_are_noticed() {
    caught_by(Fault::ReordersReduce, &["same_bits_in_rank_order", "uneven_sizes", "schedules"]);
    caught_by(Fault::RoundsEachSum, &["uneven_sizes", "schedules"]);
    caught_by(Fault::ForgetsNan, &["same_bits_in_rank_order"]);
}

#[test]
fn calls_that_hang_are_noticed() {
    caught_by(Fault::IgnoresDeadlines, &["deadlines", "late_messages"]);
    caught_by(Fault::IsLate, &["deadlines"]);
    caught_by(Fault::NeverFull, &["deadlines"]);
    caught_by(Fault::IgnoresAborts, &["abort"]);
    caught_by(Fault::RenamesAborts, &["abort"]);
    caught_by(Fault::HidesDeath, &["dead_rank"]);
    caught_by(Fault::HidesFinish, &["finished_rank", "finish_while_waiting"]);
}

#[test]
fn wrong_counters_are_noticed() {
    caught_by(Fault::MiscountsBytes, &["counters"]);
    caught_by(Fault::ForgetsWaits, &["counters"]);
}

#[test]
fn the_wrapper_alone_passes_and_what_is_left_out_is_told() {
    let summary = suite(Fault::Nothing).schedules(100).without("counters").run().unwrap();
    assert_eq!((summary.left_out, summary.done.len()), (vec!["counters"], CHECKS.len() - 1));
}
