//! Who is let in, who is not, and that the reason is told.

mod bus;
mod identity;
mod join;
mod kept;
mod matrix;
#[path = "../support/old_session.rs"]
mod old_session;
mod old_tls;
mod peers;
#[allow(dead_code, reason = "the other suite uses the rest")]
#[path = "../support/mod.rs"]
mod support;
