//! Random programs: every rank runs the same steps, and a model without ranks says what comes out.
//!
//! What a rank sends follows from its state, and its state from everything it has received. One wrong bit therefore
//! spoils all that comes after it, on every rank that it reaches.

use super::Suite;
use super::data::{Random, block, digest, reduced, same, word};
use super::harness::{Fault, Outcome, ensure, run};
use crate::{Block, BlockShape, Call, Class, Communicator, Group, Reduce, Tag};
use std::sync::Arc;
use std::time::Duration;

/// Runs as many programs as the suite asks for.
pub(super) fn schedules(suite: &Suite) -> Result<(), (u64, Fault)> {
    for seed in suite.seed..suite.seed + suite.schedules {
        let program = Arc::new(Program::random(seed));
        let (ranks, patience) = (suite.make(program.size), suite.patience);
        let outcome = run(ranks, patience * 4, move |comm| {
            program.check(&comm, patience)?;
            Ok(comm.finish()?)
        });
        outcome.map_err(|fault| (seed, fault))?;
    }
    Ok(())
}

/// Steps for `size` ranks and what they lead to.
pub(super) struct Program {
    pub(super) size: usize,
    seed: u64,
    /// Ranks of each group; the first is everybody.
    groups: Vec<Vec<usize>>,
    steps: Vec<Step>,
    /// By step, then by member of the step's group: what it gets.
    model: Vec<Vec<Vec<Block>>>,
}

struct Step {
    group: usize,
    class: Class,
    tag: Tag,
    action: Action,
}

/// Ranks are those of the step's group.
enum Action {
    /// Shapes by sender and receiver.
    AllToAll(Vec<Vec<BlockShape>>),
    /// Shapes by rank.
    AllGather(Vec<BlockShape>),
    Broadcast(usize, BlockShape),
    Reduce(Reduce, BlockShape),
    Barrier,
    /// Whether receives are posted before anything is sent, and the messages.
    Messages(bool, Vec<Message>),
}

struct Message {
    from: usize,
    to: usize,
    kind: u32,
    shape: BlockShape,
}

impl Program {
    /// The program of that seed.
    pub(super) fn random(seed: u64) -> Self {
        let mut random = Random(word(&[seed, 0x5eed]));
        let size = 1 + random.below(6);
        let mut groups = vec![(0..size).collect::<Vec<_>>()];
        for _ in 0..random.below(4) {
            let mut ranks: Vec<_> = (0..size).collect();
            random.shuffle(&mut ranks);
            ranks.truncate(1 + random.below(size));
            groups.push(ranks);
        }
        let steps: Vec<_> = (0..4 + random.below(12))
            .map(|_| {
                let group = random.below(groups.len());
                // Few tags, so that they come again.
                let tag = Tag::new(random.below(2) as u64)
                    .step(random.below(2) as u32)
                    .layer(random.below(2) as u32);
                let action = Action::random(&mut random, groups[group].len());
                Step { group, class: random.class(), tag, action }
            })
            .collect();
        let mut program = Self { size, seed, groups, steps, model: Vec::new() };
        program.model = program.run_model();
        program
    }

    /// Runs the program without communicators.
    fn run_model(&self) -> Vec<Vec<Vec<Block>>> {
        let mut states: Vec<u64> = (0..self.size).map(|rank| self.first_state(rank)).collect();
        let run = |(i, step): (usize, &Step)| {
            let ranks = &self.groups[step.group];
            let members: Vec<u64> = ranks.iter().map(|rank| word(&[states[*rank], i as u64])).collect();
            let results: Vec<_> = (0..ranks.len()).map(|me| step.action.model(me, &members)).collect();
            for (rank, result) in ranks.iter().zip(&results) {
                states[*rank] = next_state(states[*rank], result);
            }
            results
        };
        self.steps.iter().enumerate().map(run).collect()
    }

    /// Runs the program on one rank and compares after each step.
    pub(super) fn check(&self, comm: &Arc<dyn Communicator>, patience: Duration) -> Outcome {
        let me = comm.rank();
        let mut groups = Vec::new();
        for (i, ranks) in self.groups.iter().enumerate() {
            let member = i > 0 && ranks.contains(&me);
            groups.push(if member {
                Some(Group::new(comm.clone(), &format!("g{i}"), ranks.clone())?)
            } else {
                None
            });
        }
        let mut state = self.first_state(me);
        for (i, step) in self.steps.iter().enumerate() {
            let Some(member) = self.groups[step.group].iter().position(|rank| *rank == me) else { continue };
            let view: &dyn Communicator = match &groups[step.group] {
                Some(group) => group,
                None => &**comm,
            };
            let call = Call::within(patience, step.class, step.tag);
            let name = || {
                format!(
                    "step {i} of {}, {} in {:?}",
                    self.steps.len(),
                    step.action.name(),
                    self.groups[step.group]
                )
            };
            let got = step.action.perform(view, &call, word(&[state, i as u64]), self.seed);
            let got = got.map_err(|fault| Fault::from(format!("{}: {fault}", name())))?;
            let expected = &self.model[i][member];
            ensure(got.len() == expected.len(), || format!("{}: {} results", name(), got.len()))?;
            for (part, (expected, got)) in expected.iter().zip(&got).enumerate() {
                same(&format!("{}, part {part}", name()), expected, got)?;
            }
            state = next_state(state, &got);
        }
        Ok(())
    }

    fn first_state(&self, rank: usize) -> u64 {
        word(&[self.seed, rank as u64])
    }
}

fn next_state(state: u64, results: &[Block]) -> u64 {
    results.iter().fold(state, |state, result| word(&[state, digest(result)]))
}

impl Action {
    fn random(random: &mut Random, size: usize) -> Self {
        let dtype = random.dtype();
        let shape = |random: &mut Random| BlockShape { dtype, len: random.len() };
        match random.below(8) {
            0 | 1 => Self::AllToAll((0..size).map(|_| (0..size).map(|_| shape(random)).collect()).collect()),
            2 => Self::AllGather((0..size).map(|_| shape(random)).collect()),
            3 => Self::Broadcast(random.below(size), shape(random)),
            4 => Self::Reduce(random.reduce(), shape(random)),
            5 => Self::Barrier,
            _ => {
                let mut message = || {
                    let (from, to, kind) =
                        (random.below(size), random.below(size), random.below(KINDS as usize) as u32);
                    Message { from, to, kind, shape: BlockShape { dtype: random.dtype(), len: random.len() } }
                };
                let messages = (0..24).map(|_| message()).collect();
                Self::Messages(random.below(2) == 0, messages)
            }
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::AllToAll(_) => "all_to_all",
            Self::AllGather(_) => "all_gather",
            Self::Broadcast(..) => "broadcast",
            Self::Reduce(..) => "reduce",
            Self::Barrier => "barrier",
            Self::Messages(..) => "messages",
        }
    }

    /// What rank `me` gets if the ranks are in `states`.
    fn model(&self, me: usize, states: &[u64]) -> Vec<Block> {
        match self {
            Self::AllToAll(shapes) => {
                let from = |(from, state): (usize, &u64)| part(*state, me, shapes[from][me]);
                states.iter().enumerate().map(from).collect()
            }
            Self::AllGather(shapes) => {
                states.iter().zip(shapes).map(|(state, shape)| part(*state, 0, *shape)).collect()
            }
            Self::Broadcast(root, shape) => vec![part(states[*root], 0, *shape)],
            Self::Reduce(how, shape) => {
                let blocks: Vec<_> = states.iter().map(|state| part(*state, 0, *shape)).collect();
                vec![reduced(*how, &blocks)]
            }
            Self::Barrier => Vec::new(),
            Self::Messages(_, messages) => {
                let mine = messages.iter().enumerate().filter(|(_, message)| message.to == me);
                mine.map(|(i, message)| part(states[message.from], i, message.shape)).collect()
            }
        }
    }

    fn perform(&self, comm: &dyn Communicator, call: &Call, state: u64, seed: u64) -> Outcome<Vec<Block>> {
        let me = comm.rank();
        Ok(match self {
            Self::AllToAll(shapes) => {
                let blocks =
                    shapes[me].iter().enumerate().map(|(to, shape)| part(state, to, *shape)).collect();
                let lengths: Vec<_> = shapes.iter().map(|of_rank| of_rank[me].len).collect();
                comm.all_to_all(call, blocks, &lengths)?
            }
            Self::AllGather(shapes) => {
                let lengths: Vec<_> = shapes.iter().map(|shape| shape.len).collect();
                comm.all_gather(call, part(state, 0, shapes[me]), &lengths)?
            }
            Self::Broadcast(root, shape) => {
                let block = (*root == me).then(|| part(state, 0, *shape));
                vec![comm.broadcast(call, *root, block, *shape)?]
            }
            Self::Reduce(how, shape) => vec![comm.reduce(call, *how, part(state, 0, *shape))?],
            Self::Barrier => {
                comm.barrier(call)?;
                Vec::new()
            }
            Self::Messages(post_first, messages) => exchange(comm, call, state, seed, *post_first, messages)?,
        })
    }
}

/// Sends and receives in orders of their own; only messages under one tag keep theirs.
fn exchange(
    comm: &dyn Communicator,
    call: &Call,
    state: u64,
    seed: u64,
    post_first: bool,
    messages: &[Message],
) -> Outcome<Vec<Block>> {
    let me = comm.rank();
    let of = |message: &Message| {
        let envelope = call.envelope();
        Call::new(envelope.class, envelope.tag.kind(message.kind), call.deadline())
    };
    let post = || {
        let mine = in_some_order(messages, word(&[seed, me as u64, 1]), |message| message.to == me);
        let post = |i: usize| {
            let message = &messages[i];
            Ok((i, comm.post_recv(message.from, &of(message), message.shape)?))
        };
        mine.into_iter().map(post).collect::<crate::Result<Vec<_>>>()
    };
    let posted = if post_first { Some(post()?) } else { None };
    for i in in_some_order(messages, word(&[seed, me as u64, 2]), |message| message.from == me) {
        let message = &messages[i];
        comm.send(message.to, &of(message), part(state, i, message.shape))?;
    }
    let mut posted = posted.map_or_else(post, Ok)?;
    Random(word(&[seed, me as u64, 3])).shuffle(&mut posted);
    let mut received = Vec::new();
    for (i, mut pending) in posted {
        received.push((i, pending.wait(call.deadline())?));
    }
    received.sort_by_key(|(i, _)| *i);
    Ok(received.into_iter().map(|(_, block)| block).collect())
}

/// Numbers of the messages that are `wanted`, kind after kind in a random order of the kinds.
fn in_some_order(messages: &[Message], seed: u64, wanted: impl Fn(&Message) -> bool) -> Vec<usize> {
    let mut kinds: Vec<u32> = (0..KINDS).collect();
    Random(seed).shuffle(&mut kinds);
    let of_kind = |kind: u32| {
        let numbered = messages.iter().enumerate();
        numbered
            .filter(|(_, message)| message.kind == kind && wanted(message))
            .map(|(i, _)| i)
            .collect::<Vec<_>>()
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

/// Kinds of messages in one step.
const KINDS: u32 = 4;

/// The `i`-th block of a rank in `state`.
fn part(state: u64, i: usize, shape: BlockShape) -> Block {
    block(word(&[state, i as u64]), shape)
}
