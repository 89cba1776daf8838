//! What ranks say to each other: collectives, tagged messages and groups, with a deadline on every call.
//!
//! A *rank* is a worker with its own share of a job: a thread here, a process or a GPU elsewhere. All of them speak
//! through a [`Communicator`], so that code that runs on several ranks does not know what kind they are.
//!
//! # Layout
//! - [`communicator`]: the trait. A kind of rank brings [`send`](Communicator::send) and
//!   [`post_recv`](Communicator::post_recv); the collectives are written on top of them, once
//! - [`call`]: [`Tag`], [`Deadline`], [`Call`]: what goes with every call
//! - [`class`]: [`Class`], what a message is for
//! - [`block`]: [`Block`], the payload: dense f32 or bf16 whose clones share memory
//! - [`reduce`]: sums and maxima in rank order, so that every rank gets the same bits
//! - [`in_process`]: [`InProcess`], ranks that are threads of one process; nothing is copied
//! - [`inbox`]: what has arrived, for implementations
//! - [`group`]: [`Group`], some of the ranks as a communicator of their own
//! - [`counters`]: bytes, messages and waiting time per class and peer
//! - [`error`]: [`CommError`], which names the call, the peer and a hint
//! - [`staged`]: [`HostStaged`], device memory over a plane that carries host memory
//! - [`delayed`], [`recording`]: wrappers that disturb and that write down, for tests and traces
//! - [`conformance`]: the suite that every communicator has to pass
//!
//! The core knows of no tensors: a block is shared bytes, or [`DeviceMemory`] that only a device's own communicator
//! opens. That is all that a plane needs, and it builds in seconds. The feature `burn` adds `Block::from_tensor` and
//! `Block::to_tensor`, which share memory with tensors of burn's Flex device.
//!
//! ```
//! use dg_comm::{Block, Call, Class, Communicator, InProcess, Reduce, Tag};
//! use std::time::Duration;
//!
//! std::thread::scope(|scope| {
//!     for comm in InProcess::group(3) {
//!         scope.spawn(move || {
//!             let call = Call::within(Duration::from_secs(10), Class::Gather, Tag::new(7).step(1));
//!             // Rank r brings r values; all get 0 + 1 + 2 of them.
//!             let mine = Block::from_f32(vec![comm.rank() as f32; comm.rank()]);
//!             let all = comm.all_gather(&call, mine, &[0, 1, 2]).unwrap();
//!             assert_eq!(all[2].as_f32().unwrap(), [2.0, 2.0]);
//!
//!             let ones = Block::from_f32(vec![1.0]);
//!             let sum = comm.reduce(&call, Reduce::Sum, ones).unwrap();
//!             assert_eq!(sum.as_f32().unwrap(), [3.0]);
//!             comm.finish().unwrap();
//!         });
//!     }
//! });
//! ```
#![forbid(unsafe_code)]

pub mod block;
pub mod call;
pub mod class;
pub mod communicator;
pub mod conformance;
pub mod counters;
pub mod delayed;
pub mod error;
pub mod group;
pub mod in_process;
pub mod inbox;
pub mod recording;
pub mod reduce;
mod shared;
pub mod staged;
#[cfg(feature = "burn")]
mod tensor;

pub use block::{Block, BlockShape, DeviceMemory};
pub use call::{Call, DEADLINE_MAX, Deadline, Envelope, Op, Tag};
pub use class::Class;
pub use communicator::{Communicator, IN_FLIGHT_MIN, Pending, Receiving};
pub use counters::{Counters, Ledger, Tally};
pub use delayed::Delayed;
pub use error::{CommError, Gone, Place, RankName, Result, Side};
pub use group::Group;
pub use in_process::{InProcess, Options};
pub use recording::{Event, EventKind, Recording, Trace};
pub use reduce::Reduce;
pub use staged::{Device, HostStaged};
