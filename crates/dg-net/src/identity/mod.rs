//! Who is who: a certificate authority per cluster, a certificate per node and client, and what makes one acceptable.
//!
//! A peer *is* the name in its certificate, `<name>.dg-cluster`; what it says about itself counts for nothing. Its
//! [`Role`] follows from the purposes of the certificate, so a client cannot pass for a node of the same name. To renew
//! is to issue again. A certificate is revoked by taking its [`Fingerprint`] off the list of those [`Admitted`].
//!
//! # Layout
//! - [`Name`], [`Role`], [`Fingerprint`], [`Passport`]: what a certificate says
//! - [`Ca`]: signs; [`Identity`]: a certificate with its key
//! - [`State`]: the folder that keeps them; [`Auditor`]: what is wrong with them
//! - [`Admitted`]: which certificates still count
//! - `lock`: one writer at a time
//!
//! ```
//! use dg_net::identity::{Ca, Name, Role};
//! use std::time::SystemTime;
//!
//! let now = SystemTime::now();
//! let ca = Ca::create(now).unwrap();
//! let node = ca.issue(&Name::parse("node-1").unwrap(), Role::Node, now).unwrap();
//! assert_eq!(node.passport().name().as_str(), "node-1");
//! node.check(now).unwrap();
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

mod admitted;
mod audit;
mod ca;
mod lock;
mod passport;
mod state;

pub use admitted::Admitted;
pub use audit::{Audit, Auditor, Fault};
pub use ca::{Ca, Identity};
pub(crate) use ca::{new_key, request};
pub(crate) use lock::lock;
pub use passport::{BadName, Fingerprint, Name, Passport, Role};
pub use state::State;
pub(crate) use state::{read_text, write_file};

use std::path::PathBuf;
use std::time::Duration;

use dg_core::ExitCode;

/// Why a certificate cannot be made, kept or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A certificate that the program will not take.
    #[error("the certificate {what}; hint: {hint}")]
    Certificate {
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// Cryptography failed.
    #[error("{what} failed: {reason}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// What the library says.
        reason: String,
    },
    /// A file of the state folder.
    #[error("`{}`: {what}; hint: {hint}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The name cannot be one.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl IdentityError {
    /// How a program ends because of it.
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::Config
    }

    fn crypto(what: &'static str, reason: impl ToString) -> Self {
        Self::Crypto { what, reason: reason.to_string() }
    }
}

/// A certificate that ends sooner than this should be renewed.
pub const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);
