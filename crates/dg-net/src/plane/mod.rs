//! Communicators between processes of CPU ranks: one byte stream for each pair of ranks, blocking threads, no runtime.
//!
//! # Layout
//! - [`Rendezvous`]: who belongs to the mesh, and how its ranks find and prove each other
//! - [`Address`], [`Listener`]: unix sockets, TCP with TLS, and TCP in clear text for tests on the loopback device
//! - [`Sockets`]: the [`Communicator`](dg_comm::Communicator) that comes out
//! - [`SetUpError`], [`Refusal`]: what can go wrong before that
//! - `hello`, `frame`: what goes over the streams, before and after
//! - `meeting`, `stream`, `tls`: the state of a set-up, and the byte streams
//! - `world`, `line`, `reader`: messages that have come, messages that are to go, and the thread that reads
//! - `pool`: memory of large messages, used again
//!
//! Every rank makes its [`Listener`]s, tells whoever starts the ranks their addresses, and gets those of all:
//! ```
//! use dg_comm::{Block, BlockShape, Call, Class, Communicator, Tag};
//! use dg_net::plane::{EpochKey, Listener, Member, Options, Rendezvous};
//! use std::time::Duration;
//!
//! let listeners: Vec<_> = (0..2).map(|_| Listener::abstract_unix().unwrap()).collect();
//! let members: Vec<_> = listeners.iter().map(|listener| Member::at(listener.address().clone())).collect();
//! let key = EpochKey::generate();
//! std::thread::scope(|scope| {
//!     for (me, listener) in listeners.into_iter().enumerate() {
//!         let rendezvous = Rendezvous { epoch: 1, key: key.clone(), members: members.clone(), me };
//!         scope.spawn(move || {
//!             let comm = rendezvous.connect(vec![listener], Options::default()).unwrap();
//!             let call = Call::within(Duration::from_secs(10), Class::Gather, Tag::new(1));
//!             comm.send(1 - me, &call, Block::from_f32(vec![me as f32])).unwrap();
//!             let got = comm.recv(1 - me, &call, BlockShape::f32(1)).unwrap();
//!             assert_eq!(got.as_f32().unwrap(), [1.0 - me as f32]);
//!             comm.finish().unwrap();
//!         });
//!     }
//! });
//! ```

mod address;
mod error;
mod frame;
mod hello;
mod key;
mod line;
mod meeting;
mod pool;
mod reader;
mod rendezvous;
mod sockets;
mod stream;
mod tls;
mod world;

pub use address::{Address, Listener};
pub use error::{Missing, Refusal, Refused, SetUpError};
pub use frame::FrameError;
pub use key::EpochKey;
pub use rendezvous::{Member, Options, RANKS_MAX, Rendezvous};
pub use sockets::Sockets;
pub use tls::Tls;
pub(crate) use tls::random;
