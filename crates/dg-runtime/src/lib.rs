//! The runtime: actors that own a model and work through jobs. The API for programs that embed it.
//!
//! A [`Cluster`] is a supervisor actor with one worker actor per rank; a worker owns one compute thread, which owns the
//! rank's part of the model. Jobs queue at the supervisor, which plans each of them and gives it to the ranks of a
//! replica, joined for this job only. A worker that panics fails its job only: the supervisor starts another one in its
//! place.
//!
//! # Layout
//! - [`cluster`], [`builder`], [`job`]: [`Cluster`], [`Builder`] and [`Job`], the API; `examples/embedded.rs` shows it
//! - [`logic`]: what the supervisor decides, without actors, clocks or IO
//! - [`asked`]: settings → the work and the layout that they ask for
//! - [`plan`]: how a replica makes a batch; [`placed`]: which rank is on which node, and how they are joined
//! - `supervisor`, `worker`: the actors that carry the decisions out
//! - `run`, `compute`: a job on the ranks of a replica, and the thread of one rank
//! - [`board`]: what ranks have done and sent, for reports and traces
//! - [`fleet`]: the cluster as processes: head, agents, ranks, clients
//! - [`failpoint`]: where a rank is to fail, for tests
//! - [`memory`]: what a run will need; [`machine`]: what this machine has
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use dg_core::{GenerateRequest, ImageSize, Seed};
//! use dg_runtime::{Cluster, EngineOptions, flux::{ModelRepo, ModelSource}};
//!
//! let repo = ModelRepo::open(ModelSource::Folder("FLUX.1-schnell".into()), "FLUX.1-schnell")?;
//! let cluster = Cluster::start(repo, EngineOptions::default()).await?;
//! let (size, _) = ImageSize::fit(512, 512)?;
//! let mut job = cluster.submit(vec![GenerateRequest::new("a cat", size, Seed(0))]);
//! while let Some(event) = job.next_event().await {
//!     println!("{event:?}");
//! }
//! let pictures = job.finish().await?;
//! cluster.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! In an actor of one's own it is part of the state; `examples/embedded.rs` is a whole program:
//!
//! ```no_run
//! use dg_core::GenerateRequest;
//! use dg_runtime::{Cluster, Picture, flux::ModelSource};
//! use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
//!
//! struct Painter;
//!
//! struct Draw(GenerateRequest, RpcReplyPort<Result<Vec<Picture>, String>>);
//!
//! impl ractor::Message for Draw {}
//!
//! impl Actor for Painter {
//!     type Msg = Draw;
//!     type State = Cluster;
//!     type Arguments = ModelSource;
//!
//!     async fn pre_start(&self, _: ActorRef<Draw>, model: ModelSource) -> Result<Cluster, ActorProcessingErr> {
//!         Ok(Cluster::local(model, "mine", 4).await?)
//!     }
//!
//!     async fn handle(
//!         &self,
//!         _: ActorRef<Draw>,
//!         Draw(request, reply): Draw,
//!         cluster: &mut Cluster,
//!     ) -> Result<(), ActorProcessingErr> {
//!         let drawn = cluster.submit(vec![request]).await.map_err(|e| e.to_string());
//!         // Whoever asked may have given up.
//!         let _ = reply.send(drawn);
//!         Ok(())
//!     }
//! }
//! ```
//!
//! [`fleet::client`] has the same for the ranks of a cluster.
#![forbid(unsafe_code)]

pub mod asked;
pub mod board;
pub mod builder;
pub mod cluster;
mod compute;
pub mod error;
pub mod failpoint;
pub mod fleet;
pub mod job;
pub mod logic;
pub mod machine;
pub mod memory;
pub mod placed;
pub mod plan;
mod run;
mod sampler;
mod supervisor;
mod told;
mod worker;

pub use board::{RankEvent, RankSpan, RankState, RankStatus, TraceLog};
pub use builder::{BuildError, Builder};
pub use cluster::{Cluster, EngineOptions, PRIORITY_MAX, Parallel};
pub use dg_flux as flux;
pub use dg_flux::{DeviceKind, Picture};
pub use error::{JobError, StartError};
pub use job::{Canceller, Job};
pub use memory::{MemoryNeed, memory_need};
pub use plan::job_plan;
