//! Times and limits of an endpoint.

use std::time::Duration;

use quinn::{Connection, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::EndpointError;

/// Times and limits of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Streams in both directions that a peer may have open at once.
    pub bidi_streams_max: u32,
    /// Bytes that a peer may send ahead on all streams, and that wait here to be sent.
    pub connection_window_bytes: u32,
    /// How long a peer has to prove who it is, and for a join from first to last byte.
    pub handshake_timeout: Duration,
    /// How many peers may be proving who they are. Beyond half of them an address must show that it can receive.
    pub handshakes_max: usize,
    /// A peer that is silent for so long is gone: the smaller value of the two ends counts for both. The death of a process
    /// is noticed after this and at most one `keep_alive`. Nobody at an address is noticed after `handshake_timeout`, or
    /// after this if it is less, but at least three seconds: QUIC waits for three of its probe times.
    pub idle_timeout: Duration,
    /// How often this end of a silent connection says that it lives. The answer is a sign of life of the other end, so one
    /// end that does keeps both.
    pub keep_alive: Duration,
    /// The largest UDP payload that is tried. quinn sends batches of ten packets by segmentation offload, and a batch
    /// above 65507 bytes is dropped without an error: more than 6500 cannot be set, and 1452 is right for Ethernet.
    pub mtu_max: u16,
    /// Peers that may wait to be accepted.
    pub peers_waiting_max: usize,
    /// Send and receive buffer that the system is asked for.
    pub socket_buffer_bytes: usize,
    /// Bytes that a peer may send ahead on one stream.
    pub stream_window_bytes: u32,
    /// Streams in one direction that a peer may have open at once. One of them carries the welcome.
    pub uni_streams_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bidi_streams_max: 64,
            connection_window_bytes: 16 << 20,
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 128,
            idle_timeout: Duration::from_secs(1),
            keep_alive: Duration::from_millis(250),
            mtu_max: 1452,
            peers_waiting_max: 128,
            socket_buffer_bytes: 4 << 20,
            stream_window_bytes: 8 << 20,
            uni_streams_max: 64,
        }
    }
}

impl Options {
    /// For processes beside CPU ranks, which may keep every core busy for a second: such a node is not dead.
    pub fn beside_cpu_ranks() -> Self {
        Self { idle_timeout: Duration::from_secs(3), ..Self::default() }
    }

    /// For who dials a head: the times of the head's file count at both ends. It offers more than any file allows, and
    /// leaves the signs of life to the head.
    pub fn dialer() -> Self {
        Self { idle_timeout: IDLE_TIMEOUT_MAX, keep_alive: IDLE_TIMEOUT_MAX / 2, ..Self::default() }
    }

    pub(crate) fn transport(&self) -> Result<TransportConfig, EndpointError> {
        self.check()?;
        let idle = IdleTimeout::try_from(self.idle_timeout);
        let idle = idle.map_err(|_| bad("idle_timeout", self.idle_timeout, "it is too long"))?;
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.mtu_max);
        let mut transport = TransportConfig::default();
        transport
            .keep_alive_interval(Some(self.keep_alive))
            .max_concurrent_bidi_streams(self.bidi_streams_max.into())
            .max_concurrent_uni_streams(self.uni_streams_max.into())
            .max_idle_timeout(Some(idle))
            .mtu_discovery_config(Some(mtu))
            .receive_window(self.connection_window_bytes.into())
            .send_window(self.connection_window_bytes.into())
            .stream_receive_window(self.stream_window_bytes.into())
            // Nothing here uses unreliable datagrams.
            .datagram_receive_buffer_size(None);
        Ok(transport)
    }

    /// As [`transport`](Self::transport), for somebody who has not proved anything yet: one stream each way, and no more
    /// bytes than a small message has.
    pub(super) fn transport_of_strangers(&self) -> Result<TransportConfig, EndpointError> {
        let mut transport = self.transport()?;
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(1))
            .receive_window(VarInt::from_u32(STRANGERS_WINDOW_BYTES));
        Ok(transport)
    }

    /// Gives a connection that began as a stranger's what a peer has.
    pub(super) fn lift_limits(&self, connection: &Connection) {
        connection.set_max_concurrent_bi_streams(self.bidi_streams_max.into());
        connection.set_max_concurrent_uni_streams(self.uni_streams_max.into());
        connection.set_receive_window(self.connection_window_bytes.into());
    }

    fn check(&self) -> Result<(), EndpointError> {
        if self.keep_alive.is_zero() || self.keep_alive * 2 > self.idle_timeout {
            return Err(bad(
                "keep_alive",
                self.keep_alive,
                "it must be above 0 and at most half of idle_timeout",
            ));
        }
        if !(MTU_MIN..=MTU_WITH_OFFLOAD_MAX).contains(&self.mtu_max) {
            return Err(bad("mtu_max", self.mtu_max, "1200 to 6500 are possible"));
        }
        let counts = [
            ("bidi_streams_max", self.bidi_streams_max as usize),
            ("handshakes_max", self.handshakes_max),
            ("peers_waiting_max", self.peers_waiting_max),
            ("uni_streams_max", self.uni_streams_max as usize),
        ];
        match counts.into_iter().find(|(_, count)| !(1..=COUNT_MAX).contains(count)) {
            Some((setting, count)) => Err(bad(setting, count, "1 to 100000 are possible")),
            None => Ok(()),
        }
    }
}

fn bad(setting: &'static str, value: impl std::fmt::Debug, reason: &'static str) -> EndpointError {
    EndpointError::Options { setting, value: format!("{value:?}"), reason }
}

/// The most that a cluster's file may say.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(600);
const STRANGERS_WINDOW_BYTES: u32 = 128 << 10;
const COUNT_MAX: usize = 100_000;
const MTU_MIN: u16 = 1200;
const MTU_WITH_OFFLOAD_MAX: u16 = 6500;
