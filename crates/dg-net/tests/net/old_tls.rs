//! A peer with a TLS before 1.3.

use std::sync::Arc;

use dg_net::endpoint::ALPN_CLUSTER;

use crate::old_session::OldTls;
use crate::support::{Rig, attempt, warnings};

#[tokio::test]
async fn old_tls_is_refused() {
    let rig = Rig::new();
    let shown = rig.forge.shown("node-1", |_| ());
    let old = OldTls(Arc::new(rig.forge.client(Some(shown), ALPN_CLUSTER)));
    let attempt = attempt(quinn::ClientConfig::new(Arc::new(old)), rig.address, "head.dg-cluster").await;
    // The alert `protocol_version`.
    assert!(attempt.error.contains("error 70"), "{}", attempt.error);
    let lines = warnings(attempt.from).await;
    assert!(lines.len() == 1 && lines[0].contains("must speak TLS 1.3"), "{lines:#?}");
    assert_eq!(rig.answered(), 0);
    rig.serves().await;
}
