//! dg-hub
