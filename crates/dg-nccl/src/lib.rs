//! NVIDIA GPUs as ranks: device memory, and tensors between GPUs by NCCL.
//!
//! Nothing here needs CUDA to be built. The driver and NCCL are looked for when the program runs, and what is missing is
//! an error that says so.
//!
//! # Layout
//! - [`driver`]: [`Driver`], [`Context`]: the part of the CUDA driver that is needed: memory, streams, events
//! - [`library`]: [`Library`]: NCCL, found under the names that it has, and old versions refused
//! - [`memory`]: [`Memory`]: device memory that messages carry; [`Arena`]: where received messages are put
//! - [`nccl`]: [`Nccl`]: the communicator; [`agree`]: whether all ranks have what it needs
//! - `edge`: one direction between two ranks; `engine`: the thread that makes all calls to NCCL; `ticket`: what goes
//!   over the host's plane beside the data
//! - [`facts`]: what this machine has of all that, for `doctor`; [`usage`]: how busy its devices are; [`variables`]:
//!   what the environment tells NCCL
//! - [`mod@error`]: what can go wrong, [`GpuError`]
//!
//! # How messages travel
//! [`Nccl`] stands on a communicator of the host (sockets between processes), which carries a *ticket* of some bytes for
//! each message: its shape and number. Tags, order, deadlines, aborts and deaths are the host plane's business. The
//! values go from device to device, in the order of their numbers, over a communicator of NCCL with two ranks for each
//! direction in which something is sent, made when it is first needed.
//!
//! NCCL runs what it is given in order, and a send waits on the device for its receive. With one communicator for all,
//! two ranks that send first and receive later would wait for each other for ever. So a receive is posted as soon as
//! the sender has said that a message comes, whoever waits for it, and each direction has its own communicator and
//! stream: nothing waits for anything else.
//!
//! # Order with other work on the device
//! A block that is handed over must be complete: whoever made it has waited for its own stream. A block that is received
//! is complete when it is handed out: its event has been seen by the host. So no stream waits for another.
//!
//! # Never a blind wait
//! Communicators of NCCL are non-blocking. One thread per communicator asks NCCL and the events how things are, gives up
//! the communicators of NCCL when the job is aborted, and aborts the job when NCCL reports an error.

pub mod agree;
pub mod driver;
mod dynamic;
mod edge;
mod engine;
pub mod error;
pub mod facts;
pub mod library;
pub mod memory;
pub mod nccl;
mod ticket;
pub mod usage;
pub mod variables;

pub use driver::{Context, Driver};
pub use error::{GpuError, Version};
pub use library::Library;
pub use memory::{Arena, Memory};
pub use nccl::{Nccl, Options};
