//! The communicator over libraries that stand for the driver and for NCCL, and really move bytes between ranks.

mod conformance;
mod faults;
mod loading;
mod sockets;
mod stub;
