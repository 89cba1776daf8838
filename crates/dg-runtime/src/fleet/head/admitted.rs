//! Certificates that are issued or revoked while the head runs.

use dg_net::identity::Admitted;
use std::time::Duration;

/// Reads the list again and again: `dg-cluster certs` is another process.
pub(super) async fn keep_up(admitted: Admitted) {
    let mut was_readable = true;
    loop {
        tokio::time::sleep(EVERY).await;
        let list = admitted.clone();
        let read = tokio::task::spawn_blocking(move || list.reload()).await;
        let error = match read {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|_| was_readable) {
            tracing::warn!(error, "the list of certificates cannot be read: what was read last counts");
        }
        was_readable = error.is_none();
    }
}

/// So long a revoked certificate is let in at most.
const EVERY: Duration = Duration::from_secs(1);
