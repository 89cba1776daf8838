//! The secret of one epoch.

use super::tls;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Secret that the ranks of one epoch share. Whoever has it can be any of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochKey([u8; 32]);

impl EpochKey {
    /// A key that was handed over.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new one, from the random numbers of the system.
    pub fn generate() -> Self {
        Self(tls::random())
    }

    /// To hand over.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKey(secret)")
    }
}
